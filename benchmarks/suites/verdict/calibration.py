"""Fit the calibration that ships with the package, on the tuning part of the zoo.

``python -m benchmarks verdict --only audits --part tuning --out tuning.jsonl``, then
``python -m benchmarks verdict --only calibration --cases tuning.jsonl``, which writes
``audits/verdict/calibration.json``. Audits of any other part are refused: what the
held-out part says of the probabilities is worth something only as long as it was not
used to fit them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from audits.run.upgrade import upgrade
from audits.verdict.calibration import (
    STATES,
    Calibration,
    LogisticQuestion,
    calibration_features,
    case_facts,
)
from benchmarks.harness.results import commit
from benchmarks.harness.zoo import check_part
from evidence.errors import InputError
from evidence.results import AxisResult
from evidence.storage.files import write_atomic
from testbeds.zoo.build import split

FILE = Path(__file__).parents[3] / "audits" / "verdict" / "calibration.json"
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)


def figures(case: dict) -> dict[str, float]:
    """The calibration's figures of one line of the part audits."""
    document = upgrade(case["audit"])
    axes = {each["name"]: AxisResult.from_json(each) for each in document["axes"]}
    return calibration_features(axes, document["preflight"]["utility"]["shares"])


def question(
    cases: Sequence[dict], state: str, names: tuple[str, ...], C: float
) -> LogisticQuestion:
    """One logistic regression, both answers of equal weight."""
    rows = [figures(case) for case in cases]
    x = np.array([[row[name] for name in names] for row in rows])
    yes = [case["state"] == state for case in cases]
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    fitted = LogisticRegression(C=C, class_weight="balanced")
    fitted.fit((x - mean) / scale, yes)
    return LogisticQuestion(
        names,
        tuple(mean.tolist()),
        tuple(scale.tolist()),
        tuple(fitted.coef_[0].tolist()),
        float(np.ravel(fitted.intercept_)[0]),
        (
            len({c["model"] for c in cases if c["state"] != state}),
            len({c["model"] for c in cases if c["state"] == state}),
        ),
    )


def fit(cases: Sequence[dict], C: float, version: str) -> Calibration:
    """All three questions on ``cases``, models of certain state."""
    works = [case for case in cases if case["state"] != "damaged"]
    gone = [
        case for case in works if case["state"] != "not_unlearned" and "inside" in figures(case)
    ]
    facts: dict[str, list[float]] = {}
    for case in cases:
        document = upgrade(case["audit"])
        axes = {each["name"]: AxisResult.from_json(each) for each in document["axes"]}
        for name, value in case_facts(axes, document["preflight"]).items():
            facts.setdefault(name, []).append(value)
    return Calibration(
        version,
        question(cases, "damaged", ("useful",), C),
        question(works, "not_unlearned", ("said",), C),
        question(gone, "suppressed", ("inside", "within"), C),
        {name: (min(values), max(values)) for name, values in facts.items()},
    )


def loss(calibration: Calibration, cases: Sequence[dict]) -> list[float]:
    """Log loss of each case; saying nothing costs what equal chances do."""
    equal = dict.fromkeys(STATES, 1 / len(STATES))
    given = [(case["state"], calibration.probabilities(figures(case)) or equal) for case in cases]
    return [float(-np.log(max(chances[state], 1e-12))) for state, chances in given]


def chosen(cases: Sequence[dict]) -> float:
    """Strongest penalty whose log loss on worlds left out is as good as the best.

    As good as: within one standard error over worlds. Where the states are perfectly
    apart the least loss is that of no penalty, which is sure of anything.
    """
    worlds = sorted({(case["family"], case["seed"]) for case in cases})
    mean, error = {}, {}
    for C in PENALTIES:
        each = []
        for world in worlds:
            inside = [c for c in cases if (c["family"], c["seed"]) != world]
            outside = [c for c in cases if (c["family"], c["seed"]) == world]
            each.append(np.mean(loss(fit(inside, C, ""), outside)))
        mean[C] = float(np.mean(each))
        error[C] = float(np.std(each, ddof=1) / np.sqrt(len(each)))
        print(f"C={C:g}: log loss {mean[C]:.4f}, standard error {error[C]:.4f}")
    best = min(PENALTIES, key=mean.__getitem__)
    return min(C for C in PENALTIES if mean[C] <= mean[best] + error[best])


def write(found: Sequence[dict], out: Path) -> None:
    """Check audits, fit, and write the calibration.

    Args:
        found: Lines of the part audits of the verdict suite, of tuning models alone.
        out: File of the calibration.

    Raises:
        InputError: an audit is of another part, or a state is missing.
    """
    cases = [case for case in found if "failed" not in case]
    check_part("tuning", seeds=[case["seed"] for case in cases])
    check_part("tuning", families=[case["family"] for case in cases])
    check_part("tuning", kinds=[case["kind"] for case in cases])
    cases = [case for case in cases if case["state"] is not None]
    if {case["state"] for case in cases} != set(STATES):
        raise InputError(
            "the calibration needs models of every state",
            expected=", ".join(STATES),
            fix="Name files of audits by --cases",
        )
    C = chosen(cases)
    worlds = sorted({f"{case['family']} {case['seed']}" for case in cases})
    version = (
        f"bios, split {split()['version']}, tuning worlds {', '.join(worlds)}; "
        f"{len(cases)} audits; C={C:g}; commit {commit()}"
    )
    fitted = fit(cases, C, version)
    write_atomic(out, json.dumps(fitted.to_dict(), indent=1) + "\n")
    print(f"{version}\nmean log loss in sample {np.mean(loss(fitted, cases)):.4f}")
