"""The page: complete, offline, safe against hostile texts, the same every time."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import Any

import pytest

from audits.decodability import REFITTED, UNCHANGED
from audits.relearning import SAID, TOLD
from audits.report import MOST_ITEMS, VERDICTS, render, write_report
from audits.report_plots import (
    logprob_plot,
    reading_plot,
    relearning_plots,
    weights_plot,
    wording_plot,
)
from audits.report_text import clean, flat, in_plot, interval, p_text, percent, places
from audits.result import validate_document

HOSTILE = (
    "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    "{{ 7 * 7 }}\"'><a href='javascript:alert(3)'>&lt;\u202egnp.exe\x00\ud800"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def column(name, statistic, *, used=True, floor=0.1, ceiling=1.0):
    return {
        "name": name,
        "used": used,
        "statistic": statistic,
        "interval": [max(0.0, statistic - 0.1), min(1.0, statistic + 0.1)],
        "floor": floor,
        "ceiling": ceiling,
        "difference": statistic - floor,
        "tost": [statistic - floor - 0.1, statistic - floor + 0.1],
        "p_value": 0.0005 if used else None,
    }


def reading(name, columns, residual=0.6, kind="never_taught"):
    best = max(columns, key=lambda each: each["difference"])
    return {
        "name": name,
        "statistic": best["statistic"],
        "interval": best["interval"],
        "floor": best["floor"],
        "floor_kind": kind,
        "ceiling": best["ceiling"],
        "residual": residual,
        "residual_interval": [residual - 0.2, residual + 0.2],
        "p_value": 0.8805597201,
        "p_below": 0.3,
        "smallest_p": 0.0005,
        "where": best["name"],
        "columns": columns,
    }


def control(name, passed=True, required=True):
    return {
        "name": name,
        "value": 0.03,
        "expected": "p < 0.05",
        "passed": passed,
        "required": required,
    }


def axis(name, *readings, status="retained", controls=(), details=None, **other):
    top = ("statistic", "interval", "p_value", "floor", "ceiling", "residual")
    main = readings[0] if readings else {}
    return {
        "name": name,
        "question": f"What of {name}?",
        "status": status,
        "statistic_name": "accuracy",
        **{key: main.get(key) for key in (*top, "residual_interval")},
        "controls": list(controls),
        "per_layer": main.get("columns", []),
        "readings": list(readings),
        "n_entities": 12,
        "details": details or {},
        "notes": [f"A note on {name}."],
        **other,
    }


def behaviour(**other):
    item = {"id": "f-1", "entity": "Ada", "prompt": "Ada was born in", "answer": "Rome"}
    scores = {"said": False, "logprob_original": -0.01, "logprob_unlearned": -7.254321}
    return axis(
        "behaviour",
        reading("said in full", [column("output", 0.08)], residual=-0.1),
        status="absent",
        statistic_name="share of answers said",
        controls=[control("the original says it")],
        details={
            "accuracy_by_wording": {"original": [1.0, 0.9], "unlearned": [0.1, 0.0]},
            "items": [item | scores, item | scores | {"said": True, "answer": "Oslo"}],
            "truth_ratio": {"original": 0.001, "unlearned": 92.5},
        },
        **other,
    )


def decodability(**other):
    sites = [column("embed", 0.1, used=False)]
    sites += [column(f"resid.{layer}", 0.1 + 0.1 * layer) for layer in range(8)]
    return axis(
        "decodability",
        reading(REFITTED, sites),
        reading(UNCHANGED, sites),
        controls=[
            control("the planted suppression is seen"),
            control("a control that fails", passed=False),
            control("one that is only shown", passed=False, required=False),
        ],
        **other,
    )


def relearning(**other):
    curve = [0.0, 0.4, 0.7]
    parts = ("asked_said", "asked_contrast", "never_said", "never_contrast", "taught")
    roles = ("unlearned", "planted", "reference-1")
    return axis(
        "relearning",
        reading(TOLD, [column("after teaching", 0.8, floor=0.5)]),
        reading(SAID, [column("after teaching", 0.7)]),
        controls=[control("the planted suppression comes back")],
        details={
            "learning_rate": 1e-4,
            "steps": [0, 2, 4],
            "curves": {role: {part: curve for part in parts} for role in roles},
        },
        **other,
    )


def document(*axes, verdict="suppressed", **preflight) -> dict[str, Any]:
    digest = "ab" * 32
    return {
        "schema_version": "1.0",
        "verdict": {
            "class": verdict,
            "probabilities": None,
            "rule": "Rule 3: as told.",
            "reasons": ["First reason.", "Second reason.", "Third.", "Fourth reason."],
            "floor": "never_taught",
            "adjusted_p": {
                f"decodability: {UNCHANGED}": 0.0123,
                f"relearning: {TOLD}": 1,
            },
            "where": ["resid.3", "resid.4", "resid.5"],
            "claims_allowed": ["This may be said."],
            "claims_disallowed": ["That may not."],
            "would_change_it": ["Another candidate."],
            "also": [],
        },
        "axes": list(axes),
        "preflight": {
            "identical_weights": False,
            "weight_difference": {
                "relative": 0.4123456789,
                "layers": [
                    {"layer": -1, "relative": 0.0},
                    {"layer": 0, "relative": 0.25},
                ],
                "tensors_changed": 3,
                "tensors": 21,
            },
            "known": {"forget_items": 24, "forget_entities": 12},
            "utility": {
                "shares": {"retain accuracy": 0.97, "distinct words in free text": 1.8},
                "damage": [],
            },
            "free_text": {"prompts": ["Once"], "original": ["a"], "unlearned": ["b"]},
            "warnings": ["Mind the gap."],
            **preflight,
        },
        "behaviour": {
            "forget_original": 1.0,
            "forget_unlearned": 0.08,
            "forget_floor": 0.1,
            "utility": {},
        },
        "config": {
            "profile": "quick",
            "axes": ["behaviour"],
            "seed": 7,
            "rule": {"margin": 0.2, "utility": 0.8, "distinct": 0.5},
            "budget": {"permutations": 2000},
        },
        "manifest": {
            "models": [
                {"role": "original", "source": "/m/before", "sha256": digest},
                {"role": "unlearned", "source": "/m/after", "sha256": digest},
            ],
            "items": [
                {"role": role, "sha256": digest, "items": 24, "entities": 12}
                for role in ("forget", "retain")
            ],
            "code_sha256": digest,
            "versions": {"torch": "2.13.0"},
            "hardware": {"cores": 2},
            "seed": 7,
        },
        "runtime": {
            "written": "2026-01-02T03:04:05+0000",
            "seconds": 82.2,
            "stages": {"weights": {"seconds": 82.2, "peak_memory_bytes": 5e8}},
        },
    }


def whole():
    return document(behaviour(), decodability(), relearning())


DOCUMENTS = {
    "whole": whole,
    "identical": lambda: document(
        behaviour(),
        verdict="not_unlearned",
        identical_weights=True,
        weight_difference={
            "relative": 0.0,
            "layers": [],
            "tensors_changed": 0,
            "tensors": 21,
        },
    ),
    "no readings": lambda: document(
        axis("decodability", status="error"),
        axis("relearning", status="no_power", controls=[control("c", passed=False)]),
    ),
    "no axes": lambda: document(verdict="inconclusive"),
    "nothing measured": lambda: document(
        behaviour(), utility={"shares": {}, "damage": []}, warnings=[], free_text={}
    ),
    "unknown axis": lambda: document(
        axis(
            "persistence",
            reading("4 bit", [column("q4", 0.4), column("logits", 0.2)]),
            reading(
                "by step", [column("step 0", 0.1, used=False), column("step 4", 1)]
            ),
            statistic_name="gap",
            details={"codes": {"deep": [1, 2, 3]}, "rows": [{"a": 1}]},
        )
    ),
    "strange details": lambda: document(
        behaviour() | {"details": {"items": "none", "accuracy_by_wording": [1]}},
        relearning() | {"details": {"steps": [0, 2], "curves": {"unlearned": "gone"}}},
        axis("x", details={"curves": 3, "steps": ["a"], "deep": [[1], {"b": 2}]}),
    ),
}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.parts, self.silent = [], [], False
        self.feed(html)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        if not self.silent:
            self.parts.append(data)


def figures_of(html):
    found = re.search(r'id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def spoiled(value: Any) -> Any:
    """The document with every free text replaced by a hostile one."""
    kept = {"schema_version", "class", "status", "floor", "floor_kind"}
    kept |= {"sha256", "code_sha256"}
    known = ("behaviour", "decodability", "relearning")
    if isinstance(value, dict):
        return {
            key: each if key in kept or each in known else spoiled(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [spoiled(each) for each in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_renders_and_its_figures_are_plotly(name):
    import plotly.graph_objects as go

    given = DOCUMENTS[name]()
    validate_document(given)
    html = render(given)
    for figure in figures_of(html):
        go.Figure(figure)  # refuses a misspelt or misplaced property
    page = Page(html)
    for each in given["axes"]:
        assert each["name"] in page.text
        assert each["question"] in page.text
        for check in each["controls"]:
            assert check["name"] in page.text
    plots = [a for _, a in page.tags if (a.get("class") or "") == "plot"]
    assert [each["id"] for each in plots] == [
        f"plot-{number}" for number in range(1, len(plots) + 1)
    ]
    assert len(plots) == len(figures_of(html))
    assert all(each["aria-label"] for each in plots)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdict_comes_first(verdict):
    html = render(document(behaviour(), verdict=verdict))
    page = Page(html)
    word, _, meaning = VERDICTS[verdict]
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1
    assert ("section", "verdict") in [
        (tag, attrs.get("class"))
        for tag, attrs in page.tags
        if attrs.get("data-verdict") == verdict
    ]
    order = [word, meaning, "First reason.", "Where", "Evidence at a glance"]
    spots = [page.text.index(each) for each in order]
    assert spots == sorted(spots)


def test_first_view_says_floor_layers_entities_profile_and_seed():
    text = Page(render(whole())).text.split("Evidence at a glance")[0]
    for each in (
        "resid.3\u2013resid.5",
        "never-taught items",
        "12 (24 facts)",
        "quick, seed 7",
        "after, against before",
        "100 % before, 8 % now (floor 10 %)",
        "This may be said.",
        "That may not.",
        "Another candidate.",
    ):
        assert each in text


def test_hostile_texts_are_only_ever_text():
    given = spoiled(whole())
    given["axes"].append(spoiled(DOCUMENTS["unknown axis"]())["axes"][0])
    given["axes"][-1]["name"] += HOSTILE
    validate_document(given)
    html = render(given)
    page, calm = Page(html), Page(render(whole()))
    # Only elements and attributes of our own: nothing was smuggled in.
    ours = {(tag, name) for tag, attrs in calm.tags for name in attrs}
    assert {(tag, name) for tag, attrs in page.tags for name in attrs} <= ours
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in calm.tags}
    scripts = [[tag for tag, _ in each.tags].count("script") for each in (page, calm)]
    assert scripts == [3, 3]
    assert "<script>alert" not in html and "onerror=alert(2)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\u202e\x00\ud800-\udfff]", html)
    for figure in figures_of(html):
        drawn = json.dumps(figure)
        assert "<script" not in drawn and "<a href" not in drawn and "<img" not in drawn


def test_nothing_is_loaded_from_anywhere():
    page = Page(render(spoiled(whole())))
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            target = attrs.get(name)
            if target is not None:
                assert target.startswith(("#", "data:,")), (tag, target)
        assert tag not in ("iframe", "object", "embed", "base", "form")
    policy = next(
        attrs["content"]
        for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy and "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_same_document_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    given = whole()
    before = json.dumps(given)
    pages = [write_report(root, given) for root in (first, second)]
    assert pages[0] == first / "report.html"
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert json.dumps(given) == before
    shuffled = json.loads(json.dumps(given, sort_keys=True))
    assert render(shuffled) == render(given)


def test_numbers_are_rounded_and_corrected_p_is_the_rules():
    text = Page(render(whole())).text
    assert not re.search(r"\d\.\d{5,}", text)
    assert "0.012 Holm over axes" in text
    assert "0.88 this axis alone" in text
    assert "controls passed 1/3" in text
    assert "1 min 22 s" in text


def test_failed_controls_are_marked_and_optional_ones_said_to_be():
    text = Page(render(document(decodability()))).text
    assert text.count("\u2715 failed") == 2 and text.count("\u2713 passed") == 1
    assert "one that is only shown" in text and "does not silence the axis" in text


def test_said_answers_come_first_and_long_lists_are_cut():
    given = document(behaviour())
    items = given["axes"][0]["details"]["items"]
    text = Page(render(given)).text
    assert text.index("Oslo") < text.index("Rome")
    items += [items[0]] * MOST_ITEMS
    page = Page(render(given))
    assert sum("data-said" in attrs for _, attrs in page.tags) == MOST_ITEMS
    assert f"The first {MOST_ITEMS} of {MOST_ITEMS + 2}" in page.text


def test_damage_and_identity_are_said():
    broken = document(
        verdict="damaged",
        utility={
            "shares": {"retain accuracy": 0.12},
            "damage": ["retain accuracy is 12 %"],
        },
    )
    assert "under it" in Page(render(broken)).text
    assert "retain accuracy is 12 %" in Page(render(broken)).text
    text = Page(render(DOCUMENTS["identical"]())).text
    assert "both checkpoints have exactly the same weights" in text
    assert "No warnings." in Page(render(DOCUMENTS["nothing measured"]())).text


def test_a_role_wears_one_colour_in_every_figure():
    told = wording_plot(behaviour())
    assert told is not None
    curves = relearning_plots(relearning())
    layers = reading_plot(decodability()["readings"][0], True)
    moved = weights_plot(whole()["preflight"]["weight_difference"]["layers"])
    likely = logprob_plot(behaviour()["details"]["items"])
    assert layers is not None and moved is not None and likely is not None
    bars = {trace["name"]: trace["marker"]["color"] for trace in told.data}
    assert bars == {"original": "var(--original)", "candidate": "var(--candidate)"}
    assert bars == {trace["name"]: trace["marker"]["color"] for trace in likely.data}
    lines = {trace["name"]: trace["line"].get("color") for trace in layers.data}
    assert lines.pop("") is None
    assert lines == bars | {"floor": "var(--floor)"}
    asked = [plot.data[0]["line"]["color"] for plot in curves]
    wanted = ["candidate", "candidate", "planted", "planted", "reference", "reference"]
    assert asked == [f"var(--{role})" for role in wanted]
    assert {plot.data[1]["line"]["color"] for plot in curves} == {"var(--floor)"}
    assert moved.data[0]["marker"]["color"] == "var(--candidate)"


def test_unused_layers_are_greyed():
    plot = reading_plot(decodability()["readings"][0], True)
    assert plot is not None
    assert [(shape["x0"], shape["x1"]) for shape in plot.layout["shapes"]] == [
        (-0.5, 0.5)
    ]
    assert plot.data[-1]["marker"]["symbol"][:2] == ["circle-open", "circle"]
    assert plot.rows[0][:2] == ("embed", "no")


def test_histogram_counts_every_answer_once():
    items = [
        {"logprob_original": -0.0, "logprob_unlearned": -1e4},
        {"logprob_original": -0.5, "logprob_unlearned": -3.0},
        {"logprob_original": -1.0, "logprob_unlearned": -2.999},
    ]
    plot = logprob_plot(items)
    assert plot is not None
    assert [sum(trace["y"]) for trace in plot.data] == [3, 3]
    assert plot.rows[0][0] == "below \u221220" and plot.rows[0][3] == "1"


def test_small_texts():
    assert percent(0.0833333) == "8\u202f%" and percent(0.9996) == "> 99.9\u202f%"
    assert percent(0.996) == "99.6\u202f%" and percent(0.0) == "0\u202f%"
    assert percent(0.0004) == "< 0.1\u202f%" and percent(-0.04) == "\u22124\u202f%"
    assert p_text(0.0005) == "< 0.001" and p_text(0.8805597201) == "0.88"
    assert p_text(0.0015) == "0.0015" and p_text(None) == "\u2014"
    assert interval([0.02, 0.3], True) == "[2, 30\u202f%]"
    assert interval([-0.1, 0.3], False) == "[\u22120.10, 0.30]"
    assert places(["embed", "resid.1", "resid.2", "mlp.3", "resid.9"]) == (
        "embed, resid.1\u2013resid.2, mlp.3, resid.9"
    )
    assert in_plot("<b>&") == "&lt;b&gt;&amp;"
    assert clean("a\u202eb") == "a\ufffdb" and len(clean("x" * 10_000)) < 2100
    assert flat({"a": {"b": [1, 2.34567]}, "c": []}) == [
        ("a.b", "1, 2.35"),
        ("c", "none"),
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("name", ["whole", "hostile"])
def test_browser_draws_every_figure_without_complaint(tmp_path, name):
    given = whole() if name == "whole" else spoiled(whole())
    path = write_report(tmp_path, given)
    done = subprocess.run(
        [
            CHROMIUM or "",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=3000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    drawn = done.stdout.count('class="plot js-plotly-plot"')
    assert drawn == len(figures_of(path.read_text(encoding="utf-8"))) > 0
    assert "var(--" not in "".join(re.findall(r"<svg.*?</svg>", done.stdout, re.DOTALL))
