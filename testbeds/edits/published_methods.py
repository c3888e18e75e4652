"""Published unlearning methods by the recipes of their world."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from capture.scoring.answers import score_answers
from testbeds.edits.workbench import EditFunction, TextWorkbench, with_refusals
from testbeds.recipes import RECIPES


def published(method: str) -> EditFunction:
    """Edit function for a published method."""

    def make(bench: TextWorkbench) -> Iterator[nn.Module]:
        """A published method by the world's recipe."""
        forget = bench.all_rows(bench.forget)

        def evaluate(now: nn.Module) -> dict[str, float]:
            return {"forget": float(score_answers(now, forget).greedy.mean())}

        config = RECIPES["bios"][method].config
        refused = bench.all_rows(with_refusals(bench.forget)) if method == "dpo" else None
        yield bench.unlearned(
            replace(config, lr=bench.learning_rate(config.lr)),
            method,
            relabeled=refused or bench.wrong_answer_rows(bench.forget),
            novice=bench.all_rows(bench.never_taught),
            evaluate=None if config.stop_below is None else evaluate,
        )

    return make
