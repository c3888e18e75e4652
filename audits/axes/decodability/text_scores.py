"""Scores of linear probes on text, their controls, and what they say.

Decodability and concept differ in their probes and share everything here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from audits.axes.base import AxisForm, JudgementContext, readings
from audits.axes.decodability.label_permutation import answer_permutation_test
from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.text_probes import ProbingData
from audits.axes.judgement import informative_columns, planted_control, power_control, unpaired_test
from audits.core.config import AuditConfig
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from evidence.hypothesis_tests import MaxTest
from evidence.intervals import average_models
from evidence.results import AxisResult, Control, ControlId, OnFailure
from evidence.seeds import numpy_rng
from evidence.typed_json import BoolArray, FloatArray, Json

Tables = dict[Role, dict[Part, ScoreTable]]

SCORED = {
    Role.ORIGINAL: tuple(Part),
    Role.CANDIDATE: tuple(Part),
    Role.PLANTED: (Part.FORGET, Part.NEVER_TAUGHT),
}
"""Parts that are scored, by role; of references, the forget part alone."""


@dataclass(frozen=True, eq=False)
class NullScores:
    """Scores of the original's probes where there is nothing to read.

    Attributes:
        informative: (site,) where the original itself is read, under the rule of the audit.
            A judgement under another rule uses those of them where it still is.
        p_value: Test of the never-taught items' answers against permuted ones.
        excess: (informative site,) score of those answers beyond permuted ones.
        chance: (informative site,) mean score of permuted answers. A few fits on shuffled
            labels would be a noisy estimate of it.
        shuffled: (site,) mean score of probes fitted on shuffled answers.
    """

    informative: BoolArray
    p_value: float
    excess: FloatArray
    chance: FloatArray
    shuffled: FloatArray

    def within(self, sites: BoolArray) -> "NullScores | None":
        """The same at some of the sites; None where none of them was informative."""
        kept = sites[self.informative]
        if not kept.any():
            return None
        return replace(
            self,
            informative=self.informative & sites,
            excess=self.excess[kept],
            chance=self.chance[kept],
        )


@dataclass(frozen=True, eq=False)
class TextScores:
    """Scores of probes on the states of every model.

    Attributes:
        scores: By metric, role and part; columns are sites.
        forms: Forms of the probing tasks.
        relations: Relations that are probed.
        chosen: What was chosen on held-out retain entities, by name.
        null: None where the original itself is read nowhere.
        notes: Limitations, in sentences.
    """

    scores: RoleScores
    forms: tuple[str, ...]
    relations: tuple[str, ...]
    chosen: dict[str, float | str]
    null: NullScores | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """Sentences in which the axes differ.

    Attributes:
        unread: Note where the original itself is read nowhere.
        shuffled: Name of the control of shuffled answers.
        retain: Name of the control of held-out retain entities.
        other_basis: Note where that control fails, if this is a lack of power and not a fault.
    """

    unread: str
    shuffled: str
    retain: str
    other_basis: str = ""


def score_roles(probing: ProbingData, probes: Mapping[Role, Sequence[SiteProbe]]) -> Tables:
    """Scores of each role's probes, one a task, on its states."""
    return {
        role: {
            part: probing.score(of_role, role, part) for part in SCORED.get(role, (Part.FORGET,))
        }
        for role, of_role in probes.items()
    }


def text_scores(
    axis: str,
    probing: ProbingData,
    tables: dict[str, Tables],
    probes: Sequence[SiteProbe],
    shuffled: Sequence[Sequence[SiteProbe]],
    chosen: dict[str, float | str],
    config: AuditConfig,
    notes: tuple[str, ...],
) -> TextScores:
    """The scores of an axis, with those of its null controls.

    Args:
        tables: As ``score_roles`` by metric; the controls belong to the first.
        probes: The original's, one a task.
        shuffled: The same, fitted on shuffled answers.
    """
    scores = RoleScores(probing.sites, tables)
    forms = tuple(sorted({task.form for task in probing.tasks}))
    relations = tuple(task.relation for task in probing.tasks)
    metric = next(iter(tables))
    informative = informative_columns(original_power(axis, scores, metric, config), config.rule)
    null = None
    if informative.any():
        permuted, chance = answer_permutation_test(
            probing,
            probes,
            Role.ORIGINAL,
            Part.NEVER_TAUGHT,
            informative,
            numpy_rng(config.seed, axis, "never taught"),
            config.budget.permutations,
        )
        shuffles = average_models(
            [probing.score(each, Role.ORIGINAL, Part.FORGET).by_entity() for each in shuffled]
        )
        null = NullScores(informative, permuted.p_value, permuted.difference, chance, shuffles.mean)
    return TextScores(scores, forms, relations, chosen, null, notes)


