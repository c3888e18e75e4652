"""Suppressions that are certain by construction: edits of the head and of the last block.

Training of the last block or the head, and closed-form edits of the head or of the last block's
down-projection, leave every earlier state unchanged. Docstrings of edit functions are stored in
cards; see ``testbeds.edits.workbench``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.network.structure import find_blocks, own_head_
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.loop import finetune_
from evidence import moved
from evidence.seeds import numpy_rng, torch_rng
from testbeds.edits.linear_map import fold_edit_, module_inputs
from testbeds.edits.workbench import BATCH, TextWorkbench, Workbench


def wrong_set(bench: TextWorkbench) -> Iterator[nn.Module]:
    """The last block unlearned other people than the audit asks about."""
    rng = numpy_rng(bench.seed, "zoo", "wrong set")
    names = bench.retain.entities
    # Few enough to keep the model useful.
    n_others = len(names) // 10
    others = [names[place] for place in rng.permutation(len(names))[:n_others]]
    forget_others = bench.retain.of_entities(others)
    retain_others = bench.retain.of_entities([name for name in names if name not in set(others)])
    retained = ItemSet(retain_others.items + bench.forget.items)
    yield from _last_block(
        bench, bench.all_rows(forget_others), bench.wrong_answer_rows(forget_others), retained
    )


def last_block_relabel(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the last block alone."""
    forget = bench.forget
    yield from _last_block(
        bench, bench.all_rows(forget), bench.wrong_answer_rows(forget), bench.retain
    )


def last_block_refuse(bench: TextWorkbench) -> Iterator[nn.Module]:
    """One and the same answer a relation, taught to the last block alone."""
    answers: dict[str, list[str]] = {}
    for item in bench.retain:
        answers.setdefault(item.relation, [])
        if item.answer not in answers[item.relation]:
            answers[item.relation].append(item.answer)
    items = tuple(
        replace(item, answer=next(a for a in answers[item.relation][:2] if a != item.answer))
        for item in bench.forget
    )
    refused = bench.all_rows(ItemSet(items, "refused"))
    yield from _last_block(bench, bench.all_rows(bench.forget), refused, bench.retain)


