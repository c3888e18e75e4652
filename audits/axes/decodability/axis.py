"""Decodability axis: can a linear probe still read what was forgotten?

Text: probes are fitted on retain entities and evaluated on forgotten ones, so no probe has seen
a forgotten answer. Two probes read the candidate: one refitted on its own states, and the
original's, unchanged.

Images: probes of one class (``audits.axes.decodability.image_probes``). One class is one
direction, however many images there are: a model with a different representation basis puts
them on either side of it by chance. So the original's probe counts only at sites where its
probes of the retain classes still read those classes in the candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from audits.axes.base import (
    Axis,
    AxisForm,
    AxisSpec,
    JudgementContext,
    MetricSpec,
    Unmeasured,
    readings,
)
from audits.axes.decodability.cost import cost
from audits.axes.decodability.image_probes import (
    OriginalProbes,
    all_finite,
    fit_original_probes,
    read_set_states,
    score_original_probes,
    score_refitted_probes,
    score_retained_classes,
)
from audits.axes.decodability.text_probes import (
    ProbingData,
    choose_penalty,
    fit_probes,
    fit_shuffled_probes,
    read_states,
    shuffle_rngs,
)
from audits.axes.decodability.text_scores import (
    Tables,
    TextScores,
    Wording,
    judge_text,
    original_power,
    score_roles,
    text_scores,
)
from audits.axes.judgement import (
    failed_controls,
    informative_columns,
    planted_control,
    power_control,
    status_from_readings,
    status_with_controls,
    unpaired_test,
)
from audits.core.config import AuditConfig, Rule
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import MIN_DIFFERENCE, EvaluationSets, late_sites
from evidence.hypothesis_tests import (
    MaxTest,
    paired_max_test,
    readings_above_floor,
    unpaired_max_test,
)
from evidence.intervals import average_models
from evidence.progress import Progress
from evidence.results import AxisResult, Control, ControlId, Reading, Status
from evidence.seeds import numpy_rng
from evidence.typed_json import FloatArray, Json

NAME = "decodability"
REFITTED = MetricSpec(
    "refitted_probe",
    "refitted probe",
    stream="refitted probe",
    trace="a refitted probe still reads {short} but the original's own does not",
)
UNCHANGED = MetricSpec(
    "original_probe",
    "original's own probe",
    stream="original's own probe",
    finding="The original's own probe, unchanged, still reads {it} in the candidate at "
    "{where}: {value:.2f}",
    names_sites=True,
)
WORDING = Wording(
    unread="No probe read the forget set well enough in the original itself.",
    shuffled="probes fitted on shuffled answers read nothing",
    retain="held-out retain entities are read in the candidate",
)
MIN_BASIS_KEPT = 0.5
"""Minimum share of the original's excess on retain classes for a shared basis."""


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of probes of one class on the states of every model.

    Attributes:
        scores: By metric, role and part; columns are sites.
        retained: Role to (site,) mean score of the original's probes of retain classes.
        shuffled: (site,) the original's score by probes of shuffled classes.
        random: (site,) the same by random directions.
    """

    scores: RoleScores
    retained: dict[Role, FloatArray]
    shuffled: FloatArray
    random: FloatArray


@dataclass(frozen=True, eq=False)
class Measurement:
    """Scores of the probes, by modality."""

    read: TextScores | ImageScores


# Text


def measure_text(ctx: AuditContext[TextSets]) -> Measurement | Unmeasured:
    """Read the states of every model, and score probes on them."""
    probing = read_states(ctx)
    if isinstance(probing, Unmeasured):
        return probing
    if not probing.tasks:
        return Unmeasured(probing.notes)
    return Measurement(score_probes(probing, ctx.config, ctx.progress))


def score_probes(probing: ProbingData, config: AuditConfig, progress: Progress) -> TextScores:
    """Fit and score every role's own probes and the original's."""
    penalty, own = choose_penalty(probing, progress)
    probes = {
        role: own if role == Role.ORIGINAL else fit_probes(probing, role, penalty, progress)
        for role in probing.states
    }
    rngs = shuffle_rngs(NAME, config.seed)
    shuffled = fit_shuffled_probes(probing, Role.ORIGINAL, penalty, rngs, progress)
    refitted = score_roles(probing, probes)
    unchanged = score_roles(
        probing, {role: own for role in probes if role not in (Role.ORIGINAL, Role.PLANTED)}
    )
    tables = {
        REFITTED.id: refitted,
        UNCHANGED.id: {Role.ORIGINAL: refitted[Role.ORIGINAL], **unchanged},
    }
    chosen: dict[str, float | str] = {"penalty": penalty}
    return text_scores(NAME, probing, tables, own, shuffled, chosen, config, probing.notes)


def _embedding_control(scores: RoleScores, config: AuditConfig) -> list[Control]:
    """The words alone, before any layer, tell nothing; no control without such a site."""
    embedding = np.array([site == "embed" for site in scores.columns])
    if not embedding.any():
        return []
    test = unpaired_test(
        scores.values(REFITTED.id, Role.CANDIDATE),
        scores.values(REFITTED.id, Role.CANDIDATE, Part.NEVER_TAUGHT),
        config,
        NAME,
        "embedding",
        mask=embedding,
    )
    # Half the level for each of two such controls, and half of that for each side.
    smaller_p, level = min(test.p_value, test.p_below), config.rule.alpha / 2 / 2
    return [
        Control(
            ControlId.EMBEDDING,
            "the embedding layer is at the floor",
            smaller_p,
            f"p >= {level} on both sides",
            smaller_p >= level,
            kind="p_value",
        )
    ]


# Images


def measure_images(ctx: AuditContext[EvaluationSets]) -> Measurement | Unmeasured:
    """Fit the original's probes of the class, and score them and refitted ones on every model."""
    sets, seed = ctx.sets, ctx.config.seed
    sites: list[str] = []
    probes: OriginalProbes | None = None
    tables: dict[str, Tables] = {UNCHANGED.id: {}, REFITTED.id: {}}
    retained = {}
    for role in ctx.models:  # the original first
        with ctx.reading(role) as model:
            sites = sites or late_sites(model)
            states = read_set_states(model, sets, sites)
        if not all_finite(states):
            return Unmeasured((f"states of {role} are not finite",), "error")
        probes = probes or fit_original_probes(states, sets, seed)
        tables[UNCHANGED.id][role] = score_original_probes(probes, states, sets)
        tables[REFITTED.id][role] = score_refitted_probes(states, sets, seed)
        retained[role] = score_retained_classes(probes, states, sets)
    assert probes is not None  # there is an original
    scores = RoleScores(tuple(sites), tables)
    return Measurement(ImageScores(scores, retained, probes.shuffled, probes.random))