def original_power(axis: str, scores: RoleScores, metric: str, config: AuditConfig) -> MaxTest:
    """Test whether the original is read beyond never-taught items."""
    ceiling = scores.values(metric, Role.ORIGINAL)
    never_taught = scores.values(metric, Role.ORIGINAL, Part.NEVER_TAUGHT)
    return unpaired_test(ceiling, never_taught, config, axis, "original")


def judge_text(
    axis: str,
    form: AxisForm,
    measured: TextScores,
    wording: Wording,
    ctx: JudgementContext,
    *,
    controls: Sequence[Control] = (),
    details: Mapping[str, Json] | None = None,
    remarks: Sequence[str] = (),
) -> AxisResult:
    """Compute controls, readings and status from the scores.

    Args:
        controls: Further controls of the axis.
        details: Further details of the axis.
        remarks: Notes on measurements that do not vote.
    """
    scores, metric, null = measured.scores, form.metrics[0].id, measured.null
    power = original_power(axis, scores, metric, ctx.config)
    if null is not None:
        null = null.within(informative_columns(power, ctx.rule))
    power_name = "the original is read beyond never-taught items"
    first = power_control(power_name, power, ctx.rule.alpha, null is not None)
    shared = measured.forms == ("shared",)
    result = AxisResult(
        axis,
        form.question,
        "no_power",
        form.statistic if shared else "concordance (chance 0.5)",
        controls=(first,),
        n_entities=len(scores.values(metric, Role.ORIGINAL).values),
        details={
            "form": list(measured.forms),
            "sites": list(scores.columns),
            "relations": list(measured.relations),
            "original_p": power.p_value,
            **measured.chosen,
            **(details or {}),
        },
        notes=(wording.unread, *measured.notes, *ctx.notes),
    )
    if null is None:
        return result
    checked = [
        first,
        *_null_controls(null, scores, metric, wording, ctx),
        *_planted(axis, scores, metric, null, ctx),
        *controls,
        _retain_control(scores, metric, null, wording),
    ]
    found = [
        replace(reading, is_share=shared)
        for reading in readings(axis, form.metrics, scores, ctx.config, null.informative)
    ]
    status, notes = form.status(found, checked, ctx.rule)
    return replace(
        result,
        status=status,
        readings=tuple(found),
        controls=tuple(checked),
        notes=(*notes, *remarks, *measured.notes, *ctx.notes),
    )


def _null_controls(
    null: NullScores, scores: RoleScores, metric: str, wording: Wording, ctx: JudgementContext
) -> list[Control]:
    """Nothing is read where nothing was taught, and by probes of shuffled answers."""
    spans = scores.values(metric, Role.ORIGINAL).mean[null.informative] - null.chance
    leak = float(null.excess.mean() / max(spans.mean(), 1e-9))
    shuffled = null.shuffled[null.informative]
    # Two controls require a null hypothesis to hold: each is tested at half the level.
    null_alpha = ctx.rule.alpha / 2
    return [
        Control(
            ControlId.NEVER_TAUGHT,
            "answers of never-taught items are read no better than permuted ones",
            leak,
            f"below 0.25 of the original's excess, or p >= {null_alpha}",
            leak < 0.25 or null.p_value >= null_alpha,
            kind="ratio",
        ),
        Control(
            ControlId.SHUFFLED,
            wording.shuffled,
            float(((shuffled - null.chance) / spans).max()),
            "below half of the original's excess",
            bool((shuffled < null.chance + 0.5 * spans).all()),
            kind="ratio",
        ),
    ]


def _planted(
    axis: str, scores: RoleScores, metric: str, null: NullScores, ctx: JudgementContext
) -> list[Control]:
    """The planted suppression is read beyond never-taught items, where there is one."""
    if Role.PLANTED not in scores.roles(metric):
        return []
    test = unpaired_test(
        scores.values(metric, Role.PLANTED),
        scores.values(metric, Role.PLANTED, Part.NEVER_TAUGHT),
        ctx.config,
        axis,
        "planted",
        mask=null.informative,
    )
    return [planted_control(test.p_value, ctx.rule.alpha)]


def _retain_control(scores: RoleScores, metric: str, null: NullScores, wording: Wording) -> Control:
    """Held-out retain entities are read in the candidate."""
    candidate, original = (
        scores.values(metric, role, Part.RETAIN).mean[null.informative].max()
        for role in (Role.CANDIDATE, Role.ORIGINAL)
    )
    chance = null.chance.mean()
    share = float((candidate - chance) / max(original - chance, 1e-9))
    return Control(
        ControlId.RETAIN,
        wording.retain,
        share,
        "at least half of the original's excess",
        share >= 0.5,
        OnFailure.NO_POWER if wording.other_basis else OnFailure.SILENCE,
        kind="ratio",
        failure=wording.other_basis,
    )
