"""Gold grade: how much a model still holds, by relearning at every setting of a grid.

The forgotten entities are cut in two. One half is taught again, at several learning
rates and for several budgets, and the other half is asked; then the halves change
places. A model that holds the knowledge gets it back with what it is taught, one that
never held it has nothing to get back. The grade places the model between the twin that
never knew (0) and the original (1), each given the same teaching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from capture.checkpoints.open import Checkpoint
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.scoring.contrast import score_questions
from erasure.unlearning.training.loop import Evaluate, finetune_
from evidence.errors import InputError
from evidence.seeds import numpy_rng, stage_seed
from testbeds.edits.workbench import Workbench

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
BUDGETS = (3, 9, 27)


@dataclass(frozen=True)
class RelearningCurve:
    """What came back of the half not taught.

    Attributes:
        contrast: (rotation, rate, budget) how far each entity's own answer outranks the
            others' (``capture.scoring.contrast``); chance is 0.5.
        exact_match: The same shape, share of the answers the model says.
        contrast_before: ``contrast`` before any teaching, over both halves.
        exact_match_before: ``exact_match``, likewise.
    """

    contrast: np.ndarray
    exact_match: np.ndarray
    contrast_before: float
    exact_match_before: float

    @property
    def best(self) -> float:
        """Largest ``contrast`` over rates and budgets, the mean of both rotations."""
        return float(max(self.contrast.mean(0).max(), self.contrast_before))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "told": self.contrast.tolist(),
            "said": self.exact_match.tolist(),
            "told_before": self.contrast_before,
            "said_before": self.exact_match_before,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "RelearningCurve":
        """The inverse of ``to_dict``."""
        return cls(
            np.array(saved["told"]),
            np.array(saved["said"]),
            saved["told_before"],
            saved["said_before"],
        )


def halves(items: ItemSet, seed: int) -> tuple[tuple[ItemSet, ItemSet], ...]:
    """Taught and asked half, and the same the other way round."""
    names = items.entities
    if len(names) < 2:
        raise InputError(
            "a grade needs forgotten entities for two halves",
            expected="2 or more",
            got=str(len(names)),
        )
    order = numpy_rng(seed, "gold", "halves").permutation(len(names))
    first = items.of_entities([names[place] for place in order[: len(names) // 2]])
    second = items.of_entities([names[place] for place in order[len(names) // 2 :]])
    return (first, second), (second, first)


def measure_relearning(
    workbench: Workbench,
    checkpoint: Checkpoint,
    rates: Sequence[float] = RATES,
    budgets: Sequence[int] = BUDGETS,
) -> RelearningCurve:
    """Teach one half of the forgotten entities, ask the other, at every setting.

    Every wording is taught and asked. All rows are one batch, so the only choice left
    to chance is the cut, and that is the world's.
    """
    model = checkpoint.load(workbench.device)
    before = _asked(workbench, workbench.forget)(model)
    del model
    shape = (2, len(rates), len(budgets))
    told, said = np.zeros(shape), np.zeros(shape)
    every = int(np.gcd.reduce(budgets))
    for turn, (taught, asked) in enumerate(halves(workbench.forget, workbench.seed)):
        lesson, exam = workbench.all_rows(taught), _asked(workbench, asked)
        for column, rate in enumerate(rates):
            log = finetune_(
                checkpoint.load(workbench.device),
                lesson,
                lr=rate,
                steps=max(budgets),
                seed=stage_seed(workbench.seed, "gold") % 2**31,
                evaluate=exam,
                every=every,
            )
            at = {int(row["step"]): row for row in log.rows if "told" in row}
            for place, budget in enumerate(budgets):
                # A run that diverged ends early: what came last stands.
                row = at.get(budget, at[max(at)])
                told[turn, column, place] = row["told"]
                said[turn, column, place] = row["said"]
    return RelearningCurve(told, said, before["told"], before["said"])


def grade(
    model: RelearningCurve, twin: RelearningCurve, original: RelearningCurve
) -> float:
    """Between 0, the twin's, and 1, the original's.

    Each is given its own best setting, so that choosing the best favours none.

    Raises:
        InputError: the original gets back no more than the twin does.
    """
    span = original.best - twin.best
    if span < 0.2:
        raise InputError(
            "this world cannot grade: its original gets back hardly more than its twin",
            expected="0.2 or more apart",
            got=f"{original.best:.2f} and {twin.best:.2f}",
        )
    return float(np.clip((model.best - twin.best) / span, 0.0, 1.0))


def _asked(ground: Workbench, items: ItemSet) -> Evaluate:
    """Asks a model about ``items`` in every wording."""
    questions = build_questions(items, 1 + len(items.items[0].paraphrases))
    rows = questions.encoded(ground.tokenizer)

    def exam(model: nn.Module) -> dict[str, float]:
        heard = score_questions(model, questions, rows)
        return {
            "told": float(heard.contrast.mean()),
            "said": float(heard.exact_match.mean()),
        }

    return exam
