"""What the restoration benchmark makes of its cases: areas, rates and verdicts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from audits.axes.concept import axis as concept
from audits.axes.restoration import axis as restoration
from audits.axes.restoration import state_injection
from audits.core.registry import axes_of_profile
from audits.run.upgrade import upgrade
from audits.validation.trials import FLOORS
from audits.verdict.reevaluate import reevaluate
from benchmarks.harness.results import Goal, Row, at_least, at_most, roc_auc, row
from benchmarks.harness.zoo import BY_CONSTRUCTION
from benchmarks.suites.restoration.zoo import FALSE, LATE, NAMED, RETRAINED
from evidence.intervals import wilson_interval


def net_of(case: dict[str, Any]) -> dict[str, Any] | None:
    """The net restoration rate of a case, as the axis states it."""
    axis = case["axes"].get(restoration.NAME)
    return axis["details"]["net_rate"]["unlearned"] if axis else None


def published_of(case: dict[str, Any], role: str = "unlearned") -> dict | None:
    """Arms of the published test."""
    axis = case["axes"].get(restoration.NAME)
    if axis is None or "state_injection" not in axis["details"]:
        return None
    roles = axis["details"]["state_injection"]["roles"]
    return roles[role]["arms"] if role in roles else None


def zoo_rows(cases: Sequence[dict[str, Any]], what: str) -> Iterator[Row]:
    """Do suppressions come back where retrains do not, by our test and by theirs?"""
    groups = {
        "late": [c for c in cases if c["kind"] in LATE],
        "retrained": [c for c in cases if c["kind"] in RETRAINED],
        "suppressed": [c for c in cases if c["state"] == "suppressed"],
    }
    net = {
        name: [n["net"] for c in group if (n := net_of(c)) is not None]
        for name, group in groups.items()
    }
    yield from _areas("net restoration rate", net, what, at_least(0.98))
    false = [value for value in net["retrained"] if value > FALSE]
    n = len(net["retrained"])
    if n:
        yield row(
            f"false restorations (net over {FALSE}) among retrains, {what}",
            len(false),
            at_most(2 * n / 45),
            "models",
            BY_CONSTRUCTION,
            n,
            largest=max(net["retrained"]),
        )
    best: dict[str, list[float]] = {}
    for name, group in groups.items():
        best[name] = _best([a for c in group if (a := published_of(c)) is not None])
    never = {
        c["model"].rsplit("-", 1)[0]: a
        for c in cases
        if (a := published_of(c, state_injection.UNTRAINED)) is not None
    }
    best["never-trained"] = _best(list(never.values()))
    for name, values in best.items():
        if values:
            yield row(
                f"published rate at its best alpha, {name}, mean, {what}",
                sum(values) / len(values),
                at_most(),
                "share of the lost answers",
                "reported, never votes",
                len(values),
                least=min(values),
                most=max(values),
            )
    yield from _areas("published rate", best, what, at_least())


def _areas(score: str, values: dict[str, list[float]], what: str, late: Goal) -> Iterator[Row]:
    """AUC of a score between suppressions and retrains; ``late`` is the target of some."""
    for name, group, goal in (
        ("head-only and late-layer", "late", late),
        ("every suppression", "suppressed", at_least()),
    ):
        yes, no = values[group], values["retrained"]
        area, n = roc_auc(yes, no), len(yes) + len(no)
        if area is not None:
            figure = f"AUC of the {score} against scratch retrains: {name}, {what}"
            yield row(figure, area, goal, "AUC", BY_CONSTRUCTION, n)


def _best(arms: Sequence[dict[str, Any]]) -> list[float]:
    found = [(a.get(state_injection.PUBLISHED) or a[state_injection.STATE])["best"] for a in arms]
    return [each for each in found if each is not None]


def axes_of(case: dict[str, Any], floor: str) -> dict[str, Any]:
    """Both axes of a case with a floor."""
    return case.get("beside_reference" if floor == "reference" else "axes", {})


def rate_rows(cases: Sequence[dict[str, Any]], what: str) -> Iterator[Row]:
    """How often each axis finds the answers: in retrains, and in suppressions."""
    for floor, name, (state, goal) in product(
        FLOORS, NAMED, (("deleted", at_most(0.0)), ("suppressed", at_least()))
    ):
        statuses = [
            axes_of(case, floor)[name]["status"]
            for case in cases
            if case["state"] == state and name in axes_of(case, floor)
        ]
        if not statuses:
            continue
        n = len(statuses)
        share = statuses.count("retained") / n
        low, high = wilson_interval(share, n, 1.96)
        yield row(
            f"{name} says still there of {state} models, floor {floor}, {what}",
            share,
            goal,
            "share of models",
            BY_CONSTRUCTION,
            n,
            least=low,
            most=high,
            statuses=dict(Counter(statuses)),
        )


def verdicts(
    cases: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each model's verdict with the named axes, without each, and without both.

    Args:
        cases: From ``measured``.
        others: Lines of the part audits of the verdict suite.

    Returns:
        One dict a model of both and floor: ``model``, ``kind``, ``state``, ``floor``,
        ``statuses`` of the named axes and ``verdicts`` by what was left out.
    """
    by_weights = {(each["weights"], each["floor"]): each for each in others if "failed" not in each}
    found = []
    for case, floor in ((case, floor) for floor in FLOORS for case in cases):
        other = by_weights.get((case["weights"], floor))
        if other is None:
            continue
        document = upgrade(other["audit"])
        kept = [each for each in document["axes"] if each["name"] not in NAMED]
        # A damaged or untouched candidate is not looked into by this profile.
        inside = len(kept) > 1
        added = list(axes_of(case, floor).values()) if inside else []
        document["axes"] = kept + added
        table = {
            "none": reevaluate(document),
            concept.NAME: reevaluate(document, without=(concept.NAME,)),
            restoration.NAME: reevaluate(document, without=(restoration.NAME,)),
            "both": reevaluate(document, without=NAMED),
        }
        for name in NAMED if inside else ():
            # What this axis says where it alone looks inside.
            rest = [*axes_of_profile("quick")[1:], *(each for each in NAMED if each != name)]
            table[f"{name} alone"] = reevaluate(document, without=rest)
        found.append(
            {
                "model": case["model"],
                "kind": case["kind"],
                "state": case["state"],
                "floor": floor,
                "statuses": {each["name"]: each["status"] for each in added},
                "verdicts": {name: each.verdict_class for name, each in table.items()},
            }
        )
    return found


def shown_cases(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the page shows of each model, without the axes' details."""
    found = []
    for case in cases:
        net, arms = net_of(case), published_of(case)
        line: dict[str, Any] = {
            "model": case["model"],
            "kind": case["kind"],
            "state": case["state"],
            "net": None if net is None else net["net"],
            "interval": None if net is None else net["interval"],
            "rate": None if net is None else net["rate"],
            "controls": None if net is None else net["controls"],
            "published": None
            if arms is None
            else {name: arm["best"] for name, arm in arms.items()},
        }
        for name, axis in case["axes"].items():
            main = axis["readings"][0] if axis["readings"] else {}
            line[name] = {"status": axis["status"], "residual": main.get("residual")}
        found.append(line)
    return found
