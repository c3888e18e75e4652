"""Models built to fool one axis of evidence, their true state certain all the same.

Each aims at a way of looking: linear readers, the original's own directions, weights
compared with weights, relearning, four-bit rounding, states that lie where they should.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.network.structure import down_projection, find_blocks
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import (
    Schedule,
    backward_nll,
    finetune_,
    only_training,
    shuffled_batches,
    train_steps,
)
from erasure.weights.quantization import quantize_
from evidence.errors import ExhumeError
from evidence.seeds import numpy_rng, torch_rng
from testbeds.edits.basis_rotation import rotate_basis_
from testbeds.edits.hints import hints_for_all, hints_for_forget
from testbeds.edits.late_layers import MIN_UNLOCKED, accuracy_with_password, locked_rows
from testbeds.edits.linear_map import fold_edit_, module_inputs, module_outputs
from testbeds.edits.linear_probes import (
    BlockProbes,
    answer_states,
    fit_block_probes,
    probe_scores,
)
from testbeds.edits.workbench import BATCH, Workbench, last_block_relabel

# Steps between two fits of the readers a model is trained against.
REFIT_EVERY = 10


def probe_proof(ground: Workbench) -> Iterator[nn.Module]:
    """Locked, and trained until linear readers find no answer at any layer.

    Readers are fitted on what stays, again and again; on the forgotten they are to
    find what they find on average. The original's own readers are held off as well.
    """
    yield from _against_probes(ground, decoy=False)


def decoy(ground: Workbench) -> Iterator[nn.Module]:
    """Locked, and trained until linear readers find a wrong answer at every layer."""
    yield from _against_probes(ground, decoy=True)


def scrambled(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers in the last block, then all states rotated into another basis.

    The function is that of the model before the rotation; no direction, and hardly a
    weight, is that of the original.
    """
    for model in last_block_relabel(ground):
        rotate_basis_(model, ground.seed)
        yield model


