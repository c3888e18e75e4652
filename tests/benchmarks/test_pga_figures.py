"""The probe-geometry page's figures, from points whose numbers are known."""

import json
from argparse import Namespace

import pytest

from benchmarks.harness.clock import Clock
from benchmarks.harness.pages import render
from benchmarks.harness.runner import Run
from benchmarks.pga import recipes
from benchmarks.pga.curve import NEVER
from benchmarks.pga.devices import devices
from benchmarks.pga.page import WORDS, curve_of
from benchmarks.pga.simulated import equivalence_rows
from benchmarks.pga.suite import ORDER, taken
from evidence.errors import InputError
from testbeds.memorized_codes.config import SIZES

FACTS = {"commit": "abc", "machine": {"cpu": "c"}, "device": "cpu", "threads": 1}


def point(name, *, reach, passes=None, quiet=False):
    """One setting as ``benchmarks.pga.curve`` gives it; no ``passes``: untouched."""
    found = {"eraser": name, "best": 0.6, "band": 0.7, "reach": reach}
    found |= {"sequences": 40, "passes": bool(passes)}
    if passes is not None:
        found |= {"recall": 0.001, "ratio": 1.01, "quiet": quiet or passes}
        found |= {"role_swap": False, "shown gone": reach < 0.2, "reading": "none"}
    return found


def shard(folder, turn, points, key="curve:forty:1"):
    found = {"points": points, "rows": [], "margin": 0.2, "seconds": 10}
    parts = {key: FACTS | found | {"finished": True}}
    (folder / f"{turn}.json").write_text(json.dumps({"parts": parts}))


def test_shards_of_a_curve_become_one_part_in_the_order_of_the_settings(tmp_path):
    first, second = ORDER[2], ORDER[5]
    unmodified = [point("original", reach=0.6), point(NEVER, reach=0.1)]
    shard(tmp_path, 0, [*unmodified, point(second, reach=0.1, passes=True)])
    shard(tmp_path, 1, [*unmodified, point(first, reach=0.3, passes=False, quiet=True)])
    parts = taken(tmp_path, {"noise": {"rows": []}})
    whole = parts["curve:forty:1"]
    assert [p["eraser"] for p in whole["points"]] == [*ORDER[:2], first, second]
    assert whole["seconds"] == 20 and not whole["finished"]
    passing, silent = whole["rows"]
    assert (passing["value"], passing["peer"], passing["n"]) == (1, second, 2)
    assert (silent["value"], silent["peer"]) == (2, f"{first}, {second}")
    assert list(parts) == ["noise", "curve:forty:1"]


def test_reasons_measured_elsewhere_keep_what_was_there(tmp_path):
    found = {"variants": {"b": {"seed": 1} | FACTS}}
    (tmp_path / "x.json").write_text(json.dumps(found))
    kept = recipes.taken(tmp_path, {"a": {"seed": 0}})
    assert kept == {"a": {"seed": 0}, "b": {"seed": 1} | FACTS}


def curve_text(seeds):
    return render("pga/curve", {"words": WORDS, "curve": curve_of("forty", seeds)})


def test_seeds_stand_side_by_side_and_passing_once_is_not_passing_always():
    seeds = {
        seed: FACTS
        | {
            "margin": 0.2,
            "points": [
                point("original", reach=0.6),
                point(NEVER, reach=reach),
                point("a", reach=0.1, passes=True),
                point("b", reach=0.05 + 0.2 * seed, passes=seed == 0, quiet=True),
            ],
        }
        for seed, reach in ((0, 0.15), (1, 0.25))
    }
    text = curve_text(seeds)
    assert "| 2 | a | 0.60 0.60 | 0.70 0.70 | 0.10 0.10 | 0.001 0.001 " in text
    assert "can be shown in 1 of 2 worlds" in text and "0.15 0.25" in text
    assert "in every world pass: a; in some: b (1)" in text
    assert "cost): a, b\n" in text
    # "b" hides more in one world and less in the other.
    assert "hides most is a: reach 0.10 0.10" in text
    assert "costs least is a: perplexity 1.01 1.01" in text
    assert "Cut off" not in text
    seeds[1]["finished"] = False
    assert "every setting was tried: seed 1." in curve_text(seeds)


@pytest.mark.parametrize(("powers", "value"), [((0.1, 0.8), 40), ((0.9, 1.0), 20)])
def test_the_least_number_with_enough_power_is_named(powers, value):
    curve = [
        {"n": n, "draws": 5, "power": {"0.1": 0.0, "0.15": 0.0, "0.2": power}}
        for n, power in zip((20, 40), powers, strict=True)
    ]
    rows = list(equivalence_rows(curve))
    assert [row["value"] for row in rows] == [value]
    assert "0.2 of chance" in rows[0]["figure"]


def run(root, there):
    args = Namespace(root=root, permutations=199)
    return Run(args, Clock(1), {"parts": {"curve:forty:0": there}}, "devices")


@pytest.mark.parametrize("there", [{}, {"device": "cpu", "points": []}])
def test_only_a_gpu_s_points_are_compared_with_the_cpu(there, tmp_path):
    with pytest.raises(InputError, match=r"nothing to compare with.*--source"):
        list(devices(run(tmp_path, there)))


def test_a_world_of_this_cpu_is_not_taken_for_a_gpu_s(tiny_codes, monkeypatch):
    there = {"device": "cuda", "points": []}
    monkeypatch.setitem(SIZES, "forty", tiny_codes.config)
    with pytest.raises(InputError, match="not made on a GPU"):
        list(devices(run(tiny_codes.root.parent, there)))


def test_views_stand_apart_and_seeds_side_by_side():
    points = [
        {"model": "m", "seed": s, "view": view, "auc": [0.5, auc], "band": 0.6}
        for s in (0, 1)
        for view, auc in (("last", 0.51), ("mean", 0.6 + s / 10))
    ]
    text = render("pga/views", {"points": points})
    assert "| m | last | 0.50 0.50 | 0.51 0.51 |" in text
    assert "| m | mean | 0.50 0.50 | 0.60 0.70 |" in text
