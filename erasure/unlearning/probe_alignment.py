"""Probe-geometry alignment: make a live linear readout of membership find nothing.

A readout w is fitted on the model's states of memorised and of clean texts; training
shrinks the gap (w . [h(memorised) - h(clean)])^2 at every depth while the clean texts
stay as likely as they were, and the readout is fitted anew every few epochs.

What this removes from the sample it is fitted on says nothing about other texts: an
eraser that has seen a probe's test rows drives that probe below chance on pure noise.
``probes.sweeps.membership_test`` evaluates it on sequences it has not seen.

Source: arXiv 2605.01699 and its public code; the settings are those of the code. Its
isotropic baseline is known to us by name alone: ours is the same gap averaged over all
directions, |h(memorised) - h(clean)|^2 / d.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from capture.activations.hidden_states import (
    check_depths,
    last_token_states,
    prompts_only,
    record_depths,
    states_at,
)
from capture.data.sequences import Padded, Sequences, pad
from erasure.unlearning.training.adapters import low_rank_
from erasure.unlearning.training.loop import (
    Evaluate,
    Schedule,
    TrainLog,
    chunk_tokens,
    device_of,
    only_training,
    train_steps,
)
from erasure.unlearning.training.objectives import count_scored, token_logprobs
from evidence.errors import InputError
from evidence.fields import check_fields
from evidence.progress import SILENT, Progress

FitProbe = Callable[[Tensor, Tensor], Tensor]
"""(depth, row, d) states and (row,) labels, 1 for memorised, to (depth, d) readouts."""
CleanTexts = Callable[[int], Sequences]
"""Clean texts of an epoch, in the same order in every one."""
ALIGNMENTS = ("readout", "isotropic")


@dataclass(frozen=True)
class PgaConfig:
    """Settings of an alignment.

    Attributes:
        align: ``"readout"``, or the baseline ``"isotropic"``.
        align_weight: Weight of the squared gap, a mean over pairs and depths.
        clean_weight: Weight of the clean texts' cross-entropy, nats a token.
        lr: Adam's learning rate.
        epochs: Steps; each sees all pairs.
        refit_every: Epochs between fits of the readout.
        depths: 0 is the embeddings' output, L that of the last block; None for all.
        rank: Readouts aligned at each depth. Beyond 1 they are those of an attacker
            that fits again after the earlier ones are projected out.
        lora_rank: Train adapters of this rank, merged at the end; None trains all
            weights.
        lora_alpha: Scale of the adapters; twice the rank by default.
    """

    align: str = "readout"
    align_weight: float = 0.1
    clean_weight: float = 1.0
    lr: float = 3e-4
    epochs: int = 400
    refit_every: int = 50
    depths: tuple[int, ...] | None = None
    rank: int = 1
    lora_rank: int | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        checks = {
            "align": (self.align in ALIGNMENTS, " or ".join(ALIGNMENTS), self.align),
            "align_weight": (self.align_weight >= 0, "0 or more", self.align_weight),
            "clean_weight": (self.clean_weight >= 0, "0 or more", self.clean_weight),
            "refit_every": (self.refit_every >= 1, "1 or more", self.refit_every),
            "rank": (self.rank >= 1, "1 or more", self.rank),
            "lora_rank": (
                self.lora_rank is None or self.lora_rank >= 1,
                "None, or 1 or more",
                self.lora_rank,
            ),
        }
        for name, (good, expected, got) in checks.items():
            if not good:
                raise InputError(
                    f"{name} cannot be used", expected=expected, got=str(got)
                )
        self.schedule()

    def schedule(self) -> Schedule:
        """The learning-rate plan, checked."""
        return Schedule(self.lr, self.epochs, clip=None, every=self.refit_every)


TOY = PgaConfig()
PYTHIA = PgaConfig(
    align_weight=1.0,
    lr=1e-4,
    epochs=200,
    refit_every=25,
    depths=tuple(range(1, 7)),
    lora_rank=16,
    lora_alpha=32.0,
)
"""For the shape of Pythia-70M, six blocks."""
LLAMA = PgaConfig(
    align_weight=0.05,
    clean_weight=3.0,
    lr=3e-5,
    epochs=80,
    refit_every=10,
    depths=(16, 20, 24, 28, 32),
    lora_rank=8,
)
"""For 32 blocks, as the paper's Mistral; its readouts there have C = 0.01."""
PRESETS = {
    "toy": TOY,
    "isotropic": replace(TOY, align="isotropic"),
    "adversarial": replace(TOY, rank=4),
    "pythia": PYTHIA,
    "llama": LLAMA,
}


