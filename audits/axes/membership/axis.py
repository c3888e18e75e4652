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

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from audits.axes.base import (
    Axis,
    AxisForm,
    AxisSpec,
    JudgementContext,
    MetricSpec,
    Unmeasured,
    readings,
)
from audits.axes.judgement import (
    MIN_SPAN,
    informative_columns,
    planted_control,
    significance_control,
)
from audits.axes.membership.scores import (
    NAME,
    MembershipScores,
    MembershipSets,
    States,
    capture_states,
    score_membership,
    select_sets,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import TextSets, make_never_taught, within_budget
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from capture.activations.store import stored_bytes
from capture.data.tokenization import encode
from evidence.errors import InputError
from evidence.hypothesis_tests import MaxTest
from evidence.progress import Progress, as_progress
from evidence.results import AxisResult, Control, ControlId, OnFailure, Reading
from evidence.typed_json import FloatArray, Json
from probes.estimators.kernel_smoothers import FAMILIES

AUC = MetricSpec(
    "auc",
    "refitted classifier",
    stream="refitted reader",
    trace="its states still separate forgotten items from never-taught ones, whatever it knows "
    "of them",
)
COMPARED = (Part.FORGET, Part.NEVER_TAUGHT)
SHUFFLES = 20
# Two controls require a null hypothesis, two-sided: together they fail by chance at half alpha.
NULL_ALPHA_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Measurement:
    """Scores of every model by one family of classifiers.

    Attributes:
        sites: Where states were captured.
        family: The family, chosen on held-out retain entities of the original.
        entities: Part to (entity,) names, "forget" and "never_taught".
        scores: Scores by role.
        shuffled: (label vector, site) AUC of the original's forgotten over never-taught entities,
            by classifiers fitted on exchanged labels.
        names: Scores of the candidate's names, averaged at the embedding, the only site; None
            where there is no embedding.
    """

    sites: tuple[str, ...]
    family: str
    entities: dict[Part, tuple[str, ...]]
    scores: dict[Role, MembershipScores]
    shuffled: FloatArray
    names: MembershipScores | None = None


def measure_text(ctx: AuditContext[TextSets]) -> Measurement | Unmeasured:
    """Choose the entities to compare, and score the states of every model."""
    items, config = ctx.sets, ctx.config
    try:
        sets = select_sets(
            items.forget,
            items.retain,
            items.never_taught,
            config.budget.prompts_per_item,
            config.seed,
        )
    except InputError as error:
        # Only this axis needs invented counterparts of the retain entities.
        return Unmeasured((str(error),))
    states = {}
    for role, audited in ctx.models.items():
        with ctx.reading(role) as model:
            states[role] = capture_states(
                model, audited, ctx.tokenizer, sets, ctx.store, ctx.progress
            )
    return measure_states(states, sets, config.seed, ctx.progress)


def measure_states(
    states: Mapping[Role, States], sets: MembershipSets, seed: int, progress: Progress
) -> Measurement | Unmeasured:
    """Choose a family of classifiers on the original, and score every model with it."""
    broken = [role for role, each in states.items() if not np.isfinite(each.last).all()]
    if broken:
        return Unmeasured((f"hidden states of {', '.join(broken)} are not finite",), "error")
    original, names = states[Role.ORIGINAL], states[Role.CANDIDATE].names
    held_out = {}
    with as_progress(progress).task("membership", len(FAMILIES) + len(states)) as advance:
        for family in FAMILIES:
            (scored,) = score_membership(original.last, sets, family, seed)
            held_out[family] = scored.auc("check", "check_invented").mean()
            advance(1)
        # Chosen on held-out entities that are in neither the fit nor the test.
        chosen = max(FAMILIES, key=lambda family: held_out[family])
        scores = {}
        shuffled: list[MembershipScores] = []
        for role, each in states.items():
            shuffles = SHUFFLES if role == Role.ORIGINAL else 0
            scores[role], *more = score_membership(each.last, sets, chosen, seed, shuffles)
            shuffled += more
            advance(1)
    return Measurement(
        original.sites,
        chosen,
        {part: tuple(dict.fromkeys(sets.questions[part].entities)) for part in COMPARED},
        scores,
        np.stack([each.auc(*COMPARED) for each in shuffled]),
        None if names is None else score_membership(names, sets, chosen, seed)[0],
    )


def cost(plan: PlanInputs) -> Cost:
    """The states of every compared name, stored for every model."""
    inputs, config = plan.inputs, plan.config
    retain = within_budget(inputs.retain, config)
    never_taught, _ = make_never_taught(inputs.forget, retain, inputs.never_taught, config)
    try:
        n_prompts = config.budget.prompts_per_item
        sets = select_sets(inputs.forget, retain, never_taught, n_prompts, config.seed)
    except InputError:  # the axis will report this and not run
        return Cost()
    rows, models = len(sets.prompts), plan.n_models
    tokens = sum(map(len, encode(inputs.original.tokenizer, sets.prompts).ids))
    width, sites = plan.size.d_model or 0, (plan.size.n_layers or 0) + 1
    # Names at the embedding are stored beside the states of every site.
    disk = stored_bytes(rows, width, sites) + stored_bytes(rows, width, 1)
    return Cost(captured_rows=models * rows, captured=models * tokens, disk=models * disk)


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the separation of forgotten from never-taught entities with chance."""
    form, every = SPEC.form(ctx.modality), np.ones(len(measured.sites), dtype=bool)
    power = measured.scores[Role.ORIGINAL].test(*COMPARED, every, ctx.config)
    mask = informative_columns(power, ctx.rule)
    controls = [
        Control(
            ControlId.POWER,
            "the original separates them",
            power.p_value,
            f"p < {ctx.rule.alpha} and at least {MIN_SPAN} above chance",
            bool(mask.any()),
            kind="p_value",
        )
    ]
    found: list[Reading] = []
    if mask.any():
        controls += _controls(measured, mask, ctx.config)
        found = _readings(measured, mask, ctx.config)
    details: dict[str, Json] = {
        "classifier": measured.family,
        "sites": measured.sites,
        "original_p": power.p_value,
        "auc": _rounded_auc(measured, *COMPARED),
        "auc_of_retain": _rounded_auc(measured, "check", "check_invented"),
    }
    return form.result(
        NAME,
        found,
        controls,
        ctx,
        n_entities=len(measured.entities[Part.FORGET]),
        details=details,
        unread="The original itself does not separate them.",
    )


def _rounded_auc(measured: Measurement, part: str, other: str) -> Json:
    """Role to (site,) AUC."""
    return {
        role: np.round(each.auc(part, other), 6).tolist() for role, each in measured.scores.items()
    }


def _controls(measured: Measurement, mask: NDArray[np.bool_], config: AuditConfig) -> list[Control]:
    """Controls: shuffled labels, invented against never-taught, retain, planted, names alone."""
    scores, alpha = measured.scores, config.rule.alpha
    candidate = scores[Role.CANDIDATE]
    lead = scores[Role.ORIGINAL].auc(*COMPARED)[mask] - 0.5
    shuffled = np.mean([auc[mask] - 0.5 for auc in measured.shuffled], axis=0)
    controls = [
        Control(
            ControlId.SHUFFLED,
            "classifiers fitted on shuffled labels read nothing",
            float((shuffled / lead).max()),
            "below half of the original's excess",
            bool((shuffled < 0.5 * lead).all()),
            kind="ratio",
        ),
        _null_control(
            ControlId.NEVER_TAUGHT,
            "never-taught entities are not separated from other invented ones",
            candidate.test("check_invented", "never_taught", mask, config),
            alpha,
        ),
        # A candidate whose retain entities are not recognized either may lack the signature
        # altogether: a null result is then no evidence, but a finding still is.
        significance_control(
            ControlId.RETAIN,
            "held-out retain entities are separated from invented ones in the candidate",
            candidate.test("check", "check_invented", mask, config).p_value,
            alpha,
            OnFailure.NO_ABSENCE,
        ),
    ]
    if Role.PLANTED in scores:
        planted = scores[Role.PLANTED].test(*COMPARED, mask, config)
        controls.append(planted_control(planted.p_value, alpha))
    if measured.names is not None:
        # For surface form: a bag of the name's token embeddings must not suffice.
        controls.append(
            _null_control(
                ControlId.EMBEDDING,
                "the names alone, averaged at the embedding, do not separate them",
                measured.names.test(*COMPARED, np.ones(1, dtype=bool), config),
                alpha,
            )
        )
    return controls


def _null_control(id: ControlId, name: str, test: MaxTest, alpha: float) -> Control:
    """A two-sided test must find nothing."""
    p, limit = min(1.0, 2 * min(test.p_value, test.p_below)), alpha * NULL_ALPHA_SHARE
    return Control(id, name, p, f"p >= {limit}", p >= limit, kind="p_value")


def _readings(measured: Measurement, mask: NDArray[np.bool_], config: AuditConfig) -> list[Reading]:
    """Against references (if any) and never-taught items."""
    forgotten, never_taught = (measured.entities[part] for part in COMPARED)
    candidate = measured.scores[Role.CANDIDATE]
    # (forgotten entity, site) share of never-taught entities that score lower.
    ranks = {
        role: {Part.FORGET: ScoreTable(forgotten, each.wins(*COMPARED))}
        for role, each in measured.scores.items()
    }
    ranks[Role.CANDIDATE][Part.NEVER_TAUGHT] = ScoreTable(never_taught, _chance(candidate))
    scores = RoleScores(measured.sites, {AUC.id: ranks})
    test = candidate.test(*COMPARED, mask, config)
    p_used = iter(test.p_column.tolist())
    found = []
    for reading in readings(NAME, [AUC], scores, config, mask):
        if reading.floor_kind == "never_taught":
            # A rank depends on the other entities: permute entities first, then rank.
            columns = tuple(
                replace(column, p_value=next(p_used) if column.used else None)
                for column in reading.columns
            )
            reading = replace(
                reading,
                p_value=test.p_value,
                p_below=test.p_below,
                smallest_p=test.smallest_p,
                columns=columns,
            )
        found.append(reading)
    return found


def _chance(scores: MembershipScores) -> FloatArray:
    """(never-taught entity, site) one half, with the spread of these entities' own ranks.

    An AUC varies with the entities of both groups (DeLong 1988, Biometrics 44:837), so the
    interval of its difference from one half must include both.
    """
    share = scores.losses(*COMPARED)
    table = np.clip(0.5 + share.mean(0) - share, 0, 1)
    return np.clip(table + 0.5 - table.mean(0), 0, 1)


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Do the hidden states separate forgotten items from never-taught ones?",
            "AUC (chance 0.5)",
            (AUC,),
        )
    },
    unavailable={"images": "it compares names that occur in a sequence of tokens"},
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text}, judge, cost)
