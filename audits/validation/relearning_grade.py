"""Relearning grade: how much a model still knows, by relearning over a grid of settings.

The forgotten entities are halved. One half is fine-tuned, at several learning rates and for
several numbers of steps, and the other half is evaluated; then the halves are swapped. A model
that holds the knowledge recovers the held-out half; a model that never held it has nothing to
recover. The grade places the model between the counterfactual retrain (0) and the original (1),
each under the same fine-tuning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from capture.checkpoints.open import Checkpoint
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.scoring.contrast import score_questions
from erasure.unlearning.training.loop import Evaluate, finetune_
from evidence.errors import InputError
from evidence.seeds import numpy_rng, stage_seed
from evidence.typed_json import Json, from_json
from testbeds.edits.workbench import TextWorkbench

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
BUDGETS = (3, 9, 27)


@dataclass(frozen=True)
class RelearningCurve:
    """Recovery of the held-out half.

    Attributes:
        contrast: (split, rate, budget) mean entity-answer contrast (``capture.scoring.contrast``);
            chance is 0.5.
        exact_match: (split, rate, budget) mean exact match.
        contrast_before: ``contrast`` before fine-tuning, over both halves.
        exact_match_before: ``exact_match`` before fine-tuning, over both halves.
    """

    contrast: np.ndarray
    exact_match: np.ndarray
    contrast_before: float
    exact_match_before: float

    @property
    def best(self) -> float:
        """Largest ``contrast`` over rates and budgets, averaged over both splits."""
        return float(max(self.contrast.mean(0).max(), self.contrast_before))

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready."""
        return {
            "told": self.contrast.tolist(),
            "said": self.exact_match.tolist(),
            "told_before": self.contrast_before,
            "said_before": self.exact_match_before,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Json]) -> "RelearningCurve":
        """The inverse of ``to_dict``."""
        return cls(
            np.array(saved["told"]),
            np.array(saved["said"]),
            from_json(float, saved["told_before"]),
            from_json(float, saved["said_before"]),
        )


def halves(items: ItemSet, seed: int) -> tuple[tuple[ItemSet, ItemSet], ...]:
    """(taught, held-out) halves of the entities, and the same swapped."""
    names = items.entities
    if len(names) < 2:
        raise InputError(
            "a grade needs forgotten entities for two halves",
            expected="2 or more",
            got=str(len(names)),
        )
    order = numpy_rng(seed, "gold", "halves").permutation(len(names))
    first = items.of_entities([names[index] for index in order[: len(names) // 2]])
    second = items.of_entities([names[index] for index in order[len(names) // 2 :]])
    return (first, second), (second, first)


def measure_relearning(
    workbench: TextWorkbench,
    checkpoint: Checkpoint,
    rates: Sequence[float] = RATES,
    budgets: Sequence[int] = BUDGETS,
) -> RelearningCurve:
    """Fine-tune one half of the forgotten entities and evaluate the other, at every setting.

    Every paraphrase is trained on and evaluated. All rows are one batch, so the only random
    choice is the halving, which the world's seed fixes.
    """
    model = checkpoint.load(workbench.device)
    before = _asked(workbench, workbench.forget)(model)
    del model
    shape = (2, len(rates), len(budgets))
    contrast, exact_match = np.zeros(shape), np.zeros(shape)
    every = int(np.gcd.reduce(budgets))
    for split, (train, held_out) in enumerate(halves(workbench.forget, workbench.seed)):
        training_rows, evaluate = workbench.all_rows(train), _asked(workbench, held_out)
        for rate_index, rate in enumerate(rates):
            log = finetune_(
                checkpoint.load(workbench.device),
                training_rows,
                lr=rate,
                steps=max(budgets),
                seed=stage_seed(workbench.seed, "gold") % 2**31,
                evaluate=evaluate,
                every=every,
            )
            by_step = {int(row["step"]): row for row in log.rows if "told" in row}
            for budget_index, budget in enumerate(budgets):
                # A diverged run ends early; its last evaluation counts.
                row = by_step.get(budget, by_step[max(by_step)])
                contrast[split, rate_index, budget_index] = row["told"]
                exact_match[split, rate_index, budget_index] = row["said"]
    return RelearningCurve(contrast, exact_match, before["told"], before["said"])


def grade(model: RelearningCurve, retrain: RelearningCurve, original: RelearningCurve) -> float:
    """Grade between 0, the counterfactual retrain's, and 1, the original's.

    Each model is given its own best setting, so taking the best favors none.

    Raises:
        InputError: the original recovers hardly more than the retrain.
    """
    span = original.best - retrain.best
    if span < 0.2:
        raise InputError(
            "this world gives no grade: its original recovers hardly more than its retrain",
            expected="0.2 or more apart",
            got=f"{original.best:.2f} and {retrain.best:.2f}",
        )
    return float(np.clip((model.best - retrain.best) / span, 0.0, 1.0))


def _asked(ground: TextWorkbench, items: ItemSet) -> Evaluate:
    """An evaluation of a model on ``items`` with every paraphrase."""
    questions = build_questions(items, 1 + len(items.items[0].paraphrases))
    rows = questions.encoded(ground.tokenizer)

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores = score_questions(model, questions, rows)
        return {"told": float(scores.contrast.mean()), "said": float(scores.exact_match.mean())}

    return evaluate
