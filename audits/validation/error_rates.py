"""Error rates of verdicts, over audits of models of known state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from audits.run.upgrade import upgrade
from audits.validation.trials import FLOORS
from audits.verdict.calibration import STATES, estimate, shipped
from audits.verdict.reevaluate import reevaluate
from evidence.calibration_metrics import expected_calibration_error
from evidence.intervals import wilson_interval
from evidence.results import AxisResult
from testbeds.zoo.kinds import ADVERSARIES

VERDICTS: tuple[str, ...] = (*STATES, "inconclusive")


@dataclass(frozen=True)
class Case:
    """One audit of a model of the zoo.

    Attributes:
        model: Its name.
        kind: A name in ``testbeds.zoo.kinds.KINDS``.
        state: True state; None where a grade stands for it.
        family: Architecture.
        weights: Hash of the weights.
        floor: One of ``FLOORS``.
        verdict: Verdict of the audit.
        chances: Probability of each state by the shipped calibration; None where the audit
            lacks figures for it.
        residual: Mean of the main residuals of the inner axes; None where none was run.
        grade: Relearning grade between 0 (never knew) and 1 (knows), where available.
        reason: The first reason of the audit.
        seconds: Duration of the audit.
    """

    model: str
    kind: str
    state: str | None
    family: str
    weights: str
    floor: str
    verdict: str
    chances: dict[str, float] | None
    residual: float | None
    grade: float | None
    reason: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict equals the true state."""
        return self.verdict == self.state


def case_of(line: dict) -> Case:
    """A case from one line of ``python -m benchmarks verdict --only audits``."""
    document = upgrade(line["audit"])
    inner = [
        axis["readings"][0]["residual"]
        for axis in document["axes"]
        if axis["name"] != "behaviour" and axis["readings"]
    ]
    reasons = document["verdict"]["reasons"]
    axes = {saved["name"]: AxisResult.from_json(saved) for saved in document["axes"]}
    # Estimated again: the document may be older than the shipped calibration.
    calibrated = estimate(shipped(), axes, document["preflight"])
    return Case(
        model=line["model"],
        kind=line["kind"],
        state=line["state"],
        family=line["family"],
        weights=line["weights"],
        floor=line["floor"],
        verdict=document["verdict"]["class"],
        chances=calibrated.probabilities,
        residual=float(np.mean(inner)) if inner else None,
        grade=line["gold"]["grade"] if line["gold"] else None,
        reason=reasons[0] if reasons else "",
        seconds=document["runtime"]["seconds"],
    )


def figure(name: str, value: float, target: float | None, sense: str, n: int, unit: str) -> dict:
    """One row of the result."""
    spread = None
    if unit == "share" and n:
        low, high = wilson_interval(value, n, 1.96)
        spread = [round(low, 4), round(high, 4)]
    return {
        "figure": name,
        "value": value,
        "target": target,
        "sense": sense,
        "unit": unit,
        "peer": "state known by construction",
        "spread": spread,
        "n": n,
    }


def figures(cases: Sequence[Case]) -> list[dict]:
    """Error rates on models of known state; adversarial models separately."""
    plain = [case for case in cases if case.kind not in ADVERSARIES]
    adverse = [case for case in cases if case.kind in ADVERSARIES]
    return _figures(plain) + (_adversaries(adverse) if adverse else [])


def _adversaries(cases: Sequence[Case]) -> list[dict]:
    holding = [case for case in cases if case.state == "suppressed"]
    without = [case for case in cases if case.state == "deleted"]

    def n_called(among: Sequence[Case], verdict: str) -> int:
        return sum(case.verdict == verdict for case in among)

    holders = "adversaries that hold the knowledge"
    looking = "deletions made to look suppressed"
    named = (
        (f"{holders}, called deleted", holding, "deleted", 0, "<="),
        (f"{holders}, called suppressed", holding, "suppressed", None, ">="),
        (f"{looking}, called so", without, "suppressed", 0, "<="),
        (f"{looking}, accepted", without, "deleted", None, ">="),
    )
    # Skip empty groups; 0 of 0 would look like a met target.
    return [
        figure(name, n_called(among, verdict), target, sense, len(among), "n")
        for name, among, verdict, target, sense in named
        if among
    ]