@dataclass(frozen=True)
class PgaLog(TrainLog):
    """What happened: a ``TrainLog``, the settings, and the last readouts.

    Attributes:
        config: The settings.
        directions: (depth, rank, d) last aligned, orthonormal; empty if isotropic.
    """

    config: PgaConfig | None = None
    directions: Tensor | None = None


def align_(
    model: nn.Module,
    memorized: Sequences,
    clean: Sequences | CleanTexts,
    fit: FitProbe,
    config: PgaConfig,
    *,
    evaluate: Evaluate | None = None,
    seed: int,
    progress: Progress = SILENT,
) -> PgaLog:
    """Align memorised with clean texts, in place.

    Args:
        model: A Hugging Face causal language model; it stays a plain model.
        memorized: Texts to align, read at the last token before their answer (the
            last token where there is none).
        clean: As many texts, row i the partner of row i, whose likelihood is kept; or
            a function from epoch to texts, for codes that are drawn anew.
        fit: Fits readouts; handed in, so that any probe can be aligned against.
        config: Settings.
        evaluate: Model to named numbers, called at each refit.
        seed: Fixes the adapters.
        progress: Where progress is shown.

    Raises:
        InputError: no pairs, texts that do not pair up, or depths that are not there.
    """
    texts = clean if callable(clean) else _constant(clean)
    first = texts(0)
    if len(memorized) == 0 or len(memorized) != len(first):
        raise InputError(
            "memorised and clean texts must pair up",
            expected="as many of one as of the other, and at least one",
            got=f"{len(memorized)} and {len(first)}",
        )
    count_scored(first, "all")
    depths = check_depths(model, config.depths)
    scope, whole = [model], list(model.parameters())
    alpha = config.lora_alpha
    if config.lora_rank is not None:
        alpha = 2.0 * config.lora_rank if alpha is None else alpha
        adapters = low_rank_(model, scope, config.lora_rank, alpha, seed)
    else:
        adapters = nullcontext(whole)
    with adapters as parameters, only_training(model, parameters) as trained:
        pairs = _Pairs(model, memorized, texts, depths, config)
        found: dict[str, Tensor] = {}
        epoch = 0

        def backward() -> dict[str, float]:
            nonlocal epoch
            if config.align == "readout" and epoch % config.refit_every == 0:
                states, labels = pairs.states()
                # Fitted on the CPU, in float64, wherever the model is.
                basis = attacker_basis(fit, states.cpu(), labels, config.rank)
                found.update(basis=basis, there=basis.to(states))
            losses = pairs.backward(epoch, found.get("there"))
            epoch += 1
            return losses

        log = train_steps(
            model,
            trained,
            backward,
            config.schedule(),
            evaluate=evaluate,
            label=f"{config.align} alignment",
            progress=progress,
        )
    return PgaLog(log.rows, log.stopped, config, found.get("basis"))


