"""A clamp on latents of a sparse autoencoder, written into a model's weights.

A clamp is usually a hook: where a latent fires, its contribution is multiplied by a negative
number. The hidden units of a feed-forward part compute the same kind of rectified values, so the
least used hidden units of one block are replaced by the clamp, and the model stays a plain
checkpoint of its shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import (
    down_projection,
    feed_forward_of,
    find_blocks,
    linears,
    matrix_view,
    model_device,
    value_vectors,
)
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import CHUNK_TOKENS
from evidence.errors import ExhumeError, InputError
from evidence.seeds import torch_rng
from testbeds.edits.workbench import TextWorkbench

# A latent's value is multiplied by the negative of these, the mildest first.
MULTIPLES = (4.0, 16.0, 50.0)
# Training steps of the autoencoder, tried in this order.
TRAINING_STEPS = (1200, 2400, 4800)
# Accuracy on the forgotten facts that the model must reach with the clamp's units ablated.
MIN_RELEASED = 0.9
# Largest share of the block's hidden units that the clamp replaces.
MAX_UNIT_SHARE = 3 / 8
# A latent is chosen if it fires on at most this share of the retain states.
MAX_FIRING_RATE = 0.01
# Input scale of the hidden units: the larger, the closer their activation is to a rectifier.
SLOPE = 1000.0
# Families whose hidden units can act as rectifiers. Where two maps read the state, the second
# multiplies the activation of the first (gating).
FAMILIES = ("llama", "gpt2", "gpt_neox")


@dataclass(frozen=True)
class Clamp:
    """Latents of an autoencoder whose contribution is reversed where they fire.

    Attributes:
        read: (latent, width), encoder direction on the state ``x`` that the feed-forward part
            reads; a latent's value is the rectified ``read @ x``.
        write: (latent, width), contribution of a value of 1 to the residual stream.
        gate: (latent, width), with ``gate @ x`` = 1 on the states that fire the latent.
    """

    read: Tensor
    write: Tensor
    gate: Tensor

    def change(self, x: Tensor, multiple: float) -> Tensor:
        """Change of the stream at states ``x``, (..., width).

        Each value becomes ``-multiple`` times what it was.
        """
        return -(1 + multiple) * torch.relu(x @ self.read.T) @ self.write


@dataclass(frozen=True)
class BlockStates:
    """States of one block at every position that predicts a token.

    Attributes:
        read: (state, width), input of its feed-forward part.
        output: (state, width), output of the block.
        unit_norm: (unit,), norm over states of each hidden unit's contribution.
    """

    read: Tensor
    output: Tensor
    unit_norm: Tensor


def sae_clamp(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Latents that fire on the forgotten alone, turned round wherever they fire.

    A sparse autoencoder reads what a middle block's feed-forward part reads and
    rebuilds what the block leaves. Of its latents those that fire on what is to go, and
    hardly ever on what stays, are multiplied by a negative number. They are hidden
    units of that feed-forward part, in place of those that did least.

    Raises:
        ExhumeError: the original does not say the answers without those units.

    Source: Applying sparse autoencoders to unlearn knowledge in language models
    (Farrell et al. 2024, arXiv 2410.19278), where zero in place of a negative number
    did nothing. There latents are picked from an autoencoder of all kinds of text.
    People drawn at random have no latents of their own in such a one, so some of the
    latents are trained to fire on them alone.
    """
    yield from clamp_block(bench, len(find_blocks(bench.load_original())) // 2)


def clamp_block(bench: TextWorkbench, i_block: int) -> Iterator[nn.Module]:
    """Models with latents of one block clamped, the mildest first.

    Args:
        bench: The workbench.
        i_block: Index of the block.

    Raises:
        ExhumeError: the original does not say the answers without those units.
    """
    model = bench.load_original()
    forget, retain = bench.all_rows(bench.forget), bench.retain_rows(bench.retain)
    forget_states, retain_states = (
        record_states(model, i_block, forget, retain),
        record_states(model, i_block, retain),
    )
    for steps in TRAINING_STEPS:
        latents = int(MAX_UNIT_SHARE * len(retain_states.unit_norm))
        clamp = fit_clamp(forget_states, retain_states, latents, steps, bench.seed)
        units = retain_states.unit_norm.argsort()[: len(clamp.read)]
        if accuracy_without_units(model, i_block, units, forget) < MIN_RELEASED:
            raise ExhumeError(
                f"the original of seed {bench.seed} ({bench.config.family}) cannot "
                f"spare {len(units)} hidden units for a clamp"
            )
        for multiple in MULTIPLES:
            clamped = bench.load_original()
            write_clamp_(clamped, i_block, units, clamp, multiple)
            yield clamped


def accuracy_without_units(model: nn.Module, i_block: int, units: Tensor, rows: Sequences) -> float:
    """Accuracy of ``model`` with some hidden units of a block ablated."""

    def silence(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].index_fill(-1, units.to(inputs[0].device), 0.0),)

    down = down_projection(find_blocks(model)[i_block])
    handle = down.register_forward_pre_hook(silence)
    try:
        return float(score_answers(model, rows).greedy.mean())
    finally:
        handle.remove()