def _figures(cases: Sequence[Case]) -> list[dict]:
    known = [case for case in cases if case.state is not None]
    decided = [case for case in known if case.verdict != "inconclusive"]
    by_state = {state: [case for case in known if case.state == state] for state in STATES}

    def n_called(state: str, verdict: str) -> int:
        return sum(case.verdict == verdict for case in by_state[state])

    holding = len(by_state["not_unlearned"]) + len(by_state["suppressed"])
    wrongly = n_called("not_unlearned", "deleted") + n_called("suppressed", "deleted")
    retrains = len(by_state["deleted"])
    rows = [
        figure("holds the knowledge, called deleted", wrongly, 0, "<=", holding, "n"),
        figure(
            "retrains called suppressed", n_called("deleted", "suppressed"), 0, "<=", retrains, "n"
        ),
        figure(
            "retrains accepted as deleted",
            _share(n_called("deleted", "deleted"), retrains),
            44 / 45,
            ">=",
            retrains,
            "share",
        ),
        figure(
            "untouched in effect, called anything but not_unlearned",
            len(by_state["not_unlearned"]) - n_called("not_unlearned", "not_unlearned"),
            0,
            "<=",
            len(by_state["not_unlearned"]),
            "n",
        ),
        figure(
            "suppressions called suppressed",
            _share(n_called("suppressed", "suppressed"), len(by_state["suppressed"])),
            None,
            ">=",
            len(by_state["suppressed"]),
            "share",
        ),
        figure(
            "wrecks called deleted",
            n_called("damaged", "deleted"),
            0,
            "<=",
            len(by_state["damaged"]),
            "n",
        ),
        figure(
            "right among decided",
            _share(sum(case.right for case in decided), len(decided)),
            0.98,
            ">=",
            len(decided),
            "share",
        ),
        figure(
            "inconclusive",
            _share(len(known) - len(decided), len(known)),
            0.1,
            "<=",
            len(known),
            "share",
        ),
        figure(
            "median seconds of an audit",
            float(np.median([case.seconds for case in cases])),
            60,
            "<=",
            len(cases),
            "s",
        ),
    ]
    stated = confidences(known)
    if stated[0]:
        name = "expected calibration error of the class probabilities"
        error = expected_calibration_error(*stated)
        rows.append(figure(name, error, 0.05, "<=", len(stated[0]), "probability"))
    for floor, target in (("reference", 0.995), ("never_taught", 0.99)):
        group = [c for c in known if c.floor == floor and c.residual is not None]
        knows = [c.state != "deleted" for c in group]
        if len(set(knows)) == 2:
            area = float(roc_auc_score(knows, [c.residual for c in group]))
            name = f"AUC of the mean residual, knows against never knew, {floor}"
            rows.append(figure(name, area, target, ">=", len(group), "AUC"))
    for floor in FLOORS:
        group = [c for c in cases if c.floor == floor and c.state is None]
        pairs = [
            (c.residual, c.grade) for c in group if c.residual is not None and c.grade is not None
        ]
        if len(pairs) > 2:
            rho = float(spearmanr(np.array(pairs)).statistic)  # pyright: ignore
            name = f"rank correlation of mean residual and gold grade, {floor}"
            rows.append(figure(name, rho, 0.9, ">=", len(pairs), "rho"))
    return rows


def confusion(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Count of each verdict by true state."""
    counts = {state: dict.fromkeys(VERDICTS, 0) for state in STATES}
    for case in cases:
        if case.state is not None:
            counts[case.state][case.verdict] += 1
    return counts


def confidences(cases: Sequence[Case]) -> tuple[list[float], list[bool]]:
    """Probability of the most likely state, and whether it is the true one.

    Adversarial models and models of unknown state are left out.
    """
    plain = [case for case in cases if case.kind not in ADVERSARIES and case.state]
    stated = [(case.state, case.chances) for case in plain if case.chances]
    best = [
        (state, max(probabilities, key=probabilities.__getitem__), probabilities)
        for state, probabilities in stated
    ]
    return [probabilities[top] for _, top, probabilities in best], [
        state == top for state, top, _ in best
    ]


def ablation(lines: Sequence[dict]) -> list[dict]:
    """Verdicts with each axis left out in turn.

    Args:
        lines: Lines of ``audits.validation.trials`` with an audit in them.

    Returns:
        One dict an axis left out, after one with all axes: ``without``, and under each state of
        ``STATES`` the count of each verdict.
    """
    certain = [(line["state"], upgrade(line["audit"])) for line in lines if line["state"]]
    names = dict.fromkeys(axis["name"] for _, document in certain for axis in document["axes"])
    rows = []
    for without in ((), *((name,) for name in names)):
        counts = {state: dict.fromkeys(VERDICTS, 0) for state in STATES}
        for state, document in certain:
            counts[state][reevaluate(document, without=without).verdict_class] += 1
        rows.append({"without": "".join(without), **counts})
    return rows


def _share(count: int, total: int) -> float:
    return count / total if total else float("nan")
