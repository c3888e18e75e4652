"""The report of an audit: one offline HTML page made from ``audit.json``.

Everything in the document is untrusted: strings are cleaned and escaped (``templates``), charts
are data and never code, and a content security policy forbids the page to load anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from audits.core.preflight import LIMITS
from audits.report import formatting as write
from audits.report.axis_charts import (
    logprob_plot,
    reading_plot,
    relearning_plots,
    weights_plot,
    wording_plot,
)
from audits.report.charts import Plot, residual_bar
from audits.report.depth_charts import component_rows, depth_plot
from audits.report.glossary import (
    BEHAVIOUR,
    CLASS_BEHAVIOUR,
    CLASS_TERMS,
    CLASS_VERDICTS,
    FLOORS,
    IMAGE_FLOORS,
    SCORES,
    STATUSES,
    TERMS,
    VERDICTS,
    units,
)
from audits.report.restoration_charts import restoration_plots
from audits.report.templates import rendering_errors, style_sheet, template
from capture.network.untouched import Untouched
from evidence.storage.files import write_atomic
from evidence.typed_json import from_json

# Maximum number of items listed: more rows make a browser slow.
MAX_ITEMS = 1000
FRONT = "front_transplant"
"""The axis that is to find the suppression planted early."""


def write_report(root: Path, document: dict[str, object]) -> Path:
    """Write ``report.html`` beside ``audit.json``.

    Args:
        root: Output folder of the audit.
        document: A document that fits the schema of ``audit.json``.

    Returns:
        The path of the page.

    Raises:
        InputError: the document cannot be rendered; nothing is written.
    """
    path = root / "report.html"
    with rendering_errors(str(root / "audit.json")):
        page = render(document)
    write_atomic(path, page)
    return path


def render(document: Mapping[str, Any]) -> str:
    """The page as text; deterministic."""
    from plotly.offline import get_plotlyjs

    figures: list[dict[str, object]] = []

    def number_plot(plot: Plot | None) -> dict[str, object] | None:
        """Number a chart; its data go to the end of the page."""
        if plot is None:
            return None
        figures.append({"data": plot.data, "layout": plot.layout})
        return {"number": len(figures), "plot": plot}

    rule = document["config"].get("rule", {})
    margin = rule.get("margin") or 0.0
    images = document["modality"] == "images"
    axes = [
        _axis(
            _with_floor_names(axis, document["preflight"].get("asking")),
            number,
            document["verdict"]["adjusted_p"],
            margin,
            number_plot,
            images,
        )
        for number, axis in enumerate(document["axes"], 1)
    ]
    return template("report.html.j2").render(
        css=style_sheet(),
        plotly=Markup(get_plotlyjs()),
        verdict=_verdict(document),
        facts=_facts(document),
        axes=axes,
        preflight=_preflight(document["preflight"], rule, number_plot)
        | {"planted_rows": _planted_rows(document)},
        manifest=document["manifest"],
        config=write.flatten_settings(document["config"]),
        runtime=document["runtime"],
        words=CLASS_TERMS if images else TERMS,
        scale=residual_bar(None, None, margin),
        margin=margin,
        figures=figures,
        statuses=STATUSES,
    )


def _verdict(document: Mapping[str, Any]) -> dict[str, object]:
    """The verdict block with its word, symbol and meaning."""
    verdict = document["verdict"]
    word, symbol, meaning = VERDICTS[verdict["class"]]
    images = document["modality"] == "images"
    if images:
        meaning = CLASS_VERDICTS.get(verdict["class"], meaning)
    if document["preflight"]["identical_weights"]:
        meaning = "Nothing was changed: both checkpoints have exactly the same weights."
    chances = verdict["probabilities"] or {}
    return {
        **verdict,
        "word": word,
        "symbol": symbol,
        "meaning": meaning,
        "top": [_readable(reason) for reason in verdict["reasons"][:3]],
        "rest": [_readable(reason) for reason in verdict["reasons"][3:]],
        "chances": [
            (VERDICTS[name][0] if name in VERDICTS else name, write.percent(chance))
            for name, chance in sorted(chances.items(), key=lambda pair: -pair[1])
        ],
        "outside": verdict["calibration"]["outside"],
        "uncalibrated": images,
    }


def _readable(sentence: str) -> str:
    """A reason with status codes replaced by words."""
    for code, (_, words, _) in STATUSES.items():
        sentence = sentence.replace(f": {code}.", f": {words}.")
    return sentence


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key facts beside the reasons: (term, value)."""
    verdict, counts = document["verdict"], document["preflight"]["known"]
    behaviour, config = document["behaviour"], document["config"]
    entities = counts.get("forget_entities")
    if entities is None:
        entities = max((axis["n_entities"] for axis in document["axes"]), default=0)
    where = write.join_sites(verdict["where"]) or _behind_the_front(document)
    if not where:
        where = {
            "suppressed": "no layer named; it came back under attack",
            "not_unlearned": "at the output",
            "deleted": "found in no layer",
        }.get(verdict["class"], "no layer named")
    images = document["modality"] == "images"
    floors = IMAGE_FLOORS if images else FLOORS
    facts = [("Where", where), ("Floor", floors[verdict["floor"]])]
    saved = document["preflight"]["weight_difference"].get("untouched")
    if saved is not None and not document["preflight"]["identical_weights"]:
        words = from_json(Untouched, saved).words
        same = f"{words}: the original's, bit for bit" if words else "no part; every block changed"
        facts.append(("Not edited", same))
    if not images:
        facts.append(("Asked", asked_in_words(document["preflight"].get("asking"))))
    if behaviour["forget_original"] is not None:
        before, after, floor = (
            write.percent(behaviour[f"forget_{name}"])
            for name in ("original", "unlearned", "floor")
        )
        term = "Images predicted as the class" if images else "Answers given"
        facts.append((term, f"{before} before, {after} now (floor {floor})"))
    shares = document["preflight"]["utility"]["shares"]
    if "retain accuracy" in shares:
        retain_accuracy = write.percent(shares["retain accuracy"])
        term = "Retain images" if images else "Retain facts"
        facts.append((term, f"{retain_accuracy} of the original's"))
    items = counts.get("forget_items")
    facts_too = items is not None and not images
    count = f"{entities}" + (f" ({items} facts)" if facts_too else "")
    sources = {
        model["role"]: write.last_part(model["source"]) for model in document["manifest"]["models"]
    }
    models = f"{sources.get('unlearned', '?')}, against {sources.get('original', '?')}"
    return [
        *facts,
        ("Candidate", models),
        ("Images of the class" if images else "Forgotten entities", count),
        ("Profile", f"{config['profile']}, seed {config['seed']}"),
    ]


