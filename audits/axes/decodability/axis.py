"""Decodability axis: can a linear probe still read the forgotten answers?

Probes are fitted on retain entities and evaluated on forgotten ones, so no probe has seen a
forgotten answer. Two probes read the candidate: one refitted on its own states, and the
original's, unchanged.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from audits.axes.decodability.label_permutation import answer_permutation_test
from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import (
    ProbingData,
    choose_penalty,
    fit_probes,
    fit_shuffled_probes,
    read_all_states,
)
from audits.axes.judgement import (
    MetricComparison,
    compare_to_floors,
    informative_columns,
    planted_control,
    power_control,
    status_with_controls,
    unpaired_test,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel, reference_roles
from capture.activations.store import ActivationStore
from evidence.intervals import EntityValues, average_models
from evidence.progress import Progress
from evidence.results import AxisResult, Control, Reading
from evidence.seeds import numpy_rng

NAME = "decodability"
QUESTION = "Can a linear reader of the hidden states still tell the forgotten answers?"
SHUFFLES = 5
REFITTED, UNCHANGED = "refitted probe", "original's own probe"


def run_decodability(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
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
        tasks: The probing tasks.
        sites: As returned by ``capture_states``.
    """
    if not tasks:
        return AxisResult(NAME, QUESTION, "no_power", notes=tuple(notes))
    states, broken = read_all_states(models, tokenizer, tasks, sites, store)
    if broken:
        return AxisResult(
            NAME,
            QUESTION,
            "error",
            notes=(f"hidden states of {', '.join(broken)} are not finite", *notes),
        )
    probing = ProbingData(tasks, tuple(sites), states)
    penalty = choose_penalty(probing, progress)
    for role in states:
        if not states[role].probes:
            states[role].probes = fit_probes(probing, role, penalty, progress)
    rngs = [numpy_rng(config.seed, NAME, "shuffle", str(number)) for number in range(SHUFFLES)]
    shuffled = fit_shuffled_probes(probing, "original", penalty, rngs, progress)
    return _judge(probing, shuffled, config, penalty, [*probing.notes, *notes])


def _judge(
    probing: ProbingData,
    shuffled: Sequence[Sequence[SiteProbe]],
    config: AuditConfig,
    penalty: float,
    notes: Sequence[str],
) -> AxisResult:
    """Compute controls, readings and status from the fitted probes."""
    rule = config.rule
    forms = sorted({task.form for task in probing.tasks})
    ceiling = probing.values("original", "original", "forget")
    never_taught = probing.values("original", "original", "never_taught")
    power = unpaired_test(ceiling, never_taught, config, NAME, "original")
    # Only layers at which the original itself is decodable are informative.
    mask = informative_columns(power, rule)
    shuffles = average_models([probing.score(probes, "original", "forget") for probes in shuffled])
    details = {
        "form": forms,
        "penalty": penalty,
        "sites": list(probing.sites),
        "relations": [task.relation for task in probing.tasks],
        "original_p": power.p_value,
    }
    controls = [
        power_control(
            "the original is read beyond never-taught items", power, rule.alpha, bool(mask.any())
        )
    ]
    name = "accuracy" if forms == ["shared"] else "concordance (chance 0.5)"
    if not mask.any():
        return AxisResult(
            NAME,
            QUESTION,
            "no_power",
            name,
            controls=tuple(controls),
            n_entities=len(ceiling.values),
            details=details,
            notes=("No probe read the forget set well enough in the original itself.", *notes),
        )
    controls += _controls(probing, config, mask, ceiling, never_taught, shuffles)
    readings = _readings(probing, config, mask, ceiling)
    status, extra = status_with_controls(readings, controls, config.rule)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        name,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(ceiling.values),
        details=details,
        notes=(*extra, *notes),
    )


def _controls(
    probing: ProbingData,
    config: AuditConfig,
    mask: np.ndarray,
    ceiling: EntityValues,
    never_taught: EntityValues,
    shuffles: EntityValues,
) -> list[Control]:
    """Controls: never-taught, shuffled labels, planted suppression, embedding, retain."""
    alpha = config.rule.alpha
    # Two controls require a null hypothesis to hold: each is tested at half the level.
    null_alpha = alpha / 2

    # Chance is the score on permuted answers. A few fits on shuffled labels would be a noisy
    # estimate of it.
    probes = probing.states["original"].probes
    permuted, chance = answer_permutation_test(
        probing,
        probes,
        "original",
        "never_taught",
        mask,
        numpy_rng(config.seed, NAME, "never taught"),
        config.budget.permutations,
    )
    spans = ceiling.mean[mask] - chance
    leak = float(permuted.difference.mean() / max(spans.mean(), 1e-9))
    controls = [
        Control(
            "answers of never-taught items are read no better than dealt ones",
            leak,
            f"below 0.25 of the original's excess, or p >= {null_alpha}",
            leak < 0.25 or permuted.p_value >= null_alpha,
        ),
        Control(
            "probes fitted on shuffled answers read nothing",
            float(((shuffles.mean[mask] - chance) / spans).max()),
            "below half of the original's excess",
            bool((shuffles.mean[mask] < chance + 0.5 * spans).all()),
        ),
    ]
    if "planted" in probing.states:
        test = unpaired_test(
            probing.values("planted", "planted", "forget"),
            probing.values("planted", "planted", "never_taught"),
            config,
            NAME,
            "planted",
            mask=mask,
        )
        controls.append(planted_control(test.p_value, alpha))
    first = np.array([site == "embed" for site in probing.sites])
    if first.any():
        test = unpaired_test(
            probing.values("unlearned", "unlearned", "forget"),
            probing.values("unlearned", "unlearned", "never_taught"),
            config,
            NAME,
            "embedding",
            mask=first,
        )
        smaller_p = min(test.p_value, test.p_below)
        controls.append(
            Control(
                "the embedding layer is at the floor",
                smaller_p,
                f"p >= {null_alpha / 2} on both sides",
                smaller_p >= null_alpha / 2,
            )
        )
    candidate = probing.values("unlearned", "unlearned", "check").mean[mask].max()
    original = probing.values("original", "original", "check").mean[mask].max()
    base = chance.mean()
    retain_share = (candidate - base) / max(original - base, 1e-9)
    controls.append(
        Control(
            "held-out retain entities can be read in the candidate",
            float(retain_share),
            "at least half of the original's excess",
            bool(retain_share >= 0.5),
        )
    )
    return controls


def _readings(
    probing: ProbingData, config: AuditConfig, mask: np.ndarray, ceiling: EntityValues
) -> list[Reading]:
    """Both probes against references (if any) and never-taught items."""
    references = reference_roles(probing.states)
    comparisons = [
        MetricComparison(
            name,
            name,
            probing.values(reader, "unlearned", "forget"),
            ceiling,
            [
                probing.values(role if name == REFITTED else "original", role, "forget")
                for role in references
            ],
            probing.values(reader, "unlearned", "never_taught"),
        )
        for name, reader in ((REFITTED, "unlearned"), (UNCHANGED, "original"))
    ]
    return compare_to_floors(NAME, comparisons, probing.sites, config, mask)
