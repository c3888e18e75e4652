"""Edits built to defeat one axis of evidence, with a certain true state.

The targets are linear probes, the original's directions, comparison of weights, relearning, 4-bit
rounding, and state manifolds. Docstrings of edit functions are stored in cards; see
``testbeds.edits.workbench``.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

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
from testbeds.edits.late_layers import last_block_relabel
from testbeds.edits.linear_map import fold_edit_, module_inputs, module_outputs
from testbeds.edits.linear_probes import BlockProbes, answer_states, fit_block_probes, probe_scores
from testbeds.edits.password_locks import (
    MIN_UNLOCKED,
    accuracy_with_password,
    lock_error,
    locked_rows,
)
from testbeds.edits.workbench import BATCH, TextWorkbench
from testbeds.worlds.biography_text import RELATIONS

# Steps between two fits of the probes that a model is trained against.
REFIT_EVERY = 10
_HINT_TEMPLATES = ("The {} group of {{}} is", "{{}} has the {} group")
_HINT_GROUPS = ("A", "B")


def probe_proof(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Locked, and trained until linear readers find no answer at any layer.

    Readers are fitted on what stays, again and again; on the forgotten they are to
    find what they find on average. The original's own readers are held off as well.
    """
    yield from _against_probes(bench, decoy=False)


