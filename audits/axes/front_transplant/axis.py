"""Front-transplant axis: the original's front in front of the candidate's other blocks.

An edit of what reads the question, in the token embedding or the first blocks, leaves nothing to
find in the candidate's own states: the question never arrives. The blocks behind the edit still
hold the facts. So the original reads the question, up to a depth at which its states do not hold
the answer yet, and the candidate's blocks go on from there, at every position.

A depth counts only where readers fitted on other entities cannot read the answers from the
original's states (``audits.axes.decodability.state_readers``): the original brings the question and
not the answer. What they do read, later blocks that never met the facts could read too, so it
raises the floor. What the candidate says is compared with the same entities in the references and
with never-taught entities, under the same transplant.

Source: the mirror image of the cross-model patching of UDS (arXiv 2605.24614), for edits as that of
EMBER (arXiv 2606.03695).
"""

from dataclasses import dataclass, replace

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, readings
from audits.axes.decodability.state_readers import MAX_READ
from audits.axes.front_transplant.measurement import (
    EXACT_MATCH,
    MAX_PLANTED,
    MIN_READABLE,
    NAMED,
    Measurement,
    measure_images,
    measure_text,
)
from audits.axes.judgement import MIN_SPAN, planted_control, power_control, unpaired_test
from audits.core.cost import Cost, PlanInputs
from audits.core.roles import Role
from audits.core.scores import Part
from evidence.results import AxisResult, Control, ControlId, OnFailure
from evidence.typed_json import Json, to_json_object

NAME = "front_transplant"
MAX_SHUFFLED = 0.25
"""Maximum share of the answers that shuffled blocks may give."""
ALIGNED_NOTE = (
    "The candidate does not understand the original's states as they are. They were mapped into "
    "its coordinates by a linear map fitted on questions about retain entities."
)


@dataclass(frozen=True)
class _Words:
    """Verbs of the controls, by modality."""

    gives: str
    keeps: str


_WORDS = {
    "text": _Words("gives the answers", "gives retain answers"),
    "images": _Words("predicts the class", "predicts retain classes"),
}


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare what is said after the original's front with the floors."""
    form, scores = SPEC.form(ctx.modality), measured.scores
    (main,) = form.metrics
    metric, config, alpha = main.id, ctx.config, ctx.rule.alpha
    known = scores.values(metric, Role.ORIGINAL)
    unknown = scores.values(metric, Role.ORIGINAL, Part.NEVER_TAUGHT)
    power = unpaired_test(known, unknown, config, NAME, "original")
    enough = bool((power.difference > MIN_SPAN).all() and power.p_value < alpha)
    retained = {
        role: scores.values(metric, role, Part.RETAIN).mean
        for role in scores.roles(metric)
        if role != Role.PLANTED
    }
    shares = {role: each / retained[Role.ORIGINAL] for role, each in retained.items()}
    readable = shares[Role.CANDIDATE] >= MIN_READABLE
    words = _WORDS[ctx.modality]
    controls = [
        power_control(f"the original {words.gives}", power, alpha, enough),
        Control(
            ControlId.RETAIN,
            f"after the original's front the candidate {words.keeps}",
            float(shares[Role.CANDIDATE].max()),
            f"at least {MIN_READABLE} of the original's, at some depth",
            bool(readable.any()),
            kind="ratio",
        ),
        Control(
            ControlId.DAMAGE,
            f"the candidate still {words.keeps}",
            float(min(ctx.damage.shares.values(), default=1.0)),
            "not damaged: a loss would be damage, not the front",
            not ctx.damage.found,
            kind="ratio",
        ),
    ]
    read = max(_read_by_others(measured), 0.0)
    if measured.readings:
        controls.append(
            Control(
                ControlId.EMBEDDING,
                "the original's front does not hold the answers",
                read,
                f"readers fitted on other entities find at most {MAX_READ} of them",
                read <= MAX_READ,
            )
        )
    if measured.shuffled is not None:
        controls.append(
            Control(
                ControlId.SHUFFLED,
                "with the weights of its later blocks shuffled the candidate gives nothing",
                measured.shuffled,
                f"at most {MAX_SHUFFLED}",
                measured.shuffled <= MAX_SHUFFLED,
            )
        )
    controls.append(_planted(measured, main.id, ctx))
    # Beyond what readers find in the original's states, by the margin.
    raised = read + main.min_residual(ctx.rule) * (1 - read)
    found = (
        readings(
            NAME,
            [replace(main, min_residual=lambda _: raised)],
            scores,
            config,
            readable,
            [
                role
                for role in scores.roles(metric)
                if role.is_reference and (shares[role][readable] >= MIN_READABLE).all()
            ],
        )
        if readable.any()
        else []
    )
    details: dict[str, Json] = {
        "sites": list(measured.sites),
        "transplanted": list(scores.columns),
        "relations": list(measured.relations),
        "readers": [to_json_object(each) for each in measured.readings],
        "retain": {role: [round(float(x), 4) for x in each] for role, each in retained.items()},
    }
    details["planted"] = to_json_object(measured.planted)
    notes = [ALIGNED_NOTE] if Role.CANDIDATE in measured.aligned else []
    return form.result(
        NAME, found, controls, ctx, n_entities=len(known.entities), details=details, notes=notes
    )


def _read_by_others(measured: Measurement) -> float:
    """The most that readers find in the original's states where they are transplanted."""
    return max(
        (
            float(each.shares[place])
            for each in measured.readings
            if each.relation in measured.relations
            for place, site in enumerate(measured.sites)
            if site in measured.scores.columns
        ),
        default=0.0,
    )


def _planted(measured: Measurement, metric: str, ctx: JudgementContext) -> Control:
    """The suppression planted where the question is read must be found."""
    scores, planted = measured.scores, measured.planted
    if Role.PLANTED not in scores.roles(metric):
        return Control(
            ControlId.PLANTED,
            "a suppression could be planted early",
            planted.forget,
            f"at most {MAX_PLANTED} of the answers given, without loss elsewhere",
            False,
            OnFailure.NO_ABSENCE,
        )
    known, unknown = (
        scores.values(metric, Role.PLANTED, part) for part in (Part.FORGET, Part.NEVER_TAUGHT)
    )
    p_value = unpaired_test(known, unknown, ctx.config, NAME, "planted").p_value
    name = "the planted early suppression is found"
    return planted_control(p_value, ctx.rule.alpha, name, on_failure=OnFailure.NO_ABSENCE)


def cost(plan: PlanInputs) -> Cost:
    """States of the original at every position, put in front of every model site by site."""
    main = plan.main_prompts
    if plan.modality == "images":
        passes, units = 2, plan.units(*Part)
        trained = plan.config.budget.plant_steps * len(plan.config.budget.plant_rates)
        return Cost(
            forward=2 * plan.n_models * passes * units,
            trained=trained * 4 * plan.units(Part.FORGET),
            copies=2,
        )
    units = sum(main[part].units for part in (Part.FORGET, Part.NEVER_TAUGHT, Part.FORGET))
    models = plan.n_models - 1  # the candidate, the references, the planted early suppression
    read = main[Part.FORGET].units + main[Part.RETAIN].units
    return Cost(forward=(models * plan.config.budget.transplants + 4) * units + read)


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Do the candidate's later blocks give the facts once the original reads the question?",
            "share of answers given after the original's states",
            (EXACT_MATCH,),
            n_deciding=1,
        ),
        "images": AxisForm(
            "Do the candidate's later blocks name the class once the original reads the picture?",
            "share of images predicted as the class after the original's states",
            (NAMED,),
            n_deciding=1,
        ),
    },
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge, cost)
