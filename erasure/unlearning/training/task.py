"""An unlearning task: the rows of a model, and what a method may ask of them.

A method is written once against ``UnlearningTask``; ``TextTask`` and ``ImageTask`` implement it.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from capture.activations.hidden_states import module_output
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.logits import answer_logits
from capture.network.structure import blocks_and_after, model_device
from erasure.unlearning.training.loop import backward_mean, backward_nll, chunk_tokens
from erasure.unlearning.training.objectives import (
    count_scored,
    distillation,
    prediction_positions,
    sequence_logprobs,
    state_distance,
    token_logprobs,
)
from erasure.unlearning.training.parameters import Scope
from evidence.errors import InputError

Part = Literal["forget", "retain", "relabeled"]
"""Rows to forget, rows to keep, or the rows to forget with wrong answers."""
Supply = Literal["relabeled", "preferred", "novice"]
"""Further rows: wrong answers; preferred answers, row by row; an unknown entity, row by row."""
Term = Callable[[list[int]], float]
"""Adds the weighted gradient of a loss for some rows, and returns the unweighted loss."""


@dataclass(frozen=True)
class Teacher:
    """What a model is distilled towards or away from.

    Attributes:
        logits: Target logits for a padded batch of text, or for row numbers of images.
        temperature: Of the distillation loss, > 0.
    """

    logits: Callable[[Any], Tensor]
    temperature: float = 1.0


@dataclass(frozen=True)
class Losses:
    """Forget and retain terms of a method; None for a term that it does not have."""

    forget: Term | None
    retain: Term | None


class UnlearningTask(Protocol):
    """What a method may ask of a task.

    Functions with a ``weight`` add the gradient of ``weight`` times a mean loss and return the
    unweighted mean, over answer tokens for text and over images for images. ``rows`` are row
    numbers of a part.
    """

    modality: ClassVar[str]
    adapters: ClassVar[bool]

    @property
    def model(self) -> nn.Module:
        """The model in training."""
        ...

    def count(self, part: Part) -> int:
        """Number of rows."""
        ...

    def check_supply(self, supply: Supply, method: str) -> None:
        """Check that there are the further rows that a method needs."""
        ...

    def check_scored(self, part: Part) -> None:
        """Check that every row has an answer to score."""
        ...

    def nll(self, part: Part, rows: list[int], weight: float) -> float:
        """Negative log-likelihood of the answers, in nats."""
        ...

    def logprob_loss(
        self, part: Part, rows: list[int], loss: Callable[[Tensor], Tensor], weight: float
    ) -> float:
        """A loss of the answers' log-probabilities: of tokens for text, of images for images."""
        ...

    def teacher(self, source: nn.Module, part: Part, temperature: float = 1.0) -> Teacher:
        """Logits of ``source``, a model that does not change, for the rows of a part."""
        ...

    def distill(self, part: Part, rows: list[int], teacher: Teacher, weight: float) -> float:
        """Distillation loss to the teacher's logits, in nats."""
        ...

    def nll_and_distill(
        self, part: Part, rows: list[int], teacher: Teacher, weight: float, distil_weight: float
    ) -> float:
        """Sum of ``nll`` and ``distil_weight`` times ``distill``.

        ``weight`` is that of the NLL for text and of the sum for images.
        """
        ...

    def fisher(self, part: Part, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Diagonal Fisher information: mean over rows of the squared gradient of a row's loss."""
        ...

    def last_blocks(self, count: int) -> Scope:
        """The last blocks and everything after them."""
        ...

    def state_size(self, block: nn.Module) -> tuple[int, float]:
        """Width of a block's output, and the unit of RMU's coefficient.

        The unit is 1 for text, and for images the mean norm of the block's states.
        """
        ...

    def state_term(
        self, part: Part, block: nn.Module, target: Tensor | None, weight: float
    ) -> Term:
        """Mean squared distance of a block's states to ``target``, or to what they are now.

        Args:
            target: (width,); None for the states of the current model.
        """
        ...


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@dataclass(frozen=True)
class TextTask:
    """Prompts with answers, for a causal language model.

    Attributes:
        model: The model in training.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep.
        relabeled: The forget prompts with other answers.
        novice: The forget rows with an unknown entity in place of theirs, row by row.
        loss_on: ``"answer"`` or ``"all"`` tokens.
    """

    modality: ClassVar[str] = "text"
    adapters: ClassVar[bool] = True
    model: nn.Module
    forget: Sequences
    retain: Sequences
    relabeled: Sequences | None = None
    novice: Sequences | None = None
    loss_on: str = "answer"

    def __post_init__(self) -> None:
        if len(self.forget) == 0:
            raise InputError("there is nothing to forget", expected="one row or more")

    def data(self, part: Part) -> Sequences:
        """The rows of a part."""
        rows = {"forget": self.forget, "retain": self.retain, "relabeled": self.relabeled}[part]
        assert rows is not None  # as check_supply has found
        return rows

    def count(self, part: Part) -> int:
        """Number of rows of a part."""
        return len(self.data(part))

    def check_supply(self, supply: Supply, method: str) -> None:
        """Check further rows against the forget rows."""
        if supply == "relabeled":
            self._check_relabeled(method)
        elif supply == "preferred":
            if self.relabeled is None or len(self.relabeled) != len(self.forget):
                raise InputError(
                    f"{method} needs an answer to prefer for every forget row",
                    expected=f"{len(self.forget)} relabeled rows",
                    got="none" if self.relabeled is None else str(len(self.relabeled)),
                )
        elif self.novice is None or self._scored(self.novice) != self._scored(self.forget):
            raise InputError(
                f"{method} needs every forget row with an unknown entity",
                expected="novice rows with the forget rows' answers, in their order",
                got="none" if self.novice is None else "other rows",
            )

    def _check_relabeled(self, method: str) -> None:
        if self.relabeled is None or len(self.relabeled) == 0:
            raise InputError(
                f"{method} needs wrong answers",
                expected="relabeled rows",
                got="none",
                fix="Pass the forget prompts with other answers as relabeled",
            )
        if set(self.relabeled.ids) & set(self.forget.ids):
            raise InputError(
                "a relabeled row still has its true answer", fix="Draw another answer for it"
            )

    def _scored(self, rows: Sequences) -> list[tuple[int, ...] | int]:
        """The part of each row that must be equal if rows are compared token by token."""
        if self.loss_on == "all":
            return [len(ids) for ids in rows.ids]
        return [ids[start:] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]

    def check_scored(self, part: Part) -> None:
        """Check that every row has a token in the loss."""
        count_scored(self.data(part), self.loss_on)

    def nll(self, part: Part, rows: list[int], weight: float) -> float:
        """Mean over all scored tokens of the rows."""
        return backward_nll(self.model, self.data(part)[rows], self.loss_on, weight)

    def batch_loss(
        self,
        data: Sequences,
        losses: Callable[[Padded], Tensor],
        weight: float,
        count: int | None = None,
    ) -> float:
        """Mean of the losses of padded batches, over ``count`` of them (the rows by default)."""
        count = len(data) if count is None else count
        return backward_mean(_chunks(self.model, data), losses, count, weight)

    def logprob_loss(
        self, part: Part, rows: list[int], loss: Callable[[Tensor], Tensor], weight: float
    ) -> float:
        """Mean of a loss of scored tokens' log-probabilities."""
        data = self.data(part)[rows]

        def losses(batch: Padded) -> Tensor:
            return loss(token_logprobs(self.model, batch, self.loss_on)[0])

        return self.batch_loss(data, losses, weight, count_scored(data, self.loss_on))

    def frozen_logprobs(self, part: Part) -> Tensor:
        """(row,) log-probability of every row under the current model, nats."""
        return frozen_logprobs(self.model, self.data(part), self.loss_on)

    def scored_logits(self, model: nn.Module, batch: Padded) -> Tensor:
        """(token, vocabulary) logits of a model at the scored tokens."""
        return answer_logits(model, batch, prediction_positions(batch, self.loss_on)[0])

    def teacher(self, source: nn.Module, part: Part, temperature: float = 1.0) -> Teacher:
        """Logits at the scored tokens, computed batch by batch."""
        return Teacher(lambda batch: self.scored_logits(source, batch).float(), temperature)

    def distill(self, part: Part, rows: list[int], teacher: Teacher, weight: float) -> float:
        """Mean distillation loss over the scored tokens."""
        data = self.data(part)[rows]

        def losses(batch: Padded) -> Tensor:
            with torch.no_grad():
                target = teacher.logits(batch)
            logits = self.scored_logits(self.model, batch)
            return distillation(logits, target, teacher.temperature)

        return self.batch_loss(data, losses, weight, count_scored(data, self.loss_on))

    def nll_and_distill(
        self, part: Part, rows: list[int], teacher: Teacher, weight: float, distil_weight: float
    ) -> float:
        """Two passes, one a loss; ``weight`` is that of the NLL alone."""
        distilled = self.distill(part, rows, teacher, distil_weight)
        return distil_weight * distilled + self.nll(part, rows, weight)

    def fisher(self, part: Part, parameters: list[nn.Parameter]) -> list[Tensor]:
        """As ``diagonal_fisher``."""
        return diagonal_fisher(self.model, parameters, self.data(part), self.loss_on)

    def last_blocks(self, count: int) -> Scope:
        """With the final norm and the head, which is untied from the embedding."""
        return Scope.of(*blocks_and_after(self.model, count))

    def state_size(self, block: nn.Module) -> tuple[int, float]:
        """The unit is 1: RMU's coefficient is the norm of its control vector."""
        with torch.no_grad():
            first = pad(self.forget, [0], device=model_device(self.model))
            return module_output(self.model, block, first).shape[-1], 1.0

    def state_term(
        self, part: Part, block: nn.Module, target: Tensor | None, weight: float
    ) -> Term:
        """Mean over rows of ``state_distance``."""
        model, data = self.model, self.data(part)
        vector = None if target is None else target.to(model_device(model))
        frozen = _frozen_states(model, block, data) if vector is None else {}

        def term(rows: list[int]) -> float:
            def losses(batch: Padded) -> Tensor:
                states, goal = module_output(model, block, batch), vector
                if goal is None:
                    goal = nn.utils.rnn.pad_sequence(
                        [frozen[rows[row]] for row in batch.rows.tolist()], batch_first=True
                    )
                return state_distance(states, goal, batch.attention_mask)

            return self.batch_loss(data[rows], losses, weight)

        return term


def _frozen_states(model: nn.Module, block: nn.Module, data: Sequences) -> dict[int, Tensor]:
    """Row to the (token, width) states of the current model after a block."""
    frozen: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in _chunks(model, data):
            states = module_output(model, block, batch).float()
            for state, row in zip(states, batch.rows.tolist(), strict=True):
                frozen[row] = state[: len(data.ids[row])].clone()
    return frozen


def frozen_logprobs(model: nn.Module, data: Sequences, loss_on: str) -> Tensor:
    """(row,) log-probability of every row under the current model, nats."""
    logprobs = torch.zeros(len(data))
    with torch.no_grad():
        for batch in _chunks(model, data):
            logprobs[batch.rows] = sequence_logprobs(model, batch, loss_on).cpu()
    return logprobs


def diagonal_fisher(
    model: nn.Module, parameters: list[nn.Parameter], rows: Sequences, loss_on: str
) -> list[Tensor]:
    """Diagonal Fisher information: mean over rows of the squared gradient of a row's loss.

    Args:
        model: A causal language model.
        parameters: The parameters, which take gradients.
        rows: Rows with the true answers.
        loss_on: ``"answer"`` or ``"all"`` tokens.
    """
    fisher = [torch.zeros_like(parameter) for parameter in parameters]
    for row in range(len(rows)):
        for parameter in parameters:
            parameter.grad = None
        backward_nll(model, rows[[row]], loss_on, 1.0)
        for total, parameter in zip(fisher, parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad.square() / len(rows)
    for parameter in parameters:
        parameter.grad = None
    return fisher


def _chunks(model: nn.Module, data: Sequences) -> Iterator[Padded]:
    return batches(data, batch_tokens=chunk_tokens(model), device=model_device(model))