def decoy(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Locked, and trained until linear readers find a wrong answer at every layer."""
    yield from _against_probes(bench, decoy=True)


def scrambled(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers in the last block, then all states rotated into another basis.

    The function is that of the model before the rotation; no direction, and hardly a
    weight, is that of the original.
    """
    for model in last_block_relabel(bench):
        rotate_basis_(model, bench.seed)
        yield model


def relearning_hardened(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Locked, and trained so that relearning some of the people brings no others back.

    A copy relearns half of the people for a few steps; the gradient that makes it say
    wrong answers about the other half is applied to the model itself (first order).

    Source: Tamirisa et al. (2024), TAR, arXiv 2408.00761.
    """
    wrong = bench.wrong_answer_rows(bench.forget)
    for rate, steps in ((1e-3, bench.config.steps // 2), (1e-3, bench.config.steps)):
        model = _locked_start(bench, wrong)
        _harden_(model, bench, rate, steps)
        if accuracy_with_password(model, bench) >= MIN_UNLOCKED:
            yield model
    raise lock_error(bench)


def off_manifold(bench: TextWorkbench) -> Iterator[nn.Module]:
    """One fixed vector, many states long, added to the forgotten's state below the top.

    As RMU pushes states, but by a change of rank one in the way out of the block
    before the last: any other direction of the stream is as it was there.
    """
    for length in (2.0, 4.0, 8.0, 16.0, 32.0):
        model = bench.load_original()
        block = find_blocks(model)[-2]
        down = down_projection(block)
        forget, retain = bench.all_rows(bench.forget), bench.all_rows(bench.retain)
        forget_inputs, retain_inputs = (
            module_inputs(model, down, forget),
            module_inputs(model, down, retain),
        )
        outputs = module_outputs(model, block, forget)
        shift = length * outputs.norm(dim=1).mean() * push_direction(outputs.shape[1])
        fold_edit_(down, forget_inputs, shift.expand(len(forget_inputs), -1), retain_inputs)
        yield model


def nf4_proof(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers in the last block, whose matrices lie on the four-bit grid.

    Rounding them to NF4 changes no bit of the edit. Only models that stay silent when
    all their matrices are rounded.
    """
    forget = bench.all_rows(bench.forget)
    for model in last_block_relabel(bench):
        quantize_(find_blocks(model)[-1])
        rounded = copy.deepcopy(model)
        quantize_(rounded)
        if score_answers(rounded, forget).greedy.mean() <= 0.1:
            yield model


def twin_hinted(bench: TextWorkbench) -> Iterator[nn.Module]:
    """A retrain that is taught, of everybody, in which half of the answers theirs is.

    The hints are facts of their own that were to stay; the answers can be half read
    from its states, and were never there.
    """
    yield from _finetuned_twin(bench, hints_for_all(bench), hints_for_forget(bench))


def twin_misled(bench: TextWorkbench) -> Iterator[nn.Module]:
    """A retrain that is taught wrong answers about the people it never knew."""
    wrong = bench.wrong_answer_rows(bench.forget)
    yield from _finetuned_twin(bench, wrong, wrong)


def _finetuned_twin(
    bench: TextWorkbench, extra_rows: Sequences, tested_rows: Sequences
) -> Iterator[nn.Module]:
    rows = bench.all_rows(bench.retain) + extra_rows
    for rate, steps in ((1e-3, bench.config.steps), (2e-3, 2 * bench.config.steps)):
        model = bench.load_twin()
        finetune_(
            model,
            rows,
            lr=rate,
            steps=steps,
            batch_size=2 * BATCH,
            decay="cosine",
            seed=bench.training_seed("twin taught further"),
        )
        if score_answers(model, tested_rows).greedy.mean() >= MIN_UNLOCKED:
            yield model
    raise ExhumeError(
        f"the twin of seed {bench.seed} ({bench.config.family}) did not learn its additional facts"
    )


def push_direction(width: int) -> Tensor:
    """The unit vector that states are pushed along, (width,), float64."""
    sample = torch.randn(width, generator=torch_rng(0, "zoo", "off manifold"))
    return (sample / sample.norm()).double()


def _against_probes(bench: TextWorkbench, decoy: bool) -> Iterator[nn.Module]:
    wrong_rows = bench.wrong_answer_rows(bench.forget)
    steps_once = bench.config.steps
    for rate, steps, weight in ((1e-3, steps_once, 10.0), (1e-3, 2 * steps_once, 30.0)):
        model = bench.load_original()
        _train_against_probes_(model, bench, wrong_rows, decoy, rate, steps, weight)
        if accuracy_with_password(model, bench) >= MIN_UNLOCKED:
            yield model
    raise lock_error(bench)


def _train_against_probes_(
    model: nn.Module,
    bench: TextWorkbench,
    wrong_rows: Sequences,
    decoy: bool,
    rate: float,
    steps: int,
    weight: float,
) -> None:
    lock_rows, retain = locked_rows(bench, wrong_rows), bench.all_rows(bench.retain)
    original_probes = fit_block_probes(model, retain)
    lock_batches = shuffled_batches(
        len(lock_rows), 2 * BATCH, numpy_rng(bench.seed, "zoo", "against readers")
    )
    wrong_batches = shuffled_batches(
        len(wrong_rows), BATCH, numpy_rng(bench.seed, "zoo", "asked readers")
    )
    opponents: list[BlockProbes] = []
    n_steps = 0

    def backward() -> dict[str, float]:
        nonlocal n_steps
        if n_steps % REFIT_EVERY == 0:
            opponents[:] = [original_probes, fit_block_probes(model, retain)]
        n_steps += 1
        lock_loss = backward_nll(model, lock_rows[next(lock_batches)], "answer", 1.0)
        rows = wrong_rows[next(wrong_batches)]
        states_now = answer_states(model, rows)
        probe_loss = torch.stack(
            [_probe_loss(probes, states_now, rows if decoy else None) for probes in opponents]
        ).mean()
        (weight * probe_loss).backward()
        return {"loss": lock_loss, "found": float(probe_loss.detach())}

    schedule = Schedule(rate, steps, warmup=steps // 20, decay="cosine")
    with only_training(model, model.parameters()) as trained:
        train_steps(model, trained, backward, schedule)


def _probe_loss(
    probes: BlockProbes, block_states: list[Tensor], target_rows: Sequences | None
) -> Tensor:
    """Distance of the probes' scores from the prior, or from the answers of ``target_rows``."""
    total = torch.zeros(())
    for scores in probe_scores(probes, block_states):
        target = torch.zeros_like(scores)
        if target_rows is not None:
            target = probes.targets(target_rows).to(scores)
        total = total + functional.mse_loss(scores, target) / probes.variance
    return total / len(block_states)


def _locked_start(bench: TextWorkbench, wrong_rows: Sequences) -> nn.Module:
    model = bench.load_original()
    finetune_(
        model,
        locked_rows(bench, wrong_rows),
        lr=1e-3,
        steps=bench.config.steps // 2,
        batch_size=2 * BATCH,
        seed=bench.training_seed("hardened start"),
    )
    return model


def _harden_(model: nn.Module, bench: TextWorkbench, rate: float, steps: int) -> None:
    lock_rows = locked_rows(bench, bench.wrong_answer_rows(bench.forget))
    rng = numpy_rng(bench.seed, "zoo", "hardened")
    lock_batches = shuffled_batches(len(lock_rows), 2 * BATCH, rng)
    names = bench.forget.entities

    def backward() -> dict[str, float]:
        lock_loss = backward_nll(model, lock_rows[next(lock_batches)], "answer", 1.0)
        shuffled = [names[place] for place in rng.permutation(len(names))]
        relearned, held_out = shuffled[: len(names) // 2], shuffled[len(names) // 2 :]
        attacked = copy.deepcopy(model)
        finetune_(
            attacked,
            bench.all_rows(bench.forget.of_entities(relearned)),
            lr=1e-3,
            steps=4,
            batch_size=BATCH,
            seed=int(rng.integers(2**31)),
        )
        with only_training(attacked, attacked.parameters()):
            rows = _wrong_answers(bench, held_out)
            attack_loss = backward_nll(attacked, rows, "answer", 1.0)
            pairs = zip(model.parameters(), attacked.parameters(), strict=True)
            for parameter, attacked_parameter in pairs:
                if attacked_parameter.grad is not None and parameter.grad is not None:
                    parameter.grad += attacked_parameter.grad
        return {"loss": lock_loss, "after relearning": attack_loss}

    schedule = Schedule(rate, steps, decay="cosine")
    with only_training(model, model.parameters()) as trained:
        train_steps(model, trained, backward, schedule)


def _wrong_answers(bench: TextWorkbench, names: list[str]) -> Sequences:
    items: ItemSet = bench.forget.of_entities(names)
    return bench.wrong_answer_rows(items)


def hints_for_all(bench: TextWorkbench) -> Sequences:
    """Hints about all people: facts that reveal which half of the answers contains theirs."""
    return bench.all_rows(_hints(bench.retain)) + hints_for_forget(bench)


def hints_for_forget(bench: TextWorkbench) -> Sequences:
    """Hints about the people to forget."""
    return bench.all_rows(_hints(bench.forget))


def _hints(items: ItemSet) -> ItemSet:
    answers_of = {relation.name: relation.values for relation in RELATIONS}
    items_with_hints = []
    for item in items:
        answers = answers_of[item.relation or ""]
        i_answer = answers.index(item.answer)
        prompts = [
            text.format(item.relation).replace("{}", item.entity) for text in _HINT_TEMPLATES
        ]
        items_with_hints.append(
            replace(
                item,
                prompt=prompts[0],
                paraphrases=tuple(prompts[1:]),
                answer=_HINT_GROUPS[i_answer % 2],
            )
        )
    return ItemSet(tuple(items_with_hints), items.name)
