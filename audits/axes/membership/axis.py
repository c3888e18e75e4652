"""Membership axis: can forgotten items be distinguished from never-taught ones?

Hidden states differ between names that a model has met and names it has not, whatever the model
says about them. A classifier of this difference is fitted on retain entities against invented
mirrors of them. It then scores forgotten against never-taught entities, neither of which it has
seen. Their labels are exchangeable, so the permutation test is exact, including the maximum
over layers. Both groups share relations, templates and answers; only the names differ.

A finding is a residual trace. It blocks ``deleted`` and never makes ``suppressed``: a model may
recognize a training name and know nothing else about it.

Source: the cross-sequence signature of arXiv 2605.01699, with disjoint erase, fit and test
sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from audits.axes.judgement import (
    MIN_SPAN,
    MetricComparison,
    compare_to_floors,
    failed_controls,
    informative_columns,
    planted_control,
    status_from_readings,
    status_with_controls,
)
from audits.axes.membership.scores import NAME, MembershipScores, MembershipSets, score_membership
from audits.core.config import AuditConfig, Rule
from audits.core.context import AuditedModel, reference_roles
from capture.activations.store import ActivationStore
from capture.data.tokenization import encode
from evidence.intervals import EntityValues
from evidence.progress import Progress
from evidence.results import AxisResult, Control, Reading, Status
from probes.estimators.kernel_smoothers import FAMILIES

QUESTION = "Does a signature tell forgotten items from never-taught ones?"
STATISTIC_NAME = "AUC (chance 0.5)"
REFITTED = "refitted reader"
SHUFFLES = 20
# Two controls require a null hypothesis, two-sided: together they fail by chance at half alpha.
NULL_ALPHA_SHARE = 0.25
RETAIN_READABLE = "held-out retain entities are told from invented ones in the candidate"


def run_membership(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    sets: MembershipSets,
    sites: Sequence[str],
    store: ActivationStore,
    config: AuditConfig,
    *,
    notes: Sequence[str],
    progress: Progress,
) -> AxisResult:
    """Run the axis on captured states.

    Args:
        models: Models by role: "original", "unlearned", and where available "planted" and
            "reference-N".
        sets: The entities compared.
        sites: As returned by ``capture_states``.
    """
    rows = encode(tokenizer, sets.prompts)

    def states_of(role: str, names: Sequence[str], view: str) -> NDArray[np.float32]:
        activations = store.activations(models[role], rows, names, view)  # pyright: ignore
        return np.asarray(activations.values)

    states = {role: states_of(role, sites, "last") for role in models}
    broken = [role for role, x in states.items() if not np.isfinite(x).all()]
    if broken:
        why = f"hidden states of {', '.join(broken)} are not finite"
        return AxisResult(NAME, QUESTION, "error", notes=(why, *notes))
    by_family = {}
    with progress.task("membership", len(FAMILIES) + len(states)) as advance:
        for family in FAMILIES:
            by_family[family] = score_membership(states["original"], sets, family, config.seed)
            advance(1)
        # Chosen on held-out entities that are in neither the fit nor the test.
        chosen = max(
            FAMILIES, key=lambda name: by_family[name].auc("check", "check_invented").mean()
        )
        scores = {}
        for role, role_states in states.items():
            shuffles = SHUFFLES if role == "original" else 0
            scores[role] = score_membership(role_states, sets, chosen, config.seed, shuffles)
            advance(1)
    every = np.ones(len(sites), dtype=bool)
    power = scores["original"].test("forget", "never_taught", every, config)
    mask = informative_columns(power, config.rule)
    details = {
        "reader": chosen,
        "sites": list(sites),
        "original_p": power.p_value,
        "auc": {
            role: np.round(role_scores.auc("forget", "never_taught"), 6).tolist()
            for role, role_scores in scores.items()
        },
        "auc_of_retain": {
            role: np.round(role_scores.auc("check", "check_invented"), 6).tolist()
            for role, role_scores in scores.items()
        },
    }
    count = len(dict.fromkeys(sets.questions["forget"].entities))
    controls = [
        Control(
            "the original tells them apart",
            power.p_value,
            f"p < {config.rule.alpha} and at least {MIN_SPAN} above chance",
            bool(mask.any()),
        )
    ]
    if not mask.any():
        why = "The original itself does not tell them apart."
        return AxisResult(
            NAME,
            QUESTION,
            "no_power",
            STATISTIC_NAME,
            controls=tuple(controls),
            n_entities=count,
            details=details,
            notes=(why, *notes),
        )
    controls += _controls(scores, mask, config)
    if "embed" in sites:
        names = states_of("unlearned", ["embed"], "mean")
        controls.append(_names_alone(names, sets, chosen, config))
    readings = _readings(scores, mask, sites, config)
    status, extra = status_of(readings, controls, config.rule)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=count,
        details=details,
        notes=(*extra, *notes),
    )


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    A candidate whose retain entities are not recognized either may lack the signature
    altogether: a null result is then no evidence, but a finding still is.
    """
    if failed_controls(controls) == [RETAIN_READABLE] and readings:
        return status_from_readings(readings[:2], rule, failed=[RETAIN_READABLE])
    return status_with_controls(readings, controls, rule)


