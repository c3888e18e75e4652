"""``exhume audit`` in Python: one call from two checkpoints to a verdict."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from audits.modalities.base import Sources
from audits.output.outputs import check_output_folder
from audits.run import document as result
from audits.run.pipeline import collect, start
from audits.verdict.rule import decide
from evidence.display.html_table import frame_html
from evidence.errors import printable
from evidence.progress import AUTO, Progress
from evidence.results import AxisResult
from evidence.storage.files import write_files_atomic
from evidence.storage.locks import run_lock
from evidence.storage.regular_files import as_path, is_folder

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Audit:
    """A finished audit.

    Attributes:
        path: Its output folder.
        document: The whole of ``audit.json``.

    Examples:
        >>> done = exhume.load("finished")
        >>> print(done.reasons[1])
        The candidate gives 0% of the forgotten answers (original 100%, floor 14%).
        >>> done.to_frame()[["axis", "status", "statistic", "floor", "ceiling"]].round(2)
                   axis    status  statistic  floor  ceiling
        0     behaviour    absent       0.00   0.14     1.00
        1     behaviour    absent       0.72   0.51     1.00
        2  decodability  retained       0.89   0.12     0.89
        3  decodability  retained       0.89   0.12     0.89
        >>> done.plot().layout.title.text
        'suppressed: residual of each reading'
    """

    path: Path
    document: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One of the five verdict classes."""
        return self.document["verdict"]["class"]

    @property
    def reasons(self) -> list[str]:
        """Reasons of the verdict, the strongest first."""
        return self.document["verdict"]["reasons"]

    @property
    def axes(self) -> dict[str, AxisResult]:
        """Axis results by name."""
        saved = self.document["axes"]
        return {axis["name"]: AxisResult.from_json(axis) for axis in saved}

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.path / result.REPORT

    def to_frame(self) -> pd.DataFrame:
        """One row an axis and reading."""
        rows = [
            {
                "axis": axis.name,
                "status": axis.status,
                "reading": reading.name,
                "statistic": reading.statistic,
                "floor": reading.floor,
                "ceiling": reading.ceiling,
                "residual": reading.residual,
                "residual_low": reading.residual_interval[0],
                "residual_high": reading.residual_interval[1],
                "p_value": reading.p_value,
                "where": reading.where,
            }
            for axis in self.axes.values()
            for reading in axis.readings
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [*self._heading(), *map(str, self.axes.values())]
        return "\n  ".join(map(printable, lines))

    def _repr_html_(self) -> str:
        columns = ["axis", "status", "reading", "statistic", "floor", "ceiling"]
        columns += ["residual", "residual_low", "residual_high", "p_value", "where"]
        frame = self.to_frame().reindex(columns=columns)
        return frame_html("\n".join(self._heading()), frame)

    def _heading(self) -> list[str]:
        return [f"Audit: {self.verdict} ({self.path})", *self.reasons[:2]]

    def plot(self) -> "go.Figure":
        """A Plotly figure of the residual of every reading, with its 90 % interval.

        0 is the floor (nothing was ever known), 1 the original.
        """
        import plotly.graph_objects as go

        frame = self.to_frame()
        pairs = zip(frame["axis"], frame["reading"], strict=True)
        names = [html.escape(f"{axis}: {reading}") for axis, reading in pairs]
        figure = go.Figure(
            go.Scatter(
                x=frame["residual"],
                y=names,
                mode="markers",
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": frame["residual_high"] - frame["residual"],
                    "arrayminus": frame["residual"] - frame["residual_low"],
                },
            )
        )
        figure.add_vline(x=0, line_dash="dot", annotation_text="floor")
        figure.add_vline(x=1, line_dash="dot", annotation_text="original")
        figure.update_layout(
            template="plotly_white",
            title=f"{self.verdict}: residual of each reading",
            xaxis_title="residual between floor and original, 90 % interval",
            yaxis={"autorange": "reversed"},
        )
        return figure


def audit(
    original: Any,
    unlearned: Any,
    forget: Any,
    retain: Any,
    out: Path | str,
    *,
    reference: Sequence[Any] = (),
    never_taught: Any = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    chat: str = "auto",
    system: str = "",
    scorer: str = "auto",
    base: Any = None,
    profile: str = "quick",
    axes: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = AUTO,
) -> Audit:
    """Decide whether knowledge was deleted from a model or only suppressed.

    Args:
        original: Model before unlearning: a folder, hub id, GGUF file, adapter or live model
            (see ``capture.checkpoints.open.open_checkpoint``).
        unlearned: The candidate, likewise.
        forget: Items that should be gone: a file or an ``ItemSet``; for an image classifier,
            images of one class: a folder with one folder per class, an .npz file or an
            ``ImageSet``.
        retain: Items that should still be known, likewise.
        out: Output folder; the same call resumes there.
        reference: Models retrained without the forget set, if any.
        never_taught: Items about entities, or images of classes, that no model saw; invented by
            default.
        tokenizer: For live models, which rarely have one attached.
        columns: Field of an item to column of the files, such as {"prompt": "text"}; by default
            the format is recognized.
        chat: Whether questions are asked in the tokenizer's chat template: "auto" (for chat
            models), "on" or "off".
        system: System prompt of the chat; the template's own by default.
        scorer: What counts as giving an answer: "exact", "contains", "rouge_l", "options",
            "passage", "truth_ratio", or "auto" to choose by the items.
        base: The model that adapters among the models were trained on, in place of the one
            that they name.
        profile: "quick", "standard" or "full".
        axes: Axes to run; those of the profile by default.
        seed: Seed of every random choice.
        device: "auto", "cpu", "cuda" or "mps".
        fresh: Replace another audit in ``out``.

    Raises:
        InputError: the inputs cannot be audited, or another run works in ``out``; no partial
            result is left.

    Examples:
        >>> done = exhume.audit("original", "unlearned", "forget.jsonl", "retain.jsonl", "an-audit",
        ...     never_taught="never_taught.jsonl", axes=["behaviour", "decodability"])
        >>> done.verdict
        'suppressed'
        >>> done.report.name
        'report.html'
    """
    from audits.report.page import render

    sources = Sources(
        original, unlearned, forget, retain, reference, never_taught, tokenizer, columns, base
    )
    settings = {
        "profile": profile,
        "axes": axes,
        "seed": seed,
        "device": device,
        "chat": chat,
        "system": system,
        "scorer": scorer,
    }
    root = as_path(out, "the output folder")
    check_output_folder(root)
    with run_lock(root):
        opened = start(sources, root, settings, fresh, progress)
        findings = collect(opened)
        verdict = decide(
            findings.axes,
            findings.damage,
            findings.identical,
            findings.floor,
            opened.run.config.rule,
            opened.modality.name,
            findings.untouched,
        )
        document = result.build_document(opened, findings, verdict)
        write_files_atomic(
            {
                root / result.AUDIT: result.document_text(document),
                root / result.REPORT: render(document),
            }
        )
    return Audit(root, document)


def load(out: Path | str) -> Audit:
    """Read a finished audit.

    Args:
        out: Its output folder, or the ``audit.json`` in it.

    Raises:
        InputError: there is none, or it was not written by an audit.

    Examples:
        >>> done = exhume.load("finished")
        >>> done.verdict
        'suppressed'
        >>> list(done.axes)
        ['behaviour', 'decodability']
    """
    path = as_path(out, "the audit")
    document = result.read_document(path)
    return Audit(path if is_folder(path) else path.parent, document)
