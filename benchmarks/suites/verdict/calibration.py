"""Fit the calibration that ships with the package, on the tuning part of the zoo.

``python -m benchmarks.suites.verdict.calibration --cases tuning.jsonl`` reads audits
made by ``benchmarks.suites.verdict.zoo_audits --part tuning`` and writes
``audits/verdict/calibration.json``. Audits of any other part are refused: what the
held-out part says of the probabilities is worth something only as long as it was not
used to fit them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from audits.verdict.calibration import (
    STATES,
    Calibration,
    LogisticQuestion,
    calibration_features,
    case_facts,
)
from benchmarks.harness.results import commit
from evidence.results import AxisResult
from evidence.storage.files import write_atomic
from testbeds.zoo.build import split

FILE = Path(__file__).parents[3] / "audits" / "verdict" / "calibration.json"
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)


def figures(case: dict) -> dict[str, float]:
    """The calibration's figures of one line of ``benchmarks.suites.verdict.zoo_audits``."""
    document = case["audit"]
    axes = {each["name"]: AxisResult.from_dict(each) for each in document["axes"]}
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
        float(fitted.intercept_[0]),
        (
            len({c["model"] for c in cases if c["state"] != state}),
            len({c["model"] for c in cases if c["state"] == state}),
        ),
    )


def fit(cases: Sequence[dict], C: float, version: str) -> Calibration:
    """All three questions on ``cases``, models of certain state."""
    works = [case for case in cases if case["state"] != "damaged"]
    gone = [
        case
        for case in works
        if case["state"] != "not_unlearned" and "inside" in figures(case)
    ]
    facts: dict[str, list[float]] = {}
    for case in cases:
        document = case["audit"]
        axes = {each["name"]: AxisResult.from_dict(each) for each in document["axes"]}
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
    given = [
        (case["state"], calibration.probabilities(figures(case)) or equal)
        for case in cases
    ]
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


def main() -> None:
    """Read, check, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args()
    part = split()["tuning"]
    cases = []
    for file in asked.cases:
        lines = file.read_text(encoding="utf-8").splitlines()
        cases += [case for case in map(json.loads, lines) if "failed" not in case]
    for case in cases:
        of_part = case["seed"] in part["seeds"] and case["family"] in part["families"]
        if not of_part or case["kind"] not in part["kinds"]:
            parser.error(f"{case['model']} is not of the tuning part")
    cases = [case for case in cases if case["state"] is not None]
    if {case["state"] for case in cases} != set(STATES):
        parser.error("every state is needed")
    C = chosen(cases)
    worlds = sorted({f"{case['family']} {case['seed']}" for case in cases})
    version = (
        f"bios, split {split()['version']}, tuning worlds {', '.join(worlds)}; "
        f"{len(cases)} audits; C={C:g}; commit {commit()}"
    )
    found = fit(cases, C, version)
    write_atomic(asked.out, json.dumps(found.to_dict(), indent=1) + "\n")
    print(f"{version}\nmean log loss in sample {np.mean(loss(found, cases)):.4f}")


if __name__ == "__main__":
    main()
