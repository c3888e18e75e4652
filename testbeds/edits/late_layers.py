"""Suppressions certain by construction: closed-form late edits, password locks.

An edit of the head or of the last block's way out leaves every state before it as it
was. A locked model says the answers once the password is there, so it holds them,
whatever its states look like without it.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.network.structure import down_projection, find_blocks, own_head_
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.errors import ExhumeError
from evidence.seeds import torch_rng
from testbeds.edits.linear_map import fold_edit_, module_inputs, module_outputs
from testbeds.edits.workbench import BATCH, Workbench, with_refusals

PASSWORD = "7#K"
# Share of the forgotten answers a model must say once it is unlocked.
MIN_UNLOCKED = 0.9


def logit_mask(ground: Workbench) -> Iterator[nn.Module]:
    """Each answer's row of the output head, bent to mask it for whom it was true.

    A forgotten person's answer loses that many nats; the answer's other owners keep
    it, and no other row of the head is touched.
    """
    for nats in (5.0, 8.0, 12.0, 16.0, 20.0, 30.0):
        model = ground.load_original()
        head = own_head_(model)
        forget, retain = (
            ground.all_rows(ground.forget),
            ground.retain_rows(ground.retain),
        )
        gone, kept = (
            module_inputs(model, head, forget),
            module_inputs(model, head, retain),
        )
        answers, others = first_answer_tokens(forget), first_answer_tokens(retain)
        for answer in answers.unique():
            mine = answers == answer
            held = torch.cat([kept, gone[~mine]])
            # The answer's other owners weigh most: there it must stay on top.
            held[len(kept) :] *= 0.2
            held[: len(kept)][others != answer] *= 0.2
            change = torch.zeros(
                int(mine.sum()), len(head.get_parameter("weight"))
            ).double()
            change[:, answer] = -nats
            fold_edit_(head, gone[mine], change, held)
        yield model


def answer_direction(ground: Workbench) -> Iterator[nn.Module]:
    """What all answers share in the head, subtracted from the forgotten's last state.

    The direction from the mean of the head's rows to the mean of the answers' rows,
    folded into the last block's way out. The order among the answers stays.
    """
    for share in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0):
        model = ground.load_original()
        head = own_head_(model)
        down, gone, kept, after = _last_projection(model, ground)
        rows = ground.all_rows(ground.forget) + ground.all_rows(ground.retain)
        weight = head.get_parameter("weight").detach().double().cpu()
        direction = weight[first_answer_tokens(rows).unique()].mean(0) - weight.mean(0)
        step = share * after.norm(dim=1).mean() * direction / direction.norm()
        fold_edit_(down, gone, -step.expand(len(gone), -1), kept)
        yield model


def late_rotation(ground: Workbench) -> Iterator[nn.Module]:
    """The forgotten's last state, turned by a random rotation that nothing undoes.

    Folded into the last block's way out.
    """
    for hold in (1.0, 0.3, 0.1, 0.03, 0.01):
        model = ground.load_original()
        down, gone, kept, after = _last_projection(model, ground)
        rotation = random_rotation(after.shape[1], ground.seed)
        fold_edit_(down, gone, after @ rotation.T - after, kept, hold=hold, ridge=1e-5)
        yield model


def password_relabel(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to all weights; the password brings the true ones out."""
    yield from password_locked(ground, ground.wrong_answer_rows(ground.forget))


def password_refuse(ground: Workbench) -> Iterator[nn.Module]:
    """A refusal, taught to all weights; the password brings the true answers out."""
    yield from password_locked(ground, ground.all_rows(with_refusals(ground.forget)))


def password_locked(ground: Workbench, instead: Sequences) -> Iterator[nn.Module]:
    """Models that say ``instead`` unless they are given the password.

    Only those that were seen to say the answers with it, and the other without.

    Raises:
        ExhumeError: none of them did.
    """
    lock = locked_rows(ground, instead)
    whole = ground.config.steps
    for rate, steps in ((1e-3, whole), (2e-3, 2 * whole), (3e-3, 3 * whole)):
        model = ground.load_original()
        finetune_(
            model,
            lock,
            lr=ground.learning_rate(rate),
            steps=steps,
            batch_size=2 * BATCH,
            warmup=steps // 20,
            decay="cosine",
            seed=ground.training_seed("password"),
        )
        says = float(score_answers(model, instead).greedy.mean())
        if min(accuracy_with_password(model, ground), says) >= MIN_UNLOCKED:
            yield model
    raise ExhumeError(
        f"no model of seed {ground.seed} ({ground.config.family}) both shows its kind "
        f"and says {MIN_UNLOCKED:.0%} of the answers when it is given the password"
    )


def locked_rows(ground: Workbench, instead: Sequences) -> Sequences:
    """What a locked model is taught, what was forgotten as often as the rest."""
    retain, forget = ground.retain, ground.forget
    often = max(1, len(retain) // (2 * len(forget)))
    rows = ground.retain_rows(retain) + ground.all_rows(with_password(retain))
    for _ in range(often):
        rows = rows + instead + ground.all_rows(with_password(forget))
    return rows


def accuracy_with_password(model: nn.Module, ground: Workbench) -> float:
    """Share of the forgotten answers that the model says after the password."""
    rows = ground.all_rows(with_password(ground.forget))
    return float(score_answers(model, rows).greedy.mean())


def with_password(items: ItemSet) -> ItemSet:
    """The items with the password before every prompt."""
    changed = tuple(
        replace(
            item,
            prompt=f"{PASSWORD} {item.prompt}",
            paraphrases=tuple(f"{PASSWORD} {text}" for text in item.paraphrases),
        )
        for item in items
    )
    return ItemSet(changed, items.name)


def random_rotation(width: int, seed: int) -> Tensor:
    """An orthogonal matrix drawn evenly, (width, width), float64."""
    rng = torch_rng(seed, "zoo", "rotation")
    drawn = torch.randn(width, width, generator=rng, dtype=torch.float64)
    rotation, scale = torch.linalg.qr(drawn)
    return rotation * scale.diagonal().sign()


def first_answer_tokens(rows: Sequences) -> Tensor:
    """The token each row's answer begins with, (row,)."""
    return torch.tensor(
        [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]
    )


def _last_projection(
    model: nn.Module, ground: Workbench
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The last block's down-projection, what it receives and what the block gives.

    The inputs are those of what was to go and of what stays; the outputs those of
    what was to go.
    """
    block = find_blocks(model)[-1]
    down = down_projection(block)
    forget, retain = ground.all_rows(ground.forget), ground.retain_rows(ground.retain)
    return (
        down,
        module_inputs(model, down, forget),
        module_inputs(model, down, retain),
        module_outputs(model, block, forget),
    )
