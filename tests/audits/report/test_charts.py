"""Figures and small texts of the report: one colour a role, nothing miscounted."""

from audits.report.axis_charts import (
    logprob_plot,
    reading_plot,
    relearning_plots,
    weights_plot,
    wording_plot,
)
from audits.report.depth_charts import depth_plot
from audits.report.formatting import (
    clean,
    flatten_settings,
    in_plot,
    interval,
    join_sites,
    p_text,
    percent,
)
from audits.report.restoration_charts import SHOWN, restoration_plots
from tests.helpers.audit_documents import behaviour, causal_depth, decodability, relearning, whole


def test_a_role_wears_one_colour_in_every_figure():
    wordings = wording_plot(behaviour())
    assert wordings is not None
    curves = relearning_plots(relearning())
    layers = reading_plot(decodability()["readings"][0], True)
    moved = weights_plot(whole()["preflight"]["weight_difference"]["layers"])
    likely = logprob_plot(behaviour()["details"]["items"])
    assert layers is not None and moved is not None and likely is not None
    bars = {trace["name"]: trace["marker"]["color"] for trace in wordings.data}
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
    assert [(shape["x0"], shape["x1"]) for shape in plot.layout["shapes"]] == [(-0.5, 0.5)]
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
    assert join_sites(["embed", "resid.1", "resid.2", "mlp.3", "resid.9"]) == (
        "embed, resid.1\u2013resid.2, mlp.3, resid.9"
    )
    assert in_plot("<b>&") == "&lt;b&gt;&amp;"
    assert clean("a\u202eb") == "a\ufffdb" and len(clean("x" * 10_000)) < 2100
    assert flatten_settings({"a": {"b": [1, 2.34567]}, "c": []}) == [
        ("a.b", "1, 2.35"),
        ("c", "none"),
    ]


def test_the_heat_map_has_a_row_an_item_and_a_column_a_layer():
    found = depth_plot(causal_depth())
    assert found is not None
    (trace,) = found.data
    assert trace["z"] == [[0.0, 0.1, 5.25], [0.0, -0.2, 6.5]]
    # Full colour is what a stranger's states lose.
    assert trace["zmax"] == 5.0
    assert found.head == ("item", "resid.0", "resid.1", "resid.2")
    assert len(found.rows) == 2
    assert depth_plot({"details": {}}) is None


def restoration(**details):
    strengths = (0.0, 1.0, 2.0)
    row = {name: [0.1, 0.05, 0.2] for name, *_ in SHOWN}
    curve = [row | {"strength": each} for each in strengths]
    curve[1] = curve[1] | {"steered": [0.8, 0.6, 0.9]}
    arms = {"as published": {"best": 0.0}, "state only": {"best": 0.95}}
    table = {
        "curve": {"unlearned": curve},
        "state_injection": {"roles": {"unlearned": {"arms": arms}}},
    }
    return {"name": "restoration", "details": table | details}


def test_restoration_is_drawn_over_strength_with_a_band_for_every_control():
    curve, bars = restoration_plots(restoration())
    bands = [trace for trace in curve.data if trace.get("fill") == "toself"]
    assert len(bands) == 4  # the change and its three controls
    assert bands[0]["fillcolor"] == "var(--candidate-soft)"
    assert {each["fillcolor"] for each in bands[1:]} == {"var(--band)"}
    assert bands[0]["y"][:3] == [0.2, 0.9, 0.2]
    assert [row[0] for row in curve.rows] == ["0.00", "1.00", "2.00"]
    assert "80" in curve.rows[1][1] and "at 1.00: 80" in curve.summary
    assert bars.data[0]["y"] == [0.0, 0.95] and "does not vote" in bars.title


def test_restoration_details_of_another_shape_give_no_figure():
    assert restoration_plots({"name": "circuit", "details": {}}) == []
    for odd in (3, {}, {"unlearned": [1, 2]}, {"unlearned": [{"strength": 1}] * 2}):
        assert len(restoration_plots(restoration(curve=odd))) == 1
    for odd in (None, {"roles": 3}, {"roles": {"unlearned": {"arms": {"a": 1}}}}):
        assert len(restoration_plots(restoration(state_injection=odd))) == 1