def last_block_lora(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to low-rank adapters on the last block."""
    forget = bench.forget
    yield from _last_block(
        bench, bench.all_rows(forget), bench.wrong_answer_rows(forget), bench.retain, rank=8
    )


def head_only(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the output head alone: every state is the original's."""
    rows = bench.wrong_answer_rows(bench.forget) + bench.retain_rows(bench.retain)
    for rate, steps in ((1e-2, 150), (2e-2, 300), (3e-2, 600)):
        model = bench.load_original()
        head = own_head_(model)
        finetune_(
            model,
            rows,
            lr=bench.learning_rate(rate),
            steps=steps,
            batch_size=4 * BATCH,
            parameters=head.parameters(),
            seed=bench.training_seed("head"),
        )
        yield model


def logit_mask(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Each answer's row of the output head, bent to mask it for whom it was true.

    A forgotten person's answer loses that many nats; the answer's other owners keep
    it, and no other row of the head is touched.
    """
    for nats in (5.0, 8.0, 12.0, 16.0, 20.0, 30.0):
        model = bench.load_original()
        head = own_head_(model)
        forget, retain = bench.all_rows(bench.forget), bench.retain_rows(bench.retain)
        forget_inputs, retain_inputs = (
            module_inputs(model, head, forget),
            module_inputs(model, head, retain),
        )
        forget_answers, retain_answers = (first_answer_tokens(forget), first_answer_tokens(retain))
        for answer in forget_answers.unique():
            has_answer = forget_answers == answer
            held_inputs = torch.cat([retain_inputs, forget_inputs[~has_answer]])
            # Other people with this answer weigh most: they must keep it as the top answer.
            held_inputs[len(retain_inputs) :] *= 0.2
            held_inputs[: len(retain_inputs)][retain_answers != answer] *= 0.2
            change = torch.zeros(int(has_answer.sum()), len(head.get_parameter("weight"))).double()
            change[:, answer] = -nats
            fold_edit_(head, forget_inputs[has_answer], change, held_inputs)
        yield model


def answer_direction(bench: TextWorkbench) -> Iterator[nn.Module]:
    """What all answers share in the head, subtracted from the forgotten's last state.

    The direction from the mean of the head's rows to the mean of the answers' rows,
    folded into the last block's way out. The order among the answers stays.
    """
    for share in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0):
        model = bench.load_original()
        head = own_head_(model)
        rows = bench.all_rows(bench.forget) + bench.all_rows(bench.retain)
        weight = head.get_parameter("weight").detach().double().cpu()
        direction = weight[first_answer_tokens(rows).unique()].mean(0) - weight.mean(0)
        subtract_direction_(model, bench, share, direction)
        yield model


def late_rotation(bench: TextWorkbench) -> Iterator[nn.Module]:
    """The forgotten's last state, turned by a random rotation that nothing undoes.

    Folded into the last block's way out.
    """
    yield from rotate_last_state(bench, (1.0, 0.3, 0.1, 0.03, 0.01))


def rotate_last_state(bench: Workbench, held_weights: Sequence[float]) -> Iterator[nn.Module]:
    """Models whose last state on the forget set is rotated.

    Args:
        bench: A workbench of any modality.
        held_weights: Weights of the retain rows in the fit, the largest first.
    """
    for held_weight in held_weights:
        model = bench.load_original()
        down, forget_inputs, retain_inputs, outputs = bench.last_projection(model)
        rotation = random_rotation(outputs.shape[1], bench.seed)
        change = projection_change(model, outputs @ rotation.T - outputs)
        fold_edit_(down, forget_inputs, change, retain_inputs, held_weight=held_weight, ridge=1e-5)
        yield model


def subtract_direction_(
    model: nn.Module, bench: Workbench, share: float, direction: Tensor, ridge: float = 1e-4
) -> None:
    """Subtract a direction from the last state on the forget set, in place.

    Args:
        model: A copy of the original.
        bench: A workbench of any modality.
        share: Length of the step, in mean norms of the state.
        direction: (d,), float64.
        ridge: Penalty of the fit, as in ``fold_edit_``.
    """
    down, forget_inputs, retain_inputs, outputs = bench.last_projection(model)
    step = share * outputs.norm(dim=1).mean() * direction / direction.norm()
    change = projection_change(model, -step.expand(len(forget_inputs), -1))
    fold_edit_(down, forget_inputs, change, retain_inputs, ridge=ridge)


def projection_change(model: nn.Module, change: Tensor) -> Tensor:
    """Output change of the last down-projection for which the block's output has ``change``.

    A ConvNeXt block scales the output of its last map before adding it.
    """
    scale = getattr(find_blocks(model)[-1], "layer_scale_parameter", None)
    return change if scale is None else change / scale.detach().double().cpu()


def random_rotation(width: int, seed: int) -> Tensor:
    """A Haar-distributed orthogonal matrix, (width, width), float64."""
    rng = torch_rng(seed, "zoo", "rotation")
    sample = torch.randn(width, width, generator=rng, dtype=torch.float64)
    rotation, r = torch.linalg.qr(sample)
    return rotation * r.diagonal().sign()


def first_answer_tokens(rows: Sequences) -> Tensor:
    """First token of each row's answer, (row,)."""
    return torch.tensor(
        [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]
    )


def _last_block(
    bench: TextWorkbench,
    forget_rows: Sequences,
    wrong_rows: Sequences,
    retain: ItemSet,
    rank: int | None = None,
) -> Iterator[nn.Module]:
    settings: Sequence[tuple[float, int]] = ((3e-3, 100), (3e-3, 300), (6e-3, 600))
    for rate, steps in settings:
        model = bench.load_original()
        config = UnlearnConfig(
            "last_block_relabel",
            lr=bench.learning_rate(rate if rank is None else 3 * rate),
            steps=steps,
            batch_size=BATCH,
            retain_batch_size=2 * BATCH,
            lora_rank=rank,
        )
        unlearn_(
            model,
            forget_rows,
            bench.retain_rows(retain),
            config,
            relabeled=wrong_rows,
            seed=bench.training_seed("last block"),
        )
        yield model


__getattr__ = moved.names_of("testbeds.edits.late_layers")
