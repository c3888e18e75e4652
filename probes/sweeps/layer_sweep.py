"""Result of a probe sweep over sites."""

import html
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evidence.display.html_table import frame_html
from probes.solvers.uncertified import UncertifiedFit


@dataclass(frozen=True, eq=False, repr=False)
class LayerSweep:
    """Held-out skill of one probe at every site, with its controls.

    Attributes:
        target: Name of the predicted label.
        sites: (site,) names.
        scheme: Name of the cross-validation scheme.
        classes: (class,) labels in the order of the scores.
        scores: (site, class or 1, row) held-out decision values; NaN where no fold scores the row,
            0 at constant sites.
        auc: (site,) pooled over rows; mean of one-vs-rest for several classes.
        auc_interval: (site, 2) 95 % bootstrap interval over whole groups.
        accuracy: (site,).
        accuracy_interval: (site, 2).
        log_loss: (site,) nats; NaN for probes whose scores are not log-odds.
        log_loss_interval: (site, 2).
        null_auc: (permutation, site) AUC of the same sweep with permuted labels.
        p_site: (site,) p-value of each site against the null's maximum over sites.
        p_value: p-value of the best site against that maximum.
        control_auc: (site,) AUC on the control task, or NaN.
        selectivity: (site,) ``auc`` minus ``control_auc``.
        constant: (site,) True where all rows are equal.
        penalty: (site, fold) penalty chosen inside each fold, NaN without a choice.
        certificate: (site, fold) relative distance to the optimum, 0 for closed forms.
        coef: (site, fold, class or 1, d) in raw activation units, or None.
        intercept: (site, fold, class or 1), or None.
        unscored: Number of rows that no fold scored.
        uncertified: Fits that are not certified to be at their optimum, those of permutations and
            of the control task included; their scores are included.

    Examples:
        >>> found = exhume.sweep(states, cities == "Lisbon", groups=people, cv=5)
        >>> found
        LayerSweep('label', 2 sites, 5-fold by group (76 groups): AUC 1.00 to 1.00)
        >>> found.plot().layout.yaxis.title.text
        'held-out AUC'
    """

    target: str
    sites: tuple[str, ...]
    scheme: str
    classes: NDArray
    scores: NDArray[np.float64]
    auc: NDArray[np.float64]
    auc_interval: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    accuracy_interval: NDArray[np.float64]
    log_loss: NDArray[np.float64]
    log_loss_interval: NDArray[np.float64]
    null_auc: NDArray[np.float64]
    p_site: NDArray[np.float64]
    p_value: float
    control_auc: NDArray[np.float64]
    selectivity: NDArray[np.float64]
    constant: NDArray[np.bool_]
    penalty: NDArray[np.float64]
    certificate: NDArray[np.float64]
    coef: NDArray[np.float64] | None = field(default=None)
    intercept: NDArray[np.float64] | None = field(default=None)
    unscored: int = 0
    uncertified: tuple[UncertifiedFit, ...] = ()

    def __repr__(self) -> str:
        # The best site is not named: it would be chosen on the rows it is scored on.
        auc = self.auc[~self.constant]
        range_text = f"AUC {auc.min():.2f} to {auc.max():.2f}" if len(auc) else "no signal"
        text = f"LayerSweep({self.target!r}, {len(self.sites)} sites, {self.scheme}"
        text += f": {range_text}"
        if len(self.null_auc):
            null_95 = np.quantile(self.null_auc.max(1), 0.95)
            text += f", null max {null_95:.2f}, p = {self.p_value:.2g}"
        if self.constant.any():
            text += f", {int(self.constant.sum())} constant"
        if self.uncertified:
            text += f", {len(self.uncertified)} fits uncertified"
        return text + ")"

    def _repr_html_(self) -> str:
        columns = ["site", "auc", "auc_low", "auc_high", "accuracy", "control_auc", "p"]
        return frame_html(repr(self), self.to_frame().reindex(columns=columns))

    def to_frame(self) -> pd.DataFrame:
        """One row a site, in plain Python numbers."""
        uncertified_sites = [fit.site for fit in self.uncertified]
        columns = {
            "target": [self.target] * len(self.sites),
            "site": list(self.sites),
            "auc": self.auc.tolist(),
            "auc_low": self.auc_interval[:, 0].tolist(),
            "auc_high": self.auc_interval[:, 1].tolist(),
            "accuracy": self.accuracy.tolist(),
            "accuracy_low": self.accuracy_interval[:, 0].tolist(),
            "accuracy_high": self.accuracy_interval[:, 1].tolist(),
            "log_loss": self.log_loss.tolist(),
            "log_loss_low": self.log_loss_interval[:, 0].tolist(),
            "log_loss_high": self.log_loss_interval[:, 1].tolist(),
            "control_auc": self.control_auc.tolist(),
            "selectivity": self.selectivity.tolist(),
            "p": self.p_site.tolist(),
            "constant": self.constant.tolist(),
            "uncertified": [uncertified_sites.count(site) for site in self.sites],
        }
        return pd.DataFrame(columns)

    def plot(self):
        """Plotly figure: AUC by site with its interval, null and control task."""
        import plotly.graph_objects as go

        names, figure = [*map(html.escape, self.sites)], go.Figure()
        low, high = self.auc_interval.T
        figure.add_scatter(
            x=names + names[::-1],
            y=[*high.tolist(), *low[::-1].tolist()],
            fill="toself",
            line={"width": 0},
            name="95 % interval",
            opacity=0.3,
            hoverinfo="skip",
        )
        figure.add_scatter(x=names, y=self.auc.tolist(), name=html.escape(f"AUC, {self.target}"))
        if np.isfinite(self.control_auc).any():
            figure.add_scatter(x=names, y=self.control_auc.tolist(), name="control task")
        if len(self.null_auc):
            level = float(np.quantile(self.null_auc.max(1), 0.95))
            figure.add_hline(
                y=level, line_dash="dash", annotation_text="95 % of the null's maximum"
            )
        figure.add_hline(y=0.5, line_dash="dot")
        figure.update_layout(xaxis_title="site", yaxis_title="held-out AUC", title=self.scheme)
        return figure