def _behind_the_front(document: Mapping[str, Any]) -> str:
    """Where the blocks are that gave the answers after the original's front; "" if none did."""
    for axis in document["axes"]:
        if axis["name"] == FRONT and axis["status"] == "retained" and axis["readings"]:
            where = axis["readings"][0]["where"]
            return f"in the blocks behind {'the embedding' if where == 'embed' else where}"
    return ""


def _with_floor_names(
    axis: Mapping[str, Any], asking: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The axis, with the floor of other entities' answers called by its name."""
    if asking is None or asking["floor"] != "permuted":
        return axis
    renamed = [
        {
            **reading,
            "name": reading["name"].replace("never-taught items", "answers of others"),
            "floor_kind": "permuted" if reading["floor_kind"] == "never_taught" else "reference",
        }
        for reading in axis["readings"]
    ]
    return {**axis, "readings": renamed}


def asked_in_words(asking: Mapping[str, Any] | None) -> str:
    """How items were asked and answers scored, in a phrase."""
    if asking is None:
        return "as plain text, scored by exact match"
    way = "in the chat template" if asking["chat"] else "as plain text"
    if asking["bos"]:
        way += " after the beginning-of-sequence token"
    return f"{way}, scored by {SCORES[asking['scorer']]}"


def _axis(
    axis: Mapping[str, Any],
    number: int,
    adjusted: Mapping[str, float],
    margin: float,
    number_plot,
    images: bool,
) -> dict[str, object]:
    """One axis: its table rows, charts, controls and remaining details."""
    symbol, status_words, meaning = STATUSES[axis["status"]]
    if axis["name"] == "behaviour":
        meanings = CLASS_BEHAVIOUR if images else BEHAVIOUR
        meaning = meanings.get(axis["status"], meaning)
    label = axis["statistic_name"]
    details = axis["details"]
    plots: list[dict[str, object] | None] = []
    items: list[Mapping[str, Any]] = []
    used: set[str] = set()
    if axis["name"] == "behaviour":
        items = _items(details.get("items"))
        plots = [number_plot(wording_plot(axis)), number_plot(logprob_plot(items))]
        used = {"items", "accuracy_by_wording"}
    curves = relearning_plots(axis)
    plots += [number_plot(plot) for plot in curves]
    if curves:
        used |= {"curves", "steps"}
    else:
        plots += [
            number_plot(reading_plot(reading, reading["is_share"])) for reading in axis["readings"]
        ]
    restoration = restoration_plots(axis)
    plots += [number_plot(plot) for plot in restoration]
    if restoration:
        used |= {"curve"}
    depth = depth_plot(axis)
    if depth is not None:
        plots.append(number_plot(depth))
        used |= {"losses", "loss_items"}
    other_details = {name: value for name, value in details.items() if name not in used}
    controls = axis["controls"]
    return {
        **axis,
        "id": f"axis-{number}",
        "symbol": symbol,
        "status_words": status_words,
        "status_meaning": meaning,
        "units": units(axis["n_entities"], images),
        "rows": [
            _row(reading, axis["name"], label, adjusted, margin) for reading in axis["readings"]
        ],
        "plots": [plot for plot in plots if plot is not None],
        "controls": [{**control, "measured": _measured(control)} for control in controls],
        "passed": sum(control["passed"] for control in controls),
        "items": items[:MAX_ITEMS],
        "items_in_all": len(items),
        "rest": write.flatten_settings(other_details) if other_details else [],
    }


def _row(
    reading: Mapping[str, Any], axis: str, label: str, adjusted: Mapping[str, float], margin: float
) -> dict[str, object]:
    """One reading as text, with its residual bar."""
    corrected = adjusted.get(f"{axis}.{reading['metric']}") if reading["primary"] else None
    low, high = reading["residual_interval"]
    as_percent = reading["is_share"]
    return {
        "name": reading["name"],
        "label": reading["unit"] or label or "figure",
        "where": reading["where"],
        "figure": write.figure(reading["statistic"], as_percent),
        "interval": write.interval(reading["interval"], as_percent),
        "floor": write.figure(reading["floor"], as_percent),
        "floor_kind": reading["floor_kind"].replace("_", "-"),
        "ceiling": write.figure(reading["ceiling"], as_percent),
        "residual": write.plain(reading["residual"]),
        "residual_interval": f"[{write.plain(low)}, {write.plain(high)}]",
        "bar": residual_bar(reading["residual"], (low, high), margin),
        "p": write.p_text(reading["p_value"] if corrected is None else corrected),
        "holm": corrected is not None,
        "p_column": write.p_text(reading["p_value"]),
        "p_below": write.p_text(reading["p_below"]),
        "smallest_p": write.p_text(reading["smallest_p"]),
    }


def _measured(control: Mapping[str, Any]) -> str:
    """A control's figure."""
    p_value = control["kind"] == "p_value"
    return f"p {write.p_text(control['value'])}" if p_value else write.plain(control["value"])


def _items(saved: Any) -> list[Mapping[str, Any]]:
    """Items of the behaviour axis, those still answered first."""
    rows = saved if isinstance(saved, list) else []
    complete_rows = [
        row
        | {
            "before": write.plain(row.get("logprob_original"), 1),
            "after": write.plain(row.get("logprob_unlearned"), 1),
            "given": bool(row.get("given", row.get("exact_match"))),
            "said": row.get("said"),
        }
        for row in rows
        if isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in ("prompt", "answer"))
    ]
    return sorted(complete_rows, key=lambda row: not row["given"])