def attacker_basis(fit: FitProbe, states: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Readouts of an attacker who fits again after each one is projected out.

    Args:
        fit: Fits readouts.
        states: (depth, row, d).
        labels: (row,), 1 for memorised.
        rank: How many, at most d.

    Returns:
        (depth, rank, d) orthonormal, in the order they were found; zero where there
        was nothing left to find, such as at a depth where all rows are equal.

    Raises:
        InputError: more than d, or a readout that is not finite.
    """
    depths, _, width = states.shape
    if not 1 <= rank <= width:
        raise InputError("rank cannot be used", expected=f"1 to {width}", got=str(rank))
    basis = states.new_zeros((depths, 0, width), dtype=torch.float64)
    left = states.double()
    for _ in range(rank):
        new = fit(left, labels).to(basis)
        whole = new.norm(dim=1, keepdim=True)
        # Twice: one pass leaves what rounding brought back.
        for _ in range(2):
            new = new - torch.einsum(
                "zk,zkd->zd", (basis @ new[:, :, None])[..., 0], basis
            )
        if not bool(torch.isfinite(new).all()):
            raise InputError("a readout is not finite", fix="Check the states for NaN")
        size = new.norm(dim=1, keepdim=True)
        # What projecting leaves of a readout inside the span is rounding.
        new = torch.where(size > 1e-9 * whole, new / size.clamp(min=1e-300), 0.0)
        basis = torch.cat([basis, new[:, None]], dim=1)
        left = left - torch.einsum("zn,zd->znd", (left @ new[:, :, None])[..., 0], new)
    return basis


class _Pairs:
    """Memorised and clean texts side by side, computed in chunks of bounded size."""

    def __init__(
        self,
        model: nn.Module,
        memorised: Sequences,
        clean: CleanTexts,
        depths: Sequence[int],
        config: PgaConfig,
    ):
        self.model, self.clean, self.depths = model, clean, depths
        self.config = config
        self.memorised = prompts_only(memorised)
        longest = max(map(len, self.memorised.ids + clean(0).ids))
        count, size = len(memorised), max(1, chunk_tokens(model) // longest)
        self.chunks = [
            list(range(start, min(start + size, count)))
            for start in range(0, count, size)
        ]
        # They are the same in every epoch, so they are laid out and moved once.
        self.batches = self.padded(self.memorised)

    def padded(self, rows: Sequences) -> list[Padded]:
        """The chunks of ``rows``, where the model is."""
        device = device_of(self.model)
        return [pad(rows, chunk, device=device) for chunk in self.chunks]

    def states(self) -> tuple[Tensor, Tensor]:
        """(depth, row, d) of all memorised, then all clean texts, and the labels."""
        found = []
        with torch.no_grad():
            for batch in self.batches + self.padded(prompts_only(self.clean(0))):
                found.append(last_token_states(self.model, batch, self.depths))
        count = len(self.memorised)
        labels = torch.tensor([1] * count + [0] * count)
        return torch.cat(found, dim=1), labels

    def backward(self, epoch: int, basis: Tensor | None) -> dict[str, float]:
        """Add the gradient of one epoch; returns the unweighted terms."""
        rows, config = self.clean(epoch), self.config
        total = count_scored(rows, "all")
        align = entropy = 0.0
        both = zip(self.batches, self.padded(rows), self.chunks, strict=True)
        for memorised, clean, chunk in both:
            mine = last_token_states(self.model, memorised, self.depths)
            with record_depths(self.model, self.depths) as seen:
                logprob, _ = token_logprobs(self.model, clean, "all")
            starts = torch.tensor([rows.answer_start[row] for row in chunk])
            ends = starts.to(clean.input_ids.device) - 1
            other = states_at(seen, self.depths, ends)
            gap = squared_gap(mine - other, basis).sum() / len(self.memorised)
            nats = -logprob.sum() / total
            (config.align_weight * gap + config.clean_weight * nats).backward()
            align += float(gap.detach())
            entropy += float(nats.detach())
        return {"align": align, "clean": entropy}


def squared_gap(difference: Tensor, basis: Tensor | None) -> Tensor:
    """(row,) squared length of what is seen of the differences, a mean over depths.

    Args:
        difference: (depth, row, d) memorised less clean.
        basis: (depth, k, d) orthonormal readouts, whose squares are summed; None for
            the mean over all directions, the squared length over d.
    """
    if basis is None:
        return difference.square().mean(-1).mean(0)
    seen = torch.einsum("znd,zkd->znk", difference, basis.to(difference))
    return seen.square().sum(-1).mean(0)


def _constant(rows: Sequences) -> CleanTexts:
    return lambda epoch: rows
