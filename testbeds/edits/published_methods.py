"""Published unlearning methods by the recipes of their world."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from capture.scoring.answers import score_answers
from erasure.unlearning.run import unlearn_
from testbeds.edits.workbench import EditFunction, Workbench, with_refusals
from testbeds.recipes import RECIPES


def published(method: str) -> EditFunction:
    """Edit function for a published method."""

    def make(bench: Workbench) -> Iterator[nn.Module]:
        """A published method by the world's recipe."""
        model = bench.load_original()
        forget = bench.all_rows(bench.forget)

        def evaluate(now: nn.Module) -> dict[str, float]:
            return {"forget": float(score_answers(now, forget).greedy.mean())}

        config = RECIPES["bios"][method].config
        config = replace(config, lr=bench.learning_rate(config.lr))
        refusals = with_refusals(bench.forget) if method == "dpo" else None
        unlearn_(
            model,
            forget,
            bench.retain_rows(bench.retain),
            config,
            relabeled=bench.all_rows(refusals)
            if refusals
            else bench.wrong_answer_rows(bench.forget),
            novice=bench.all_rows(bench.never_taught),
            evaluate=None if config.stop_below is None else evaluate,
            seed=bench.training_seed(method),
        )
        yield model

    return make