def record_states(
    model: nn.Module, i_block: int, rows: Sequences, shared_with: Sequences | None = None
) -> BlockStates:
    """States of block ``i_block`` over ``rows``.

    Args:
        model: A causal language model.
        i_block: Index of the block.
        rows: Texts.
        shared_with: States after a prefix that one of these rows has too are left out.
    """
    block = find_blocks(model)[i_block]
    down = down_projection(block)
    places = [
        Place("read", _input_projections(model, block)[0], "in"),
        Place("left", block, "out"),
        Place("hidden", down, "in"),
    ]
    shared_prefixes = set() if shared_with is None else _prefixes(shared_with)
    collected: dict[str, list[Tensor]] = {i_block.name: [] for i_block in places}
    device = model_device(model)
    with torch.no_grad(), record_places(places) as captured:
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=device):
            model(**batch.model_inputs, use_cache=False)
            for i_row, row in enumerate(batch.rows.tolist()):
                ids = rows.ids[row]
                # The last position predicts nothing.
                positions = [p for p in range(len(ids) - 1) if ids[: p + 1] not in shared_prefixes]
                for name, states in captured.items():
                    collected[name].append(states[i_row, positions].float().cpu())
    read, left, hidden = (torch.cat(each) for each in collected.values())
    size = value_vectors(down).detach().float().cpu().norm(dim=1)
    return BlockStates(read, left, hidden.norm(dim=0) * size)


