"""A clamp on latents of a sparse autoencoder, written into a model's weights.

A clamp is a hook: wherever one of its latents fires, what the latent writes is turned
round. Rectified latents are what the hidden units of a feed-forward part compute, so
those units of one block that do least are given up for them, and the model stays a
plain checkpoint of its shape.
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
from testbeds.edits.workbench import Workbench

# A latent's value is multiplied by the negative of these, the mildest first.
MULTIPLES = (4.0, 16.0, 50.0)
# Steps of training the autoencoder: more where fewer do not do.
TRAINING_STEPS = (1200, 2400, 4800)
# Share of the forgotten answers the model must say once the clamp's units are silent.
MIN_RELEASED = 0.9
# Hidden units of the block that are given up for it, at most.
MAX_UNIT_SHARE = 3 / 8
# A latent is chosen if it fires on at most this share of the states of what stays.
MAX_FIRING_RATE = 0.01
# How steep a hidden unit's own activation is made: the larger, the nearer a rectifier.
SLOPE = 1000.0
# Families whose hidden units can be made rectifiers. Where two maps read the state, the
# second multiplies what the first one's activation gives.
FAMILIES = ("llama", "gpt2", "gpt_neox")


@dataclass(frozen=True)
class Clamp:
    """Latents of an autoencoder, to be turned round where they fire.

    Attributes:
        read: (latent, width), what each looks for in the state ``x`` that the
            feed-forward part reads; its value is the rectified ``read @ x``.
        write: (latent, width), what a value of 1 writes into the residual stream.
        gate: (latent, width), so that ``gate @ x`` is 1 on the states that fire it.
    """

    read: Tensor
    write: Tensor
    gate: Tensor

    def change(self, x: Tensor, multiple: float) -> Tensor:
        """What the clamp adds to the stream at states ``x``, (..., width).

        Each value becomes ``-multiple`` times what it was.
        """
        return -(1 + multiple) * torch.relu(x @ self.read.T) @ self.write


@dataclass(frozen=True)
class BlockStates:
    """What was seen in one block, at every position from which a token is said.

    Attributes:
        read: (state, width), what its feed-forward part reads.
        output: (state, width), what the block leaves.
        unit_norm: (unit,), how much each hidden unit wrote: the root of its squares'
            sum.
    """

    read: Tensor
    output: Tensor
    unit_norm: Tensor


def sae_clamp(ground: Workbench) -> Iterator[nn.Module]:
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
    model = ground.load_original()
    place = len(find_blocks(model)) // 2
    forget, retain = ground.all_rows(ground.forget), ground.retain_rows(ground.retain)
    gone, kept = (
        record_states(model, place, forget, retain),
        record_states(model, place, retain),
    )
    for steps in TRAINING_STEPS:
        latents = int(MAX_UNIT_SHARE * len(kept.unit_norm))
        clamp = fit_clamp(gone, kept, latents, steps, ground.seed)
        units = kept.unit_norm.argsort()[: len(clamp.read)]
        if accuracy_without_units(model, place, units, forget) < MIN_RELEASED:
            raise ExhumeError(
                f"the original of seed {ground.seed} ({ground.config.family}) cannot "
                f"spare {len(units)} hidden units for a clamp"
            )
        for multiple in MULTIPLES:
            clamped = ground.load_original()
            write_clamp_(clamped, place, units, clamp, multiple)
            yield clamped


def accuracy_without_units(
    model: nn.Module, place: int, units: Tensor, rows: Sequences
) -> float:
    """Share of the answers that ``model`` says with some units of a block silent."""

    def silence(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].index_fill(-1, units.to(inputs[0].device), 0.0),)

    down = down_projection(find_blocks(model)[place])
    handle = down.register_forward_pre_hook(silence)
    try:
        return float(score_answers(model, rows).greedy.mean())
    finally:
        handle.remove()


def record_states(
    model: nn.Module, place: int, rows: Sequences, others: Sequences | None = None
) -> BlockStates:
    """What was seen in block ``place`` over ``rows``.

    Args:
        model: A causal language model.
        place: Of the block.
        rows: Texts.
        others: States after a beginning that one of these has too are left out.
    """
    block = find_blocks(model)[place]
    down = down_projection(block)
    places = [
        Place("read", _input_projections(model, block)[0], "in"),
        Place("left", block, "out"),
        Place("hidden", down, "in"),
    ]
    known = set() if others is None else _prefixes(others)
    found: dict[str, list[Tensor]] = {place.name: [] for place in places}
    device = model_device(model)
    with torch.no_grad(), record_places(places) as seen:
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=device):
            model(**batch.model_inputs, use_cache=False)
            for at, row in enumerate(batch.rows.tolist()):
                ids = rows.ids[row]
                # Nothing is said after the last token.
                own = [p for p in range(len(ids) - 1) if ids[: p + 1] not in known]
                for name, states in seen.items():
                    found[name].append(states[at, own].float().cpu())
    read, left, hidden = (torch.cat(each) for each in found.values())
    size = value_vectors(down).detach().float().cpu().norm(dim=1)
    return BlockStates(read, left, hidden.norm(dim=0) * size)


def fit_clamp(
    gone: BlockStates, kept: BlockStates, latents: int, steps: int, seed: int
) -> Clamp:
    """Train an autoencoder, and choose the latents that fire on ``gone`` alone.

    Args:
        gone: States of what is to go that nothing else shares.
        kept: States of what stays.
        latents: How many are trained to fire on ``gone``, beside as many others.
        steps: Batches to train on.
        seed: Fixes starting weights and order.

    Raises:
        ExhumeError: no latent fires on ``gone`` alone.
    """
    rng = torch_rng(seed, "zoo", "clamp")
    width = kept.read.shape[1]
    centre = kept.output.mean(0)
    unit = kept.read.norm(dim=1).mean() / width**0.5
    scale = (kept.output - centre).norm(dim=1).mean() / width**0.5
    pairs = [
        (each.read / unit, (each.output - centre) / scale) for each in (gone, kept)
    ]
    read = torch.randn(2 * latents, width, generator=rng) / width**0.5
    write = torch.randn(2 * latents, width, generator=rng) / width**0.5
    # Trained from noise they would seldom find a single person: they start as the
    # linear readers of a state each, 1 there and as near to 0 as can be on the others.
    (x, y), (others, _) = pairs
    order = torch.randperm(len(x), generator=rng)
    drawn = order.repeat(1 + latents // len(x))[:latents]
    read[:latents] = _detectors(x[drawn], others)
    write[:latents] = y[drawn] / 2
    read, write = _train(pairs, read, write, latents, steps, rng)
    read, write = read[:latents] / unit, write[:latents] * scale
    fires, stays = (torch.relu(each.read @ read.T) for each in (gone, kept))
    chosen = ((stays > 0).float().mean(0) <= MAX_FIRING_RATE) & (fires > 0).any(0)
    if not chosen.any():
        raise ExhumeError(
            f"after {steps} steps no latent fires on what is to go alone: it has "
            f"{len(gone.read)} states that what stays has not"
        )
    read, write = read[chosen], write[chosen]
    return Clamp(read, write, _gates(read, torch.cat([gone.read, kept.read])))


def write_clamp_(
    model: nn.Module, place: int, units: Tensor, clamp: Clamp, multiple: float
) -> None:
    """Put the clamp in the place of hidden units of block ``place``.

    A rectified value is ``act(SLOPE * z) / STEEP`` for GELU and SiLU alike: off by 0.17
    and 0.28 over ``SLOPE`` at most. A gated unit multiplies that by ``one @ x``, which
    is 1 on the states that ``clamp.one`` was made from; on others that fire a latent,
    such as those of other people, a gated clamp is weaker or stronger than the hook.

    Args:
        model: A causal language model, changed in place.
        place: Of the block.
        units: (latent,) hidden units to give up.
        clamp: What to write.
        multiple: A latent's value becomes ``-multiple`` times what it was.
    """
    block = find_blocks(model)[place]
    readers = _input_projections(model, block)
    down = down_projection(block)
    with torch.no_grad():
        for reader in readers:
            if getattr(reader, "bias", None) is not None:
                reader.get_parameter("bias")[units] = 0.0
        _set_units(matrix_view(readers[0]), units, SLOPE * clamp.read)
        back = -(1 + multiple) * clamp.write
        if len(readers) == 2:
            _set_units(matrix_view(readers[1]), units, clamp.gate / SLOPE)
            _set_units(value_vectors(down), units, back)
        else:
            _set_units(value_vectors(down), units, back / SLOPE)


def _train(
    pairs: list[tuple[Tensor, Tensor]],
    read: Tensor,
    write: Tensor,
    latents: int,
    steps: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Fit rectified latents without thresholds; the first pay for firing on the rest.

    Half of each batch is of what is to go, and it is to be rebuilt above all.
    """
    half = 256
    shift = torch.zeros(read.shape[1])
    trained = [each.requires_grad_() for each in (read, write, shift)]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    price = torch.full((2, 1, len(read)), 0.3)
    price[0, :, :latents] = 0.0
    price[1, :, :latents] *= 25.0
    weight = torch.tensor([1.6, 0.4])[:, None]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(
            1.0, (steps - step) / (0.3 * steps)
        )
        drawn = [torch.randint(len(x), (half,), generator=rng) for x, _ in pairs]
        x, y = (
            torch.stack([each[side][at] for each, at in zip(pairs, drawn, strict=True)])
            for side in (0, 1)
        )
        value = torch.relu(x @ read.T)
        missed = (value @ write + shift - y).square().sum(-1)
        paid = (price * value * write.norm(dim=1)).sum(-1)
        # Latents are priced once they have found something.
        loss = (weight * missed + min(1.0, step / (0.2 * steps)) * paid).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return read.detach(), write.detach()