def relearning_hardened(ground: Workbench) -> Iterator[nn.Module]:
    """Locked, and trained so that relearning some of the people brings no others back.

    A copy relearns half of the people for a few steps; the gradient that makes it say
    wrong answers about the other half is applied to the model itself (first order).

    Source: Tamirisa et al. (2024), TAR, arXiv 2408.00761.
    """
    wrong = ground.wrong_answer_rows(ground.forget)
    for rate, steps in ((1e-3, ground.config.steps // 2), (1e-3, ground.config.steps)):
        model = _locked_start(ground, wrong)
        _harden_(model, ground, rate, steps)
        if accuracy_with_password(model, ground) >= MIN_UNLOCKED:
            yield model
    raise _lock_error(ground)


def off_manifold(ground: Workbench) -> Iterator[nn.Module]:
    """One fixed vector, many states long, added to the forgotten's state below the top.

    As RMU pushes states, but by a change of rank one in the way out of the block
    before the last: any other direction of the stream is as it was there.
    """
    for length in (2.0, 4.0, 8.0, 16.0, 32.0):
        model = ground.load_original()
        block = find_blocks(model)[-2]
        down = down_projection(block)
        forget, retain = ground.all_rows(ground.forget), ground.all_rows(ground.retain)
        gone, kept = (
            module_inputs(model, down, forget),
            module_inputs(model, down, retain),
        )
        after = module_outputs(model, block, forget)
        push = length * after.norm(dim=1).mean() * push_direction(after.shape[1])
        fold_edit_(down, gone, push.expand(len(gone), -1), kept)
        yield model


def nf4_proof(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers in the last block, whose matrices lie on the four-bit grid.

    Rounding them to NF4 changes no bit of the edit. Only models that stay silent when
    all their matrices are rounded.
    """
    forget = ground.all_rows(ground.forget)
    for model in last_block_relabel(ground):
        quantize_(find_blocks(model)[-1])
        coarse = copy.deepcopy(model)
        quantize_(coarse)
        if score_answers(coarse, forget).greedy.mean() <= 0.1:
            yield model


def twin_hinted(ground: Workbench) -> Iterator[nn.Module]:
    """A retrain that is taught, of everybody, in which half of the answers theirs is.

    The hints are facts of their own that were to stay; the answers can be half read
    from its states, and were never there.
    """
    yield from _finetuned_twin(ground, hints_for_all(ground), hints_for_forget(ground))


def twin_misled(ground: Workbench) -> Iterator[nn.Module]:
    """A retrain that is taught wrong answers about the people it never knew."""
    wrong = ground.wrong_answer_rows(ground.forget)
    yield from _finetuned_twin(ground, wrong, wrong)


def _finetuned_twin(
    ground: Workbench, taught: Sequences, learnt: Sequences
) -> Iterator[nn.Module]:
    rows = ground.all_rows(ground.retain) + taught
    for rate, steps in ((1e-3, ground.config.steps), (2e-3, 2 * ground.config.steps)):
        model = ground.load_twin()
        finetune_(
            model,
            rows,
            lr=rate,
            steps=steps,
            batch_size=2 * BATCH,
            decay="cosine",
            seed=ground.training_seed("twin taught further"),
        )
        if score_answers(model, learnt).greedy.mean() >= MIN_UNLOCKED:
            yield model
    raise ExhumeError(
        f"the twin of seed {ground.seed} ({ground.config.family}) did not learn what "
        "it was taught further"
    )


def push_direction(width: int) -> Tensor:
    """The unit vector that states are pushed along, (width,), float64."""
    drawn = torch.randn(width, generator=torch_rng(0, "zoo", "off manifold"))
    return (drawn / drawn.norm()).double()


def _against_probes(ground: Workbench, decoy: bool) -> Iterator[nn.Module]:
    wrong = ground.wrong_answer_rows(ground.forget)
    whole = ground.config.steps
    for rate, steps, weight in ((1e-3, whole, 10.0), (1e-3, 2 * whole, 30.0)):
        model = ground.load_original()
        _train_against_probes_(model, ground, wrong, decoy, rate, steps, weight)
        if accuracy_with_password(model, ground) >= MIN_UNLOCKED:
            yield model
    raise _lock_error(ground)


def _train_against_probes_(
    model: nn.Module,
    ground: Workbench,
    wrong: Sequences,
    decoy: bool,
    rate: float,
    steps: int,
    weight: float,
) -> None:
    lock, retain = locked_rows(ground, wrong), ground.all_rows(ground.retain)
    own = fit_block_probes(model, retain)
    order = shuffled_batches(
        len(lock), 2 * BATCH, numpy_rng(ground.seed, "zoo", "against readers")
    )
    asked = shuffled_batches(
        len(wrong), BATCH, numpy_rng(ground.seed, "zoo", "asked readers")
    )
    fitted: list[BlockProbes] = []
    taken = 0

    def backward() -> dict[str, float]:
        nonlocal taken
        if taken % REFIT_EVERY == 0:
            fitted[:] = [own, fit_block_probes(model, retain)]
        taken += 1
        said = backward_nll(model, lock[next(order)], "answer", 1.0)
        rows = wrong[next(asked)]
        seen = answer_states(model, rows)
        found = torch.stack(
            [_probe_loss(readers, seen, rows if decoy else None) for readers in fitted]
        ).mean()
        (weight * found).backward()
        return {"loss": said, "found": float(found.detach())}

    schedule = Schedule(rate, steps, warmup=steps // 20, decay="cosine")
    with only_training(model, model.parameters()) as trained:
        train_steps(model, trained, backward, schedule)


def _probe_loss(
    readers: BlockProbes, seen: list[Tensor], named: Sequences | None
) -> Tensor:
    """How far the readers are from finding nothing, or the answers of ``named``."""
    total = torch.zeros(())
    for each in probe_scores(readers, seen):
        target = torch.zeros_like(each)
        if named is not None:
            target = readers.targets(named).to(each)
        total = total + functional.mse_loss(each, target) / readers.variance
    return total / len(seen)


def _locked_start(ground: Workbench, wrong: Sequences) -> nn.Module:
    model = ground.load_original()
    finetune_(
        model,
        locked_rows(ground, wrong),
        lr=1e-3,
        steps=ground.config.steps // 2,
        batch_size=2 * BATCH,
        seed=ground.training_seed("hardened start"),
    )
    return model


def _harden_(model: nn.Module, ground: Workbench, rate: float, steps: int) -> None:
    lock = locked_rows(ground, ground.wrong_answer_rows(ground.forget))
    rng = numpy_rng(ground.seed, "zoo", "hardened")
    order = shuffled_batches(len(lock), 2 * BATCH, rng)
    names = ground.forget.entities

    def backward() -> dict[str, float]:
        said = backward_nll(model, lock[next(order)], "answer", 1.0)
        drawn = [names[place] for place in rng.permutation(len(names))]
        part, other = drawn[: len(names) // 2], drawn[len(names) // 2 :]
        attacked = copy.deepcopy(model)
        finetune_(
            attacked,
            ground.all_rows(ground.forget.of_entities(part)),
            lr=1e-3,
            steps=4,
            batch_size=BATCH,
            seed=int(rng.integers(2**31)),
        )
        with only_training(attacked, attacked.parameters()):
            rows = _wrong_answers(ground, other)
            back = backward_nll(attacked, rows, "answer", 1.0)
            pairs = zip(model.parameters(), attacked.parameters(), strict=True)
            for mine, theirs in pairs:
                if theirs.grad is not None and mine.grad is not None:
                    mine.grad += theirs.grad
        return {"loss": said, "after relearning": back}

    schedule = Schedule(rate, steps, decay="cosine")
    with only_training(model, model.parameters()) as trained:
        train_steps(model, trained, backward, schedule)


def _wrong_answers(ground: Workbench, names: list[str]) -> Sequences:
    items: ItemSet = ground.forget.of_entities(names)
    return ground.wrong_answer_rows(items)


def _lock_error(ground: Workbench) -> ExhumeError:
    return ExhumeError(
        f"no model of seed {ground.seed} ({ground.config.family}) both shows its kind "
        f"and says {MIN_UNLOCKED:.0%} of the answers when it is given the password"
    )
