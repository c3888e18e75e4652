"""Edits of known size in bins of the four-bit grid, and what rounding leaves of them.

The original is put onto the grid first, so that an edit smaller than half a bin is
rounded away whole. One edit unlearns by steps of projected gradient within a ball of a
given size; the other moves every matrix by ten of its bins, towards a model that never
knew. The persistence axis is asked about both.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from audits.axes.base import JudgementContext
from audits.axes.quantization import judge, measure_text
from audits.core.config import AuditConfig
from audits.core.context import AuditContext, open_run
from audits.core.inputs import open_inputs
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.modalities.text import score_baseline
from audits.output.workspace import StageRunner
from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.sequences import Sequences, batches
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from erasure.weights.quantization import linear_weights, quantize, quantize_
from evidence.progress import SILENT
from testbeds.worlds.biographies import STANDARD, BiosWorld, build_bios

# Tried in turn, in mean bin widths, until the answers are gone.
NEAR_SIZES = (0.01, 0.45)
STEPS, MAX_EXACT_MATCH = 150, 0.1
FAR_SIZE = 10.0
GRID = "NF4, block 64"


def bins(run: Run) -> Iterator[Row]:
    """Codes against bitsandbytes; edits inside the bins and far beyond them."""
    world = build_bios(STANDARD, run.args.seeds[0], run.args.root / "worlds")
    yield from _codes(open_checkpoint(world.original).load())
    hidden, size, exact_match, codes = least_hiding_edit(world)
    yield row(
        f"an edit of {NEAR_SIZES[0]} bins (RMS): codes that rounding gives back",
        codes[str(NEAR_SIZES[0])],
        at_least(1),
        "share",
        GRID,
        said=exact_match[str(NEAR_SIZES[0])],
    )
    yield row(
        "answers still said after the least edit that hides them, or the largest",
        exact_match[str(size)],
        at_most(MAX_EXACT_MATCH),
        "share",
        f"projected gradient, sizes {', '.join(map(str, NEAR_SIZES))}",
        said_by_size=exact_match,
    )
    name = f"an edit of {size:g} bins (RMS) that hides the answers"
    yield from _judged(world, hidden, name, returns=True)
    name = f"an edit of {FAR_SIZE:g} bins (RMS) towards a model that never knew"
    yield from _judged(world, edit_towards_twin(world), name, returns=False)


def least_hiding_edit(
    world: BiosWorld,
) -> tuple[nn.Module, float, dict[str, float], dict[str, float]]:
    """The least edit of ``SIZES`` that unlearns, else the last.

    Returns:
        The model, its size, and by size the exact-match rate and the share of codes that
        are the original's.
    """
    checkpoint = open_checkpoint(world.original)
    items = read_items(world.forget)
    forget = encode_items(checkpoint.tokenizer, items)
    forget += encode_items(checkpoint.tokenizer, items, 0)
    retain = encode_items(checkpoint.tokenizer, read_items(world.retain))
    exact_match: dict[str, float] = {}
    codes: dict[str, float] = {}
    start = linear_weights(_on_grid(world))
    model, size = _on_grid(world), NEAR_SIZES[0]
    for size in NEAR_SIZES:
        model = _on_grid(world)
        _unlearn_within_ball_(model, forget, retain, size)
        exact_match[str(size)] = float(score_answers(model, forget).greedy.mean())
        same = [
            (_codes_of(w, transposed) == _codes_of(*start[name])).flatten()
            for name, (w, transposed) in linear_weights(model).items()
        ]
        codes[str(size)] = float(torch.cat(same).double().mean())
        print(f"an edit of {size} bins: says {exact_match[str(size)]:.2f}", flush=True)
        if exact_match[str(size)] <= MAX_EXACT_MATCH:
            break
    return model, size, exact_match, codes


def edit_towards_twin(world: BiosWorld) -> nn.Module:
    """The twin's direction from the original, ten bins long in every matrix."""
    start = {n: w for n, (w, _) in linear_weights(_on_grid(world)).items()}
    model = open_checkpoint(world.twin).load()
    with torch.no_grad():
        for name, (weight, transposed) in linear_weights(model).items():
            edit = weight - start[name]
            size = FAR_SIZE * _width(start[name], transposed) / edit.square().mean().sqrt()
            weight.copy_(start[name] + size * edit)
    return model