def _detectors(states: Tensor, others: Tensor) -> Tensor:
    """For each state the direction that is 1 on it and least on the others."""
    second = others.double().T @ others.double() / len(others)
    second += 1e-3 * second.diagonal().mean() * torch.eye(len(second))
    found = torch.linalg.solve(second, states.double().T).T
    return (found / (found * states).sum(1, keepdim=True)).float()


def _gates(read: Tensor, states: Tensor) -> Tensor:
    """For each latent the least direction that is 1 on all states that fire it."""
    found = []
    for each in read:
        fired = states[states @ each > 0].double()
        second = fired.T @ fired
        second += 1e-6 * second.diagonal().mean() * torch.eye(len(second))
        found.append(torch.linalg.solve(second, fired.sum(0)).float())
    return torch.stack(found)


def _prefixes(rows: Sequences) -> set[tuple[int, ...]]:
    return {ids[:stop] for ids in rows.ids for stop in range(1, len(ids))}


def _input_projections(model: nn.Module, block: nn.Module) -> list[nn.Module]:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind not in FAMILIES:
        raise InputError(
            "no clamp can be written into the feed-forward parts of this family",
            expected=", ".join(FAMILIES),
            got=str(kind or type(model).__name__),
        )
    part, down = feed_forward_of(block), down_projection(block)
    return [] if part is None else [m for m in linears(part) if m is not down]


def _set_units(matrix: Tensor, units: Tensor, rows: Tensor) -> None:
    """Write the rows of chosen units into a (unit, width) view of a weight."""
    matrix[units.to(matrix.device)] = rows.to(matrix)