def _places(scores: MembershipScores) -> EntityValues:
    """(forgotten entity, site) share of never-taught entities that score lower."""
    table = scores.wins("forget", "never_taught").mean(1)
    names = tuple(dict.fromkeys(scores.sets.questions["forget"].entities))
    return EntityValues(table, len(table), names, table.var(0))


def _chance(scores: MembershipScores) -> EntityValues:
    """One half, with the spread of the never-taught entities' own ranks.

    An AUC varies with the entities of both groups (DeLong 1988, Biometrics 44:837), so the
    interval of its difference from one half must include both.
    """
    share = scores.wins("forget", "never_taught").mean(0)
    table = np.clip(0.5 + share.mean(0) - share, 0, 1)
    table = np.clip(table + 0.5 - table.mean(0), 0, 1)
    names = tuple(dict.fromkeys(scores.sets.questions["never_taught"].entities))
    return EntityValues(table, len(table), names, table.var(0))


def _readings(
    scores: Mapping[str, MembershipScores],
    mask: NDArray[np.bool_],
    sites: Sequence[str],
    config: AuditConfig,
) -> list[Reading]:
    """Against references (if any) and never-taught items."""
    comparison = MetricComparison(
        REFITTED,
        REFITTED,
        _places(scores["unlearned"]),
        _places(scores["original"]),
        [_places(scores[role]) for role in reference_roles(scores)],
        _chance(scores["unlearned"]),
    )
    test = scores["unlearned"].test("forget", "never_taught", mask, config)
    p_used = iter(test.p_column.tolist())
    readings = []
    for reading in compare_to_floors(NAME, [comparison], list(sites), config, mask):
        if reading.floor_kind == "never_taught":
            # A rank depends on the other entities: permute entities first, then rank.
            columns = tuple(
                {**column, "p_value": next(p_used) if column["used"] else None}
                for column in reading.columns
            )
            reading = replace(
                reading,
                p_value=test.p_value,
                p_below=test.p_below,
                smallest_p=test.smallest_p,
                columns=columns,
            )
        readings.append(reading)
    return readings


def _controls(
    scores: Mapping[str, MembershipScores], mask: NDArray[np.bool_], config: AuditConfig
) -> list[Control]:
    """Controls: shuffled labels, invented against never-taught, planted, retain."""
    alpha = config.rule.alpha
    original, candidate = scores["original"], scores["unlearned"]
    lead = original.auc("forget", "never_taught")[mask] - 0.5
    shuffled = np.mean(
        [
            original.auc("forget", "never_taught", 1 + shuffle)[mask] - 0.5
            for shuffle in range(SHUFFLES)
        ],
        axis=0,
    )
    invented = candidate.test("check_invented", "never_taught", mask, config)
    either = min(1.0, 2 * min(invented.p_value, invented.p_below))
    retain = candidate.test("check", "check_invented", mask, config)
    controls = [
        Control(
            "readers fitted on exchanged labels read nothing",
            float((shuffled / lead).max()),
            "below half of the original's excess",
            bool((shuffled < 0.5 * lead).all()),
        ),
        Control(
            "never-taught entities are not told from other invented ones",
            either,
            f"p >= {alpha * NULL_ALPHA_SHARE}",
            either >= alpha * NULL_ALPHA_SHARE,
        ),
        Control(RETAIN_READABLE, retain.p_value, f"p < {alpha}", retain.p_value < alpha),
    ]
    if "planted" in scores:
        planted = scores["planted"].test("forget", "never_taught", mask, config)
        controls.append(planted_control(planted.p_value, alpha))
    return controls


def _names_alone(
    names: NDArray[np.float32], sets: MembershipSets, family: str, config: AuditConfig
) -> Control:
    """Control for surface form: a bag of the name's token embeddings must not suffice."""
    alone = score_membership(names, sets, family, config.seed)
    test = alone.test("forget", "never_taught", np.ones(1, dtype=bool), config)
    either = min(1.0, 2 * min(test.p_value, test.p_below))
    return Control(
        "the names alone, averaged at the embedding, do not tell them apart",
        either,
        f"p >= {config.rule.alpha * NULL_ALPHA_SHARE}",
        either >= config.rule.alpha * NULL_ALPHA_SHARE,
    )
