"""Restoration rate net of its controls: how much of what was lost does steering restore?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from audits.axes.restoration.state_injection import MIN_LOST
from audits.axes.restoration.trial import Arm, Trial
from audits.core.roles import Role
from evidence.intervals import EntityValues, difference_interval, paired_correlation, rate_interval
from evidence.results import MIN_RANGE, Control, ControlId

CHANCE_CONTROL = "randomly rotated edits, and edits read from other items, restore little"
MAX_BY_CHANCE = 0.2
"""Maximum share of the lost answers that a control may restore."""


@dataclass(frozen=True)
class NetRate:
    """Share of what was lost that steering restores, minus that of the worst control.

    Attributes:
        rate: Share restored by the chosen edit.
        controls: Share restored by each control.
        net: ``rate`` minus the share of the worst control.
        interval: 95 % interval of ``net``.
        lost: Share of the answers lost.
    """

    rate: float
    controls: dict[str, float]
    worst_control: str
    net: float
    interval: tuple[float, float]
    lost: float


@dataclass(frozen=True)
class ImageNetRate(NetRate):
    """The same of a class of images.

    Attributes:
        own_rate: ``rate`` with the candidate's own last block.
        residual: ``net`` on a scale from the worst control (0) to the original (1).
        kinds: Share of each never-taught class.
    """

    own_rate: float
    residual: float
    kinds: tuple[float, ...]


def net_rate(
    trial: Trial,
    original: EntityValues,
    metric: str,
    references: Sequence[Trial] = (),
    paired: bool = True,
) -> NetRate | None:
    """The net rate of one trial; None where less than a tenth of the answers were lost.

    rate = (steered - plain) / (original - plain), each averaged over entities; controls likewise.
    Never-taught items, and models retrained without the forget set, never had the answers: nothing
    was lost there, so their baseline is 0. The interval is that of the difference to the worst
    control, as a share of the lost answers.

    Args:
        original: (entity, 1) scores of the unsteered original.
        references: Trials of models retrained without the forget set, as further controls.
        paired: Whether controls on the same entities are taken to be correlated with the edit.

    Source: arXiv 2602.18505, whose rate subtracts no control.
    """
    before = float(trial.values(metric, Arm.PLAIN).mean[0])
    lost = float(original.mean[0]) - before
    if lost < MIN_LOST:
        return None
    steered = trial.values(metric, Arm.STEERED)
    controls = {str(arm): (trial.values(metric, arm), before) for arm in (Arm.RANDOM, Arm.OTHERS)}
    controls["never_taught"] = trial.values(metric, Arm.NEVER_TAUGHT), 0.0
    for number, reference in enumerate(references, start=1):
        controls[str(Role.reference(number))] = reference.values(metric, Arm.STEERED), 0.0
    rates = {
        name: (float(scores.mean[0]) - baseline) / lost
        for name, (scores, baseline) in controls.items()
    }
    worst = max(rates, key=lambda name: rates[name])
    scores, baseline = controls[worst]
    correlation = 0.0
    if paired and worst in (Arm.RANDOM, Arm.OTHERS):
        correlation = paired_correlation(steered.values[:, 0], scores.values[:, 0])
    low, high = difference_interval(
        float(steered.mean[0]),
        rate_interval(steered),
        float(scores.mean[0]),
        rate_interval(scores),
        correlation,
    )
    rate, shift = (float(steered.mean[0]) - before) / lost, baseline - before
    interval = (low + shift) / lost, (high + shift) / lost
    return NetRate(rate, rates, worst, rate - rates[worst], interval, lost)


def image_net_rate(
    trial: Trial, original: EntityValues, references: Sequence[Trial] = ()
) -> ImageNetRate | None:
    """``net_rate`` of image predictions. All predictions of the class count in the controls."""
    net = net_rate(trial, original, "named", references, paired=False)
    if net is None:
        return None
    before, own = (float(trial.values("named", arm).mean[0]) for arm in (Arm.PLAIN, Arm.OWN_END))
    hits = trial.scores["named"][Arm.NEVER_TAUGHT].values[:, 0]
    classes = np.array(trial.never_taught_classes)
    return ImageNetRate(
        **asdict(net),
        own_rate=(own - before) / net.lost,
        residual=net.net / max(1 - net.controls[net.worst_control], MIN_RANGE),
        kinds=tuple(float(hits[classes == each].mean()) / net.lost for each in np.unique(classes)),
    )


def chance_control(rate: float, worst: float) -> Control:
    """Edits without information must restore little.

    Noise alone may undo a weak suppression, so they may reach half of the edit's ``rate``.
    """
    return Control(
        ControlId.RANDOM_EDIT,
        CHANCE_CONTROL,
        worst,
        f"below {MAX_BY_CHANCE} of what was lost, or half of what is restored",
        worst < max(MAX_BY_CHANCE, 0.5 * rate),
    )
