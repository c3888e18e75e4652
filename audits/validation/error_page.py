"""Error rates as one offline page: confusion, residuals, reliability, coverage."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from audits.validation.error_rates import STATES, VERDICTS, Case, confidences, confusion
from audits.validation.trials import FLOORS
from evidence.calibration_metrics import reliability, risk_coverage_curve

COLORS = dict(zip(FLOORS, ("#1f6feb", "#d97706"), strict=True))


def page(cases: Sequence[Case], title: str) -> str:
    """The page as HTML that needs no network.

    Args:
        cases: Audits of models of known state.
    """
    plot = make_subplots(
        2,
        2,
        subplot_titles=(
            "Audits by true state and verdict",
            "Mean residual inside: 0 never knew, 1 knows",
            "Probabilities: said, and true",
            "Likeliest state wrong, among the surest audits",
        ),
        horizontal_spacing=0.14,
        vertical_spacing=0.14,
    )
    _confusion(plot, cases)
    _residuals(plot, cases)
    stated = confidences(cases)
    if stated[0]:
        _reliability(plot, *stated)
        _coverage(plot, *stated)
    plot.update_layout(title=title, template="plotly_white", height=950)
    return plot.to_html(include_plotlyjs=True, full_html=True)


def _confusion(plot: go.Figure, cases: Sequence[Case]) -> None:
    table = [list(row.values()) for row in confusion(cases).values()]
    heat = go.Heatmap(
        z=table,
        x=[name.replace("_", " ") for name in VERDICTS],
        y=[name.replace("_", " ") for name in STATES],
        text=table,
        texttemplate="%{text}",
        colorscale="Blues",
        showscale=False,
    )
    plot.add_trace(heat, 1, 1)
    plot.update_yaxes(autorange="reversed", title="true state", row=1, col=1)
    plot.update_xaxes(title="verdict", row=1, col=1)


def _residuals(plot: go.Figure, cases: Sequence[Case]) -> None:
    for floor in FLOORS:
        group = [c for c in cases if c.floor == floor and c.residual is not None]
        dots = go.Scatter(
            x=[c.residual for c in group],
            y=[c.kind.replace("_", " ") for c in group],
            mode="markers",
            marker={"size": 9, "color": COLORS[floor]},
            name=f"floor: {floor.replace('_', ' ')}",
        )
        plot.add_trace(dots, 1, 2)
    plot.update_yaxes(dtick=1, tickfont={"size": 10}, row=1, col=2)


def _reliability(plot: go.Figure, confidence: list[float], right: list[bool]) -> None:
    bins = reliability(confidence, right)
    ideal = go.Scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": "#888", "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    dots = go.Scatter(
        x=[bin_.confidence for bin_ in bins],
        y=[bin_.right for bin_ in bins],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [bin_.interval[1] - bin_.right for bin_ in bins],
            "arrayminus": [bin_.right - bin_.interval[0] for bin_ in bins],
        },
        text=[f"n={bin_.n}" for bin_ in bins],
        mode="markers+text",
        textposition="middle left",
        marker={"size": 9, "color": "#333"},
        showlegend=False,
    )
    plot.add_trace(ideal, 2, 1)
    plot.add_trace(dots, 2, 1)
    plot.update_xaxes(title="mean probability stated", range=[0, 1.03], row=2, col=1)
    plot.update_yaxes(title="share true", range=[0, 1.03], row=2, col=1)


def _coverage(plot: go.Figure, confidence: list[float], right: list[bool]) -> None:
    coverage, wrong = risk_coverage_curve(confidence, right)
    curve = go.Scatter(
        x=coverage,
        y=wrong,
        mode="lines+markers",
        line={"color": "#333", "shape": "hv"},
        showlegend=False,
    )
    plot.add_trace(curve, 2, 2)
    plot.update_xaxes(title="share of audits kept", range=[0, 1.03], row=2, col=2)
    plot.update_yaxes(title="share wrong", rangemode="tozero", row=2, col=2)
