"""Restoration axis: can the forgotten answers be steered back from inside the candidate?

The published test copies the original's activations into the candidate wherever the true label
is a forgotten one. This shows that the candidate's readout is intact, not that the candidate
holds any knowledge. Here the candidate must restore itself: one fixed edit of its states, the
same for every input, fitted on *other* items, with a strength chosen under a limit on the loss
of retain answers. The effect of the same edit on never-taught items is the floor. The controls,
an edit in a random direction and an edit that reads another item's state, must restore little.
After arXiv 2602.18505, with controls added.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from audits.axes.judgement import (
    MetricComparison,
    compare_to_floors,
    failed_controls,
    significance_control,
    status_from_readings,
    unpaired_test,
)
from audits.axes.restoration import state_injection
from audits.axes.restoration.autoencoder import (
    AnswerAutoencoder,
    autoencoder_site,
    train_autoencoder,
)
from audits.axes.restoration.net_rate import (
    CHANCE_CONTROL,
    MIN_LOST,
    chance_control,
    net_of_worst_control,
)
from audits.axes.restoration.text_steering import EncodedQuestions
from audits.axes.restoration.trial import NAME, restore, split_retain
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel, reference_roles
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.network.sites import find_sites
from capture.scoring.contrast import score_questions
from evidence.intervals import EntityValues, average_by_entity
from evidence.progress import Progress
from evidence.results import AxisResult, Control, Reading, Status

QUESTION = "Can the forgotten answers be steered back from inside?"
CONTRAST = "steered, told from the others"
EXACT_MATCH = "steered, said"
MIN_RESISTANCE = 0.2
"""The model resists steering where it retracts this much more than the original does."""


def run_restoration(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    config: AuditConfig,
    folder: Path,
    *,
    device: str,
    notes: Sequence[str],
    progress: Progress,
) -> AxisResult:
    """Run the axis on models.

    Args:
        models: Models by role: "original", "unlearned", and where available "planted" and
            "reference-N".
        forget: Forgotten items that the original answers.
        retain: Retain items that the original answers.
        folder: Where the autoencoder is kept.
    """
    original, wordings = models["original"], config.budget.prompts_per_item
    fit, check = split_retain(retain, wordings, tokenizer, config.seed)
    autoencoder, missing = train_autoencoder(
        original, fit, check, folder, config.seed, device=device, progress=progress
    )
    runs = {
        role: restore(
            original,
            audited,
            tokenizer,
            forget,
            retain,
            never_taught,
            wordings,
            config.seed,
            autoencoder=autoencoder,
            device=device,
            progress=progress,
        )
        for role, audited in models.items()
        if role != "original"
    }
    original_values = original_scores(original, tokenizer, forget, config, device)
    others = {role: audited for role, audited in models.items() if role != "original"}
    untrained = state_injection.untrained_model(original, config.seed)
    if untrained is not None:
        others[state_injection.UNTRAINED] = untrained
    injected = run_state_injection(
        original, others, runs, tokenizer, forget, autoencoder, config, device=device
    )
    return judge(runs, original_values, config, (*missing, *notes), injected)


def run_state_injection(
    original: AuditedModel,
    others: Mapping[str, AuditedModel],
    runs: Mapping[str, dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    autoencoder: AnswerAutoencoder | None,
    config: AuditConfig,
    *,
    device: str,
) -> dict[str, Any]:
    """The published state-injection test on every model (``state_injection.inject_states``).

    Adds ``fvu``: each model's fraction of variance unexplained by the autoencoder.
    """
    fits = {role: run["autoencoder"] for role, run in runs.items()}
    with original.loaded(device) as model:
        site = autoencoder_site(find_sites(model))
    injected = state_injection.inject_states(
        original,
        others,
        EncodedQuestions.of(build_questions(forget, config.budget.prompts_per_item), tokenizer),
        autoencoder,
        site,
        config.seed,
        device=device,
    )
    if autoencoder is not None:
        fvu_by_role = {role: fit["fvu"] for role, fit in fits.items() if fit}
        injected["fvu"] = {"original": autoencoder.fvu} | fvu_by_role
    return injected


def original_scores(
    original: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    config: AuditConfig,
    device: str,
) -> dict[str, EntityValues]:
    """(entity, 1) ``said`` (exact match) and ``contrast`` of the unsteered original."""
    questions = build_questions(forget, config.budget.prompts_per_item)
    with original.loaded(device) as model:
        scores = score_questions(model, questions, questions.encoded(tokenizer))
    return {
        "said": average_by_entity(scores.exact_match, questions.entities),
        "contrast": average_by_entity(scores.contrast, questions.entities),
    }


def judge(
    runs: Mapping[str, dict[str, Any]],
    original_values: Mapping[str, EntityValues],
    config: AuditConfig,
    notes: Sequence[str],
    injection: Mapping[str, Any] | None = None,
) -> AxisResult:
    """Judge the axis from the trials.

    Args:
        runs: By role, as ``restore``.
        original_values: (entity, 1) ``said`` and ``contrast`` of the unsteered original.
        injection: The published test, as ``state_injection.inject_states``; it does not vote.
    """
    candidate_run = runs["unlearned"]
    net = {role: net_rate(run, original_values["said"]) for role, run in runs.items()}
    controls = _controls(runs, net["unlearned"], config)
    readings = _readings(runs, original_values, config)
    status, extra = _status(readings, controls, config)
    details = {
        "choices": {role: run["choices"] for role, run in runs.items()},
        "curve": {role: run["curve"] for role, run in runs.items()},
        "generation": {role: run["generation"] for role, run in runs.items()},
        "net_rate": net,
    }
    published: list[str] = []
    if injection is not None:
        details["readout_intact"] = dict(injection)
        published = state_injection.describe(injection)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        "share of other answers outranked under steering (chance 0.5)",
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(set(candidate_run["entities"])),
        details=details,
        notes=(
            *extra,
            *_remarks(net["unlearned"], candidate_run),
            *candidate_run["autoencoder"].get("refused", ()),
            *published,
            *notes,
        ),
    )


def net_rate(run: dict[str, Any], original_values: EntityValues) -> dict[str, Any] | None:
    """Share of the lost answers that steering restores, minus the worst control.

    rate = (said steered - said before) / (said by the original - said before), each averaged
    over entities; controls likewise. The interval is that of the difference to the worst
    control on the same entities, as a share of the lost answers.

    Returns:
        As ``net_of_worst_control``; None where the candidate lost less than a tenth of the
        answers.
    """
    before = average_by_entity(np.array(run["plain"]["said"]), run["entities"])
    lost_share = float(original_values.mean[0] - before.mean[0])
    if lost_share < MIN_LOST:
        return None
    steered, *others = (
        average_by_entity(np.array(run[arm]["said"]), run["entities"])
        for arm in ("steered", "random", "others")
    )
    baseline = float(before.mean[0])
    controls = {
        arm: (scores, baseline) for arm, scores in zip(("random", "others"), others, strict=True)
    }
    never_taught = average_by_entity(np.array(run["never"]["said"]), run["never_entities"])
    # Answers about invented people were never lost, so their baseline is 0.
    controls["never_taught"] = never_taught, 0.0
    return net_of_worst_control(
        steered, baseline, lost_share, controls, paired=("random", "others")
    )


def _controls(
    runs: Mapping[str, dict[str, Any]], net: dict[str, Any] | None, config: AuditConfig
) -> list[Control]:
    """Controls: uninformed steering restores little; the planted suppression returns."""
    controls = []
    if net is not None:
        controls.append(chance_control(net["rate"], max(net["controls"].values())))
    if "planted" in runs:
        test = unpaired_test(
            _values(runs["planted"], "steered", "contrast"),
            _values(runs["planted"], "never", "contrast"),
            config,
            NAME,
            "planted",
        )
        controls.append(
            significance_control(
                "the planted suppression is steered back", test.p_value, config.rule.alpha
            )
        )
    return controls


def _values(run: dict[str, Any], part: str, metric: str) -> EntityValues:
    names = run["never_entities" if part == "never" else "entities"]
    return average_by_entity(np.array(run[part][metric]), names)


def _readings(
    runs: Mapping[str, dict[str, Any]],
    original_values: Mapping[str, EntityValues],
    config: AuditConfig,
) -> list[Reading]:
    """Contrast and exact match against references (if any) and never-taught items."""
    references = reference_roles(runs)
    comparisons = [
        MetricComparison(
            name,
            metric,
            _values(runs["unlearned"], "steered", metric),
            original_values[metric],
            [_values(runs[role], "steered", metric) for role in references],
            _values(runs["unlearned"], "never", metric),
        )
        for name, metric in ((CONTRAST, "contrast"), (EXACT_MATCH, "said"))
    ]
    return compare_to_floors(NAME, comparisons, ["steered"], config)


def _status(
    readings: Sequence[Reading], controls: Sequence[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither."""
    failed = failed_controls(controls)
    if CHANCE_CONTROL in failed:
        return "control_failed", [f"Control failed: {CHANCE_CONTROL}."]
    return status_from_readings(readings[:2], config.rule, failed=failed)


def _remarks(net: dict[str, Any] | None, run: dict[str, Any]) -> list[str]:
    """Notes: how much was restored, by which edit, and whether the model resists."""
    remarks = []
    if net is None:
        remarks.append(
            "The candidate lost too few answers for a restoration rate to have a meaning."
        )
    else:
        low, high = net["interval"]
        remarks.append(
            f"Steering restores {net['rate']:.0%} of the lost answers, "
            f"{net['net']:.0%} net of the worst control ({net['worst_control']}; 95 % "
            f"interval {low:.0%} to {high:.0%})."
        )
    used = {(c["route"], c["site"]) for c in run["choices"] if c["route"]}
    for method, site in sorted(used):
        remarks.append(f"Chosen on the other half: {method}, at {site}.")
    text, unsteered = (run["generation"][role] for role in ("steered", "original"))
    resisted = text["taken_back"] - unsteered["taken_back"]
    if text["said"] > 0 and resisted >= MIN_RESISTANCE:
        remarks.append(
            f"Steering resistance: {text['taken_back']:.0%} of restored answers are "
            "taken back within a few tokens (in the original, unsteered, "
            f"{unsteered['taken_back']:.0%})."
        )
    return remarks
