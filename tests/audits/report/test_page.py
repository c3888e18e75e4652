"""The page: complete, offline, safe against hostile texts, the same every time."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from audits.report.page import MAX_ITEMS, VERDICTS, render, write_report
from audits.run.document import validate_document
from tests.helpers.audit_documents import (
    DOCUMENTS,
    HOSTILE,
    behaviour,
    decodability,
    document,
    spoiled,
    whole,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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


def test_probabilities_come_with_what_they_are_worth():
    given = document(behaviour())
    page = render(given)
    assert "Suppressed 91" in page and "unlike any of those models" in page
    given["verdict"]["calibration"]["outside"] = []
    assert "unlike any of those models" not in render(given)
    given["verdict"]["probabilities"] = None
    assert "No probability is given" in render(given)


def test_hostile_texts_are_only_ever_text():
    given = spoiled(whole())
    given["axes"].append(spoiled(DOCUMENTS["unknown axis"]())["axes"][0])
    given["axes"][-1]["question"] += HOSTILE
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


def test_given_answers_come_first_and_long_lists_are_cut():
    given = document(behaviour())
    items = given["axes"][0]["details"]["items"]
    text = Page(render(given)).text
    assert text.index("Oslo") < text.index("Rome")
    items += [items[0]] * MAX_ITEMS
    page = Page(render(given))
    assert sum("data-given" in attrs for _, attrs in page.tags) == MAX_ITEMS
    assert f"The first {MAX_ITEMS} of {MAX_ITEMS + 2}" in page.text


def test_damage_and_identity_are_said():
    broken = document(
        verdict="damaged",
        utility={"shares": {"retain accuracy": 0.12}, "damage": ["retain accuracy is 12 %"]},
    )
    assert "under it" in Page(render(broken)).text
    assert "retain accuracy is 12 %" in Page(render(broken)).text
    text = Page(render(DOCUMENTS["identical"]())).text
    assert "both checkpoints have exactly the same weights" in text
    assert "No warnings." in Page(render(DOCUMENTS["nothing measured"]())).text


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