def _unlearn_within_ball_(
    model: nn.Module, forget: Sequences, retain: Sequences, size: float
) -> None:
    """Signed steps on all matrices, put back into a ball of ``size`` bins each time."""
    weights = linear_weights(model)
    start = {name: weight.detach().clone() for name, (weight, _) in weights.items()}
    width = {n: _width(start[n], transposed) for n, (_, transposed) in weights.items()}
    room = {n: _room_within_codes(start[n], transposed) for n, (_, transposed) in weights.items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight, _ in weights.values():
        weight.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    moments: dict[str, Tensor] = {n: torch.zeros_like(w) for n, w in start.items()}
    for _ in range(STEPS):
        for rows, count, sign in ((forget, 96, -1.0), (retain, 64, 3.0)):
            some = torch.randperm(len(rows), generator=generator)[:count].tolist()
            _add_gradient(model, rows[some], sign)
        with torch.no_grad():
            for name, (weight, _) in weights.items():
                assert weight.grad is not None
                moments[name].mul_(0.9).add_(weight.grad)
                step = moments[name] / moments[name].square().mean().sqrt()
                edit = weight - start[name] - 0.1 * size * width[name] * step
                most = size * width[name] / edit.square().mean().sqrt()
                edit *= most.clamp(max=1.0)
                weight.copy_(start[name] + edit.clamp(*room[name]))
                weight.grad = None


def _add_gradient(model: nn.Module, rows: Sequences, sign: float) -> None:
    """Add the gradient of the answers' loss, capped so that ascent ends, by sign."""
    for batch in batches(rows, batch_tokens=4096):
        logits = model(**batch.model_inputs, use_cache=False).logits[:, :-1]
        target, answers = batch.input_ids[:, 1:], batch.answer_mask[:, 1:]
        loss = -logits.log_softmax(-1).gather(2, target[..., None])[..., 0][answers]
        (sign * loss.clamp(max=6.0).sum() / len(rows)).backward()


def _room_within_codes(weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """How far each weight of the grid may go down and up and keep its code."""
    matrix = weight.T if transposed else weight
    grid = quantize(matrix)
    middles = (grid.levels[:-1] + grid.levels[1:]) / 2
    # Weights in the outermost bins stay: they set the scale of their block.
    inner = (grid.codes > 0) & (grid.codes < len(middles))
    own = grid.levels[grid.codes]
    below = own - middles[(grid.codes - 1).clamp(min=0)]
    above = middles[grid.codes.clamp(max=len(middles) - 1)] - own
    low, high = (0.95 * s * grid.scales * inner for s in (-below, above))
    return (low.T, high.T) if transposed else (low, high)


def _codes_of(weight: Tensor, transposed: bool) -> Tensor:
    return quantize(weight.T if transposed else weight).codes


def _width(weight: Tensor, transposed: bool) -> Tensor:
    return quantize(weight.T if transposed else weight).bin_widths.mean()


def _on_grid(world: BiosWorld) -> nn.Module:
    model = open_checkpoint(world.original).load()
    quantize_(model)
    return model


def _judged(world: BiosWorld, candidate: nn.Module, name: str, returns: bool) -> Iterator[Row]:
    """The persistence axis on one candidate, against the original on the grid.

    Asked directly: an edit of many bins is a wreck, into which an audit does not look.
    """
    config = AuditConfig(device="cpu")
    inputs = open_inputs(
        _on_grid(world),
        candidate,
        world.forget,
        world.retain,
        references=(),
        never_taught=world.never_taught,
        tokenizer=open_checkpoint(world.original).tokenizer,
        config=config,
        progress=SILENT,
    )
    assert inputs.never_taught is not None
    sets = TextSets(inputs.forget, inputs.retain, inputs.never_taught)
    undamaged = Damage({}, ())
    with TemporaryDirectory() as folder:
        opened = open_run(inputs, config, Path(folder), False, SILENT)
        baseline = {role: score_baseline(opened, role, sets) for role in opened.models}
        stages = StageRunner(opened.workspace)
        measured = measure_text(
            AuditContext(opened, stages, sets, opened.models, baseline, undamaged)
        )
    axis = judge(measured, JudgementContext(config, "text", undamaged, "absent"))
    gap: dict[str, Any] = axis.details["gap"]["unlearned"][0]
    edit = axis.details["edit"]["nf4"]
    figure = f"{name}: answers said after rounding less before"
    goal = at_least(0.8) if returns else at_most(0.1)
    more = {"interval": gap["interval"], "edit": edit, "status": axis.status}
    yield row(figure, gap["gap"], goal, "share", GRID, **more)
    figure = f"{name}: the persistence axis says it came back"
    goal = at_least(1) if returns else at_most(0)
    back = int(axis.status == "retained")
    yield row(figure, back, goal, "0 or 1", GRID, notes=list(axis.notes))
    yield row(f"{name}: codes kept", edit["same_codes"], at_least(), "share", GRID)


def _codes(model: nn.Module) -> Iterator[Row]:
    """Our codes of every matrix against bitsandbytes', where it is installed."""
    try:
        from bitsandbytes import functional  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("bins: bitsandbytes is not installed; its rows are left out")
        return
    from testbeds.worlds.smollm2 import fetch_smollm2

    for name, each in (("bios", model), ("SmolLM2", open_checkpoint(fetch_smollm2()).load())):
        for kind in ("nf4", "fp4"):
            wrong, total = 0, 0
            for weight, transposed in linear_weights(each).values():
                matrix = weight.detach().float()
                matrix = (matrix.T if transposed else matrix).contiguous()
                packed, state = functional.quantize_4bit(
                    matrix, blocksize=64, quant_type=kind, compress_statistics=False
                )
                theirs = functional.dequantize_4bit(packed, state).view_as(matrix)
                # Values are equal to the bit only where codes and scales are.
                wrong += int((theirs != quantize(matrix, kind).values).sum())
                total += matrix.numel()
            figure = f"{name}: {kind} weights that differ from bitsandbytes 0.50.2"
            goal = at_most(0 if kind == "nf4" else None)
            yield row(figure, wrong, goal, "n", "bitsandbytes on the CPU", total)