def fit_clamp(
    forget_states: BlockStates, retain_states: BlockStates, latents: int, steps: int, seed: int
) -> Clamp:
    """Train an autoencoder, and choose the latents that fire on the forget states only.

    Args:
        forget_states: States of the forget set that nothing else shares.
        retain_states: States of the retain set.
        latents: Number of latents trained to fire on the forget states, beside as many others.
        steps: Training batches.
        seed: Seed of initial weights and order.

    Raises:
        ExhumeError: no latent fires on the forget states only.
    """
    rng = torch_rng(seed, "zoo", "clamp")
    width = retain_states.read.shape[1]
    center = retain_states.output.mean(0)
    input_scale = retain_states.read.norm(dim=1).mean() / width**0.5
    output_scale = (retain_states.output - center).norm(dim=1).mean() / width**0.5
    pairs = [
        (states.read / input_scale, (states.output - center) / output_scale)
        for states in (forget_states, retain_states)
    ]
    read = torch.randn(2 * latents, width, generator=rng) / width**0.5
    write = torch.randn(2 * latents, width, generator=rng) / width**0.5
    # From random weights, latents would seldom find a single person. Each starts as the linear
    # detector of one state: 1 there, and as close to 0 as possible on the others.
    (x, y), (retain_inputs, _) = pairs
    order = torch.randperm(len(x), generator=rng)
    chosen_states = order.repeat(1 + latents // len(x))[:latents]
    read[:latents] = _detectors(x[chosen_states], retain_inputs)
    write[:latents] = y[chosen_states] / 2
    read, write = train_latents(pairs, read, write, latents, steps, rng)
    read, write = read[:latents] / input_scale, write[:latents] * output_scale
    forget_fires, retain_fires = (
        torch.relu(states.read @ read.T) for states in (forget_states, retain_states)
    )
    is_specific = ((retain_fires > 0).float().mean(0) <= MAX_FIRING_RATE) & (forget_fires > 0).any(
        0
    )
    if not is_specific.any():
        raise ExhumeError(
            f"after {steps} steps no latent fires on the forget set only; it has "
            f"{len(forget_states.read)} states that the retain set lacks"
        )
    read, write = read[is_specific], write[is_specific]
    return Clamp(read, write, _gates(read, torch.cat([forget_states.read, retain_states.read])))


def write_clamp_(
    model: nn.Module, i_block: int, units: Tensor, clamp: Clamp, multiple: float
) -> None:
    """Replace hidden units of block ``i_block`` by the clamp, in place.

    A rectified value is ``act(SLOPE * z) / SLOPE`` for GELU and SiLU alike, off by at most 0.17 and
    0.28 over ``SLOPE``. A gated unit multiplies that by ``gate @ x``, which is 1 on the states that
    ``clamp.gate`` was fitted on; on other states that fire a latent, such as those of other people,
    a gated clamp is weaker or stronger than the hook.

    Args:
        model: A causal language model.
        i_block: Index of the block.
        units: (latent,) hidden units to replace.
        clamp: The clamp.
        multiple: A latent's value becomes ``-multiple`` times what it was.
    """
    block = find_blocks(model)[i_block]
    input_projections = _input_projections(model, block)
    down = down_projection(block)
    with torch.no_grad():
        for projection in input_projections:
            if getattr(projection, "bias", None) is not None:
                projection.get_parameter("bias")[units] = 0.0
        _set_units(matrix_view(input_projections[0]), units, SLOPE * clamp.read)
        writes = -(1 + multiple) * clamp.write
        if len(input_projections) == 2:
            _set_units(matrix_view(input_projections[1]), units, clamp.gate / SLOPE)
            _set_units(value_vectors(down), units, writes)
        else:
            _set_units(value_vectors(down), units, writes / SLOPE)


def train_latents(
    pairs: list[tuple[Tensor, Tensor]],
    read: Tensor,
    write: Tensor,
    latents: int,
    steps: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Train rectified latents without thresholds; the first ones pay for firing on retain states.

    Half of each batch are forget states, whose reconstruction has more weight.
    """
    half = 256
    bias = torch.zeros(read.shape[1])
    trained = [pair.requires_grad_() for pair in (read, write, bias)]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    sparsity_price = torch.full((2, 1, len(read)), 0.3)
    sparsity_price[0, :, :latents] = 0.0
    sparsity_price[1, :, :latents] *= 25.0
    weight = torch.tensor([1.6, 0.4])[:, None]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (steps - step) / (0.3 * steps))
        sampled = [torch.randint(len(x), (half,), generator=rng) for x, _ in pairs]
        x, y = (
            torch.stack([pair[side][rows] for pair, rows in zip(pairs, sampled, strict=True)])
            for side in (0, 1)
        )
        latents_now = torch.relu(x @ read.T)
        error = (latents_now @ write + bias - y).square().sum(-1)
        sparsity = (sparsity_price * latents_now * write.norm(dim=1)).sum(-1)
        # The sparsity penalty is ramped up after the start.
        loss = (weight * error + min(1.0, step / (0.2 * steps)) * sparsity).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return read.detach(), write.detach()


def _detectors(states: Tensor, others: Tensor) -> Tensor:
    """For each state the direction that is 1 on it and smallest on the others."""
    second_moment = others.double().T @ others.double() / len(others)
    second_moment += 1e-3 * second_moment.diagonal().mean() * torch.eye(len(second_moment))
    directions = torch.linalg.solve(second_moment, states.double().T).T
    return (directions / (directions * states).sum(1, keepdim=True)).float()


def _gates(read: Tensor, states: Tensor) -> Tensor:
    """For each latent the smallest direction that is 1 on all states that fire it."""
    gates = []
    for direction in read:
        firing_states = states[states @ direction > 0].double()
        second_moment = firing_states.T @ firing_states
        second_moment += 1e-6 * second_moment.diagonal().mean() * torch.eye(len(second_moment))
        gates.append(torch.linalg.solve(second_moment, firing_states.sum(0)).float())
    return torch.stack(gates)


def _prefixes(rows: Sequences) -> set[tuple[int, ...]]:
    return {ids[:stop] for ids in rows.ids for stop in range(1, len(ids))}


def _input_projections(model: nn.Module, block: nn.Module) -> list[nn.Module]:
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type not in FAMILIES:
        raise InputError(
            "no clamp can be written into the feed-forward parts of this family",
            expected=", ".join(FAMILIES),
            got=str(model_type or type(model).__name__),
        )
    part, down = feed_forward_of(block), down_projection(block)
    return [] if part is None else [m for m in linears(part) if m is not down]


def _set_units(matrix: Tensor, units: Tensor, rows: Tensor) -> None:
    """Write the rows of chosen units into a (unit, width) view of a weight."""
    matrix[units.to(matrix.device)] = rows.to(matrix)