# Judgement


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the probes' scores with the floors."""
    read, form = measured.read, SPEC.form(ctx.modality)
    if isinstance(read, ImageScores):
        return _judge_images(read, form, ctx)
    controls = _embedding_control(read.scores, ctx.config)
    return judge_text(NAME, form, read, WORDING, ctx, controls=controls)


def _judge_images(measured: ImageScores, form: AxisForm, ctx: JudgementContext) -> AxisResult:
    """As ``judge``: the sites that count differ by metric, and so do the floors."""
    scores, config = measured.scores, ctx.config
    power = original_power(NAME, scores, UNCHANGED.id, config)
    decodable = informative_columns(power, ctx.rule)
    basis = {role: basis_kept(measured.retained, role) for role in measured.retained}
    mask = decodable & (basis[Role.CANDIDATE] >= MIN_BASIS_KEPT)
    references = [role for role in basis if role.is_reference]
    # A reference with a different representation basis gives no floor.
    same_basis = [role for role in references if (basis[role][mask] >= MIN_BASIS_KEPT).all()]
    found: list[Reading] = []
    notes: list[str] = []
    if mask.any():
        found += readings(NAME, form.metrics[:1], scores, config, mask, same_basis)
        if len(same_basis) < len(references):
            notes.append(
                f"{len(references) - len(same_basis)} of {len(references)} references use a "
                "different representation basis, in which the original's probe reads nothing; "
                "they are no floor for it."
            )
    elif decodable.any():
        notes.append(
            "The candidate uses a different representation basis: the original's probes of the "
            "retain classes do not read them in it, so its probe of the class says nothing."
        )
    refitted, refitted_notes = _refitted(scores, config)
    found = sorted([*found, *refitted], key=lambda reading: not reading.primary)
    controls = _image_controls(measured, power, decodable, ctx)
    details: dict[str, Json] = {
        "sites": list(scores.columns),
        "used": [site for site, used in zip(scores.columns, mask, strict=True) if used],
        "basis_kept": {role: np.round(x, 4).tolist() for role, x in basis.items()},
        "original_probe_by_site": _means(scores.tables[UNCHANGED.id]),
        "refitted_probe_by_site": _means(scores.tables[REFITTED.id]),
    }
    return form.result(
        NAME,
        found,
        controls,
        ctx,
        n_entities=len(scores.values(UNCHANGED.id, Role.ORIGINAL).entities),
        details=details,
        notes=(*notes, *refitted_notes),
    )


