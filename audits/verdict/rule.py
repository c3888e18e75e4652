"""The decision rule: from axis results to one of five verdicts, with reasons and claims."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from audits.axes import behaviour as output
from audits.axes import persistence
from audits.axes.causal_depth import axis as causal_depth
from audits.axes.concept import axis as concept
from audits.axes.decodability.axis import UNCHANGED
from audits.axes.membership.scores import NAME as MEMBERSHIP
from audits.axes.relearning import CONTRAST, EXACT_MATCH
from audits.axes.restoration import axis as restoration
from audits.core.config import Rule
from audits.core.preflight import Damage
from audits.modalities.image_vocabulary import TRANSFERRED_NAMED
from audits.modalities.vocabulary import FACTS, Vocabulary
from audits.verdict.claims import claims
from audits.verdict.recovery import RECOVERY_SENTENCES
from evidence.hypothesis_tests import holm_adjusted, readings_above_floor
from evidence.results import AxisResult, Reading

VerdictClass = Literal["not_unlearned", "suppressed", "deleted", "damaged", "inconclusive"]


# Readings that can make ``suppressed`` by themselves, by axis. The first readings of an axis are
# those against the primary floor; later ones are only reported.
RECOVERY_READINGS = {
    "decodability": (UNCHANGED,),
    "causal_depth": (causal_depth.CONTRAST, causal_depth.EXACT_MATCH, TRANSFERRED_NAMED),
    "persistence": (persistence.EXACT_MATCH, persistence.CONTRAST),
    # Image models are excluded from relearning and restoration: retrains differ there by more than
    # an interval over images covers (docs/results/vision.md).
    "relearning": (CONTRAST, EXACT_MATCH),
    "concept": (concept.READING,),
    "restoration": (restoration.CONTRAST, restoration.EXACT_MATCH),
}


@dataclass(frozen=True)
class Verdict:
    """A verdict with its reasons and claims.

    Attributes:
        verdict_class: One of the five classes.
        rule: The rule that applied, in one sentence.
        reasons: The strongest reasons first.
        floor: "reference" or "never_taught".
        adjusted_p: Holm-adjusted p-value of each recovery hypothesis.
        where: Layers where the knowledge was found, if any.
        claims_allowed: Supported claims.
        claims_disallowed: Unsupported claims.
        would_change_it: What would change the verdict.
        also: True findings that an earlier rule overrides.
    """

    verdict_class: VerdictClass
    rule: str
    reasons: tuple[str, ...]
    floor: str
    adjusted_p: dict[str, float]
    where: tuple[str, ...]
    claims_allowed: tuple[str, ...]
    claims_disallowed: tuple[str, ...]
    would_change_it: tuple[str, ...]
    also: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = asdict(self)
        return {"class": fields.pop("verdict_class"), **fields}


def decide(
    axes: Mapping[str, AxisResult],
    damage: Damage,
    identical: bool,
    floor: str,
    rule: Rule,
    vocabulary: Vocabulary = FACTS,
) -> Verdict:
    """Apply the rules in order: damaged, not_unlearned, suppressed, deleted, inconclusive.

    Args:
        damage: Utility of the candidate.
        identical: Whether both models have the same weights.
        floor: "reference" or "never_taught".
        vocabulary: Vocabulary for facts or for a class.
    """
    behaviour = axes.get("behaviour")
    answered = behaviour is not None and behaviour.status == "retained"
    hypotheses = _hypotheses(axes)
    adjusted = holm_adjusted({name: reading.p_value for name, reading in hypotheses.items()})
    recovered = readings_above_floor(hypotheses, rule.recovery, rule.still_there)
    where = _where(axes, recovered, rule)
    main = behaviour.main_reading if behaviour is not None else None

    def verdict(name: VerdictClass, fired: str, reasons: list[str], **extra) -> Verdict:
        allowed, disallowed, change = claims(name, axes, rule, floor, vocabulary)
        return Verdict(
            name,
            fired,
            tuple(reasons),
            floor,
            adjusted,
            where,
            tuple(allowed),
            tuple(disallowed),
            tuple(change),
            **extra,
        )

    if damage.found:
        also = []
        if answered:
            also.append(vocabulary.still)
        if recovered:
            also.append(f"recovered by {', '.join(recovered)}")
        return verdict(
            "damaged",
            "Rule 1: the candidate no longer works, and wreckage is never called deletion.",
            [f"{reason[0].upper()}{reason[1:]}." for reason in damage.reasons],
            also=tuple(also),
        )
    if identical or answered:
        reasons = []
        if identical:
            reasons.append("Both checkpoints have exactly the same weights.")
        if main is not None:
            reasons.append(_behaviour_sentence(main, vocabulary))
        return verdict(
            "not_unlearned",
            f"Rule 2: {vocabulary.thing} {vocabulary.verb()} still there at the output.",
            reasons,
        )
    absent = behaviour is not None and behaviour.status == "absent"
    if absent and recovered:
        reasons = _recovery_reasons(axes, recovered, vocabulary)
        if main is not None:
            reasons.append(_behaviour_sentence(main, vocabulary))
        return verdict(
            "suppressed",
            "Rule 3: gone at the output, yet recovered beyond the floor from inside.",
            reasons,
        )
    missing = [
        name for name in rule.required_for_deleted if name not in axes or not axes[name].votes
    ]
    voting = [axis for axis in axes.values() if axis.votes]
    trace = _output_trace(axes, rule)
    power = "planted" in _shown_by(axes)
    silent = all(axis.status == "absent" for axis in voting)
    inner = {name: axis for name, axis in axes.items() if name != output.NAME}
    undecided = [name for name, axis in inner.items() if _far_off(axis, rule)]
    if absent and not missing and power and silent and not undecided and not trace:
        return verdict(
            "deleted",
            f"Rule 4: every voting axis is equivalent to the floor within "
            f"{rule.margin} of the way to the original, and those that look inside "
            "had shown that they find planted knowledge.",
            [_equivalence_sentence(axis) for axis in voting],
        )
    return verdict(
        "inconclusive",
        "Rule 5: neither suppression nor deletion is shown.",
        _binding(axes, [*missing, *undecided], power, absent, trace, rule, vocabulary),
    )


def _hypotheses(axes: Mapping[str, AxisResult]) -> dict[str, Reading]:
    """Every reading that can make ``suppressed`` by itself.

    A refitted probe is not among them: its reading alone is a residual trace.
    """
    tests = {}
    for name, axis in axes.items():
        usable = axis.status in ("retained", "absent", "no_power")
        if not usable or name == "behaviour":
            continue
        for reading in axis.readings:
            if reading.name in RECOVERY_READINGS.get(name, ()):
                tests[f"{name}: {reading.name}"] = reading
    return tests


def _far_off(axis: AxisResult, rule: Rule) -> bool:
    """Whether a residual is beyond the margin with confidence, although no test found it.

    An axis that could not measure is no evidence. One that measured need not be equivalent to
    its floor for deletion, unless it is required: its floor may differ from a model that never
    knew, as for patched states, and then nothing is ever equivalent.
    """
    measured = all(control.passed for control in axis.controls if control.required)
    beyond = any(
        reading.residual_interval_at_peak[0] > rule.margin for reading in axis.readings[:2]
    )
    return axis.status == "no_power" and measured and beyond


def _shown_by(axes: Mapping[str, AxisResult]) -> set[str]:
    """{"planted"} when every axis that tested it found the planted suppression."""
    controls = [
        control for axis in axes.values() for control in axis.controls if "planted" in control.name
    ]
    return {"planted"} if controls and all(c.passed for c in controls) else set()


def _where(
    axes: Mapping[str, AxisResult], recovered: Mapping[str, float], rule: Rule
) -> tuple[str, ...]:
    """Sites where the knowledge was found, by the first axis that can name them."""
    for name, reading_name in (
        ("decodability", UNCHANGED),
        ("causal_depth", causal_depth.CONTRAST),
        ("causal_depth", causal_depth.EXACT_MATCH),
        ("causal_depth", TRANSFERRED_NAMED),
    ):
        reading = axes[name].reading(reading_name) if name in axes else None
        if reading is not None and f"{name}: {reading_name}" in recovered:
            return tuple(
                column["name"]
                for column in reading.columns
                if column["p_value"] is not None and column["p_value"] < rule.recovery
            )
    return ()


def _behaviour_sentence(main: Reading, vocabulary: Vocabulary) -> str:
    return vocabulary.behaviour.format(now=main.statistic, before=main.ceiling, floor=main.floor)


def _recovery_reasons(
    axes: Mapping[str, AxisResult], recovered: Mapping[str, float], vocabulary: Vocabulary
) -> list[str]:
    """One sentence a recovery, the strongest first."""
    sentences = []
    for key, p in recovered.items():
        axis, name = key.split(": ", 1)
        reading = axes[axis].reading(name)
        assert reading is not None  # it gave the p-value
        sentence = RECOVERY_SENTENCES[name].format(
            it=vocabulary.pronoun, where=reading.where, value=reading.statistic
        )
        figures = f"original {reading.ceiling:.2f}, floor {reading.floor:.2f}; corrected p {p:.4f}"
        sentences.append((-reading.residual, f"{sentence} ({figures})."))
    return [text for _, text in sorted(sentences)]


def _equivalence_sentence(axis: AxisResult) -> str:
    main = axis.main_reading
    assert main is not None  # an axis votes only with a reading
    low, high = main.residual_interval
    return (
        f"{axis.name}: {main.statistic:.2f} against a floor of {main.floor:.2f} "
        f"(original {main.ceiling:.2f}); residual within [{low:.2f}, {high:.2f}]."
    )


def _output_trace(axes: Mapping[str, AxisResult], rule: Rule) -> str:
    """A sentence where the contrast at the output reveals answers no longer given."""
    axis = axes.get("behaviour")
    reading = axis.reading(output.CONTRAST) if axis is not None else None
    if reading is None:
        return ""
    figures = f"({reading.statistic:.2f}, floor {reading.floor:.2f}, p "
    low, high = reading.residual_interval_at_peak
    if reading.p_value < rule.recovery and low > rule.still_there:
        behavior = f"prefers each entity's own to the others' {figures}{reading.p_value:.4f})"
    elif reading.p_below < rule.recovery / 2 and high < -rule.still_there:
        behavior = (
            f"puts each entity's own below the others' {figures}"
            f"{reading.p_below:.4f}): it still knows which to avoid"
        )
    else:
        return ""
    return (
        f"behaviour: the answers are not said, but the candidate {behavior}. That is a "
        "residual trace, which blocks deletion."
    )


def _binding(
    axes: Mapping[str, AxisResult],
    missing: list[str],
    power: bool,
    absent: bool,
    trace: str,
    rule: Rule,
    vocabulary: Vocabulary,
) -> list[str]:
    """Reasons of an inconclusive verdict: each axis in the way, and what it needs."""
    reasons = [trace] if trace else []
    if output.NAME not in axes:
        reasons.append(
            f"behaviour: it was not run, and whether {vocabulary.short} {vocabulary.verb()} gone "
            "at the output decides between suppression and deletion."
        )
    elif not absent:
        reasons.append(f"behaviour: {vocabulary.unclear}")
    reasons += [
        _blocking(axis, rule, vocabulary)
        for name, axis in axes.items()
        if name != output.NAME and axis.status == "retained"
    ]
    for name in dict.fromkeys(missing):
        axis = axes.get(name)
        if axis is None:
            reasons.append(f"{name}: it was not run, and deletion cannot do without it.")
        else:
            why = " ".join(axis.notes) or axis.status
            reasons.append(f"{name}: {axis.status}. {why}")
    if not power:
        reasons.append(
            "No planted suppression was found by every axis, so their silence says nothing."
        )
    return reasons or ["The axes disagree with each other."]


def _blocking(axis: AxisResult, rule: Rule, vocabulary: Vocabulary) -> str:
    """Why an axis with a finding makes no ``suppressed``."""
    recovered = readings_above_floor(
        {reading.name: reading for reading in axis.readings[:2]}, rule.recovery, rule.still_there
    )
    if axis.name == "decodability" and UNCHANGED not in recovered:
        why = (
            f"a refitted probe still reads {vocabulary.short} but the original's own does "
            "not: a residual trace"
        )
    elif axis.name == MEMBERSHIP:
        why = (
            "its states still tell forgotten items from never-taught ones, whatever "
            "it knows of them: a residual trace"
        )
    elif not any(reading.name in RECOVERY_READINGS.get(axis.name, ()) for reading in axis.readings):
        why = f"it finds {vocabulary.short}, but this axis makes no verdict by itself"
    else:
        why = f"it finds {vocabulary.short}, but not once corrected for all axes"
    return f"{axis.name}: {why}, which blocks deletion and does not show suppression."