def _preflight(
    preflight: Mapping[str, Any], rule: Mapping[str, Any], number_plot
) -> dict[str, object]:
    """Utility bars, weight change, free text and warnings."""
    shares = preflight["utility"]["shares"]
    top = 1.25
    bars = []
    for name, share in sorted(shares.items()):
        limit = rule.get(LIMITS.get(name, "utility"))
        bars.append(
            {
                "name": name,
                "share": write.percent(share),
                "limit": write.percent(limit),
                "width": round(200 * min(max(share, 0.0), top) / top, 1),
                "limit_at": round(200 * limit / top, 1) if limit else None,
                "full_at": round(200 / top, 1),
                "under": limit is not None and share < limit,
                "beyond": share > top,
            }
        )
    return {
        **preflight,
        "bars": bars,
        "change": write.small(float(preflight["weight_difference"]["relative"])),
        "weights": number_plot(weights_plot(preflight["weight_difference"]["layers"])),
        "components": component_rows(preflight["weight_difference"].get("components")),
        "texts": _texts(preflight.get("free_text") or {}),
        "known_rows": [
            (name.replace("_", " "), write.small(count))
            for name, count in sorted(preflight["known"].items())
        ],
    }


def _planted_rows(document: Mapping[str, Any]) -> list[dict[str, object]]:
    """The planted suppressions, late and early, each with the axes that are to find it."""
    late = document["preflight"].get("planted")
    early = next(
        (axis["details"].get("planted") for axis in document["axes"] if axis["name"] == FRONT), None
    )
    found: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for axis in document["axes"]:
        for control in axis["controls"]:
            if control["id"] == "planted":
                found[axis["name"] == FRONT].append(
                    {"axis": axis["name"], "passed": control["passed"]}
                )
    images = document["modality"] == "images"
    first = "patch embedding and first block" if images else "embedding of the forgotten names"
    return [
        {
            "name": name,
            "where": where,
            "forget": write.percent(made["forget"]),
            "retain": write.percent(made["retain"]),
            "axes": found[is_early],
        }
        for name, where, made, is_early in (
            ("late", "last block and output layer", late, False),
            ("early", first, early, True),
        )
        if isinstance(made, dict) and {"forget", "retain"} <= made.keys()
    ]


def _texts(free: Mapping[str, Any]) -> Sequence[tuple[Any, Any, Any]]:
    """Prompt, the original's continuation, the candidate's continuation."""
    columns = [free.get(name) for name in ("prompts", "original", "unlearned")]
    if not all(isinstance(column, list) for column in columns):
        return []
    return list(zip(*(column or [] for column in columns), strict=False))