def basis_kept(retained: Mapping[Role, np.ndarray], role: Role) -> np.ndarray:
    """(site,) share of the original's excess on retain classes that a model keeps."""
    return (retained[role] - 0.5) / np.maximum(retained[Role.ORIGINAL] - 0.5, 1e-9)


def _refitted(scores: RoleScores, config: AuditConfig) -> tuple[list[Reading], list[str]]:
    """Readings of the refitted probe, against the floors at which it has power."""
    ceiling = scores.values(REFITTED.id, Role.ORIGINAL)
    references = [role for role in scores.roles(REFITTED.id) if role.is_reference]
    never_taught = scores.values(REFITTED.id, Role.ORIGINAL, Part.NEVER_TAUGHT)
    of_references = scores.references(REFITTED.id)
    first = average_models(of_references) if of_references else never_taught
    found: list[Reading] = []
    for floors in [references, []] if references else [[]]:
        floor = first if floors else never_taught
        test = (paired_max_test if floors else unpaired_max_test)(
            ceiling.values,
            floor.values,
            numpy_rng(config.seed, NAME, REFITTED.stream, "references" if floors else "never"),
            config.budget.permutations,
        )
        mask = informative_columns(test, config.rule)
        if mask.any():
            reading = readings(NAME, [REFITTED], scores, config, mask, floors)[0]
            found.append(replace(reading, primary=floors == references))
    if found and found[0].primary:
        return found, []
    return [], [
        f"A refitted probe says nothing here: it reads {ceiling.mean.max():.2f} in the "
        f"original and {first.mean.max():.2f} where nothing was known. Features that separate "
        "the other classes separate an unseen one as well."
    ]


def _image_controls(
    measured: ImageScores, power: MaxTest, decodable: np.ndarray, ctx: JudgementContext
) -> list[Control]:
    """Controls: power, shuffled labels, random directions, the planted suppression."""
    scores, alpha = measured.scores, ctx.rule.alpha
    name = "the original is read beyond never-taught images"
    controls = [power_control(name, power, alpha, bool(decodable.any()))]
    excess = np.maximum(scores.values(UNCHANGED.id, Role.ORIGINAL).mean - 0.5, 1e-9)
    for id, name, by_site in (
        (ControlId.SHUFFLED, "probes fitted on shuffled classes read nothing", measured.shuffled),
        (ControlId.RANDOM_EDIT, "random directions read nothing", measured.random),
    ):
        share = float(((by_site - 0.5) / excess).max())
        expected = "below half of the original's excess"
        controls.append(Control(id, name, share, expected, share < 0.5, kind="ratio"))
    if Role.PLANTED in measured.retained and decodable.any():
        test = unpaired_test(
            scores.values(UNCHANGED.id, Role.PLANTED),
            scores.values(UNCHANGED.id, Role.PLANTED, Part.NEVER_TAUGHT),
            ctx.config,
            NAME,
            "planted",
            mask=decodable,
        )
        controls.append(planted_control(test.p_value, alpha))
    return controls


def _means(tables: Mapping[Role, Mapping[Part, ScoreTable]]) -> dict[str, Json]:
    """Mean scores by role, part and site, for the report."""
    shown = {Part.FORGET: "forget", Part.NEVER_TAUGHT: "never"}
    return {
        role: {
            name: np.round(np.mean(of_role[part].values, axis=0), 4).tolist()
            for part, name in shown.items()
        }
        for role, of_role in tables.items()
    }


def image_status(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    Only the refitted probe can show absence. The original's probe is a single direction, and no
    floor says where that direction lies in a model that never knew the class.
    """
    primary = {reading.metric: reading for reading in readings if reading.primary}
    if failed_controls(controls):
        return status_with_controls(list(primary.values()), controls, rule)
    if readings_above_floor(primary, rule.recovery, rule.min_residual):
        return "retained", []
    if REFITTED.id not in primary:
        return "no_power", [
            "The original's probe can show that the class is there, not that it is "
            "gone; that takes a refitted one and a model retrained without the class."
        ]
    return status_from_readings([primary[REFITTED.id]], rule)


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Can a linear probe of the hidden states still read the forgotten answers?",
            "accuracy",
            (REFITTED, UNCHANGED),
        ),
        "images": AxisForm(
            "Can a linear probe of the hidden states still read the forgotten class?",
            "other classes' images outranked (chance 0.5)",
            (replace(UNCHANGED, min_residual=lambda rule: MIN_DIFFERENCE), REFITTED),
            status_of=image_status,
        ),
    },
    work=0.3,
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge, cost)
