"""Probe-geometry alignment (PGA): train until a live linear membership probe finds nothing.

A probe w is fitted on the model's states of memorized and clean texts. Training shrinks the gap (w
. [h(memorized) - h(clean)])^2 at every depth while the likelihood of the clean texts is preserved,
and the probe is refitted every few epochs.

The effect on the sample it is fitted on does not carry over to other texts: an eraser that has seen
a probe's test rows drives that probe below chance even on pure noise.
``probes.sweeps.membership_test`` evaluates on held-out sequences.

Source: arXiv 2605.01699 and its public code, which the settings follow. Its isotropic baseline is
known to us by name only; ours is the same gap averaged over all directions, |h(memorized) -
h(clean)|^2 / d.
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
from capture.network.structure import model_device
from erasure.unlearning.training.loop import (
    Evaluate,
    Schedule,
    TrainLog,
    check_values,
    chunk_tokens,
    only_training,
    train_steps,
)
from erasure.unlearning.training.objectives import count_scored, token_logprobs
from erasure.unlearning.training.parameters import low_rank_
from evidence.errors import InputError
from evidence.fields import check_fields
from evidence.progress import AUTO, Progress

FitProbe = Callable[[Tensor, Tensor], Tensor]
"""Maps (depth, row, d) states and (row,) labels, 1 for memorized, to (depth, d) probes."""
CleanTexts = Callable[[int], Sequences]
"""Maps an epoch to its clean texts, in the same order in every epoch."""
ALIGNMENTS = ("readout", "isotropic")


@dataclass(frozen=True)
class PgaConfig:
    """Settings of probe-geometry alignment.

    Attributes:
        align: ``"readout"``, or the baseline ``"isotropic"``.
        align_weight: Weight of the squared gap, a mean over pairs and depths.
        clean_weight: Weight of the clean texts' cross-entropy, nats per token.
        lr: AdamW's learning rate.
        epochs: Number of steps; each uses all pairs.
        refit_every: Epochs between fits of the probe.
        depths: 0 is the embeddings' output, L that of the last block; None for all.
        rank: Number of probes aligned at each depth. Above 1 they are those of an attacker that
            refits after the earlier ones are projected out.
        lora_rank: Train LoRA adapters of this rank and merge them at the end; None trains all
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
        check_values(checks)
        self.schedule()

    def schedule(self) -> Schedule:
        """The validated learning-rate schedule."""
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
"""For Pythia-70M, which has six blocks."""
LLAMA = PgaConfig(
    align_weight=0.05,
    clean_weight=3.0,
    lr=3e-5,
    epochs=80,
    refit_every=10,
    depths=(16, 20, 24, 28, 32),
    lora_rank=8,
)
"""For 32 blocks, such as the paper's Mistral, whose probes have C = 0.01."""
PRESETS = {
    "toy": TOY,
    "isotropic": replace(TOY, align="isotropic"),
    "adversarial": replace(TOY, rank=4),
    "pythia": PYTHIA,
    "llama": LLAMA,
}


@dataclass(frozen=True, repr=False)
class PgaLog(TrainLog):
    """Training log with the settings and the last probes.

    Attributes:
        directions: (depth, rank, d) the last aligned probes, orthonormal; None if isotropic.
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
    progress: Progress = AUTO,
) -> PgaLog:
    """Align the states of memorized with those of clean texts, in place.

    Args:
        model: A Hugging Face causal language model; it stays a plain model.
        memorized: Texts to align, read at the last token before their answer (the last token if
            there is none).
        clean: As many texts, row i paired with row i, whose likelihood is preserved; or a function
            from epoch to texts, for codes that are drawn anew.
        fit: Fits probes; any probe can be aligned against.
        evaluate: Maps the model to named numbers, called at each refit.
        seed: Seed of the adapters.

    Raises:
        InputError: There are no pairs, the texts do not pair up, or a depth does not exist.
    """
    texts = clean if callable(clean) else _constant(clean)
    first = texts(0)
    if len(memorized) == 0 or len(memorized) != len(first):
        raise InputError(
            "memorized and clean texts must pair up",
            expected="as many of one as of the other, and at least one",
            got=f"{len(memorized)} and {len(first)}",
        )
    count_scored(first, "all")
    depths = check_depths(model, config.depths)
    scope, all_parameters = [model], list(model.parameters())
    alpha = config.lora_alpha
    if config.lora_rank is not None:
        alpha = 2.0 * config.lora_rank if alpha is None else alpha
        adapters = low_rank_(model, scope, config.lora_rank, alpha, seed)
    else:
        adapters = nullcontext(all_parameters)
    with adapters as parameters, only_training(model, parameters) as trained:
        pairs = _Pairs(model, memorized, texts, depths, config)
        probes: dict[str, Tensor] = {}
        epoch = 0

        def backward() -> dict[str, float]:
            nonlocal epoch
            if config.align == "readout" and epoch % config.refit_every == 0:
                states, labels = pairs.states()
                # Fit on the CPU in float64, whatever the model's device.
                basis = attacker_basis(fit, states.cpu(), labels, config.rank)
                probes.update(basis=basis, there=basis.to(states))
            losses = pairs.backward(epoch, probes.get("there"))
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
    return PgaLog(log.rows, log.stopped, config, probes.get("basis"))


def attacker_basis(fit: FitProbe, states: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Probes of an attacker that refits after each one is projected out.

    Args:
        fit: Fits probes.
        states: (depth, row, d).
        labels: (row,), 1 for memorized.
        rank: Number of probes, at most d.

    Returns:
        (depth, rank, d) orthonormal, in the order of fitting; zero if nothing is left to find, such
            as at a depth where all rows are equal.

    Raises:
        InputError: The rank exceeds d, or a probe is not finite.
    """
    depths, _, width = states.shape
    if not 1 <= rank <= width:
        raise InputError("rank cannot be used", expected=f"1 to {width}", got=str(rank))
    basis = states.new_zeros((depths, 0, width), dtype=torch.float64)
    remaining = states.double()
    for _ in range(rank):
        new = fit(remaining, labels).to(basis)
        norm_before = new.norm(dim=1, keepdim=True)
        # Orthogonalize twice, against rounding.
        for _ in range(2):
            new = new - torch.einsum("zk,zkd->zd", (basis @ new[:, :, None])[..., 0], basis)
        if not bool(torch.isfinite(new).all()):
            raise InputError("a probe is not finite", fix="Check the states for NaN")
        size = new.norm(dim=1, keepdim=True)
        # A probe within the span leaves only rounding errors.
        new = torch.where(size > 1e-9 * norm_before, new / size.clamp(min=1e-300), 0.0)
        basis = torch.cat([basis, new[:, None]], dim=1)
        remaining = remaining - torch.einsum(
            "zn,zd->znd", (remaining @ new[:, :, None])[..., 0], new
        )
    return basis


class _Pairs:
    """Memorized and clean texts in pairs, computed in chunks of bounded size."""

    def __init__(
        self,
        model: nn.Module,
        memorized: Sequences,
        clean: CleanTexts,
        depths: Sequence[int],
        config: PgaConfig,
    ):
        self.model, self.clean, self.depths = model, clean, depths
        self.config = config
        self.memorised = prompts_only(memorized)
        longest = max(map(len, self.memorised.ids + clean(0).ids))
        count, size = len(memorized), max(1, chunk_tokens(model) // longest)
        self.chunks = [
            list(range(start, min(start + size, count))) for start in range(0, count, size)
        ]
        # Memorized texts are the same in every epoch, so pad and move them once.
        self.batches = self.padded(self.memorised)

    def padded(self, rows: Sequences) -> list[Padded]:
        """The chunks of ``rows``, padded, on the model's device."""
        device = model_device(self.model)
        return [pad(rows, chunk, device=device) for chunk in self.chunks]

    def states(self) -> tuple[Tensor, Tensor]:
        """(depth, row, d) states of all memorized, then all clean texts, and their labels."""
        states = []
        with torch.no_grad():
            for batch in self.batches + self.padded(prompts_only(self.clean(0))):
                states.append(last_token_states(self.model, batch, self.depths))
        count = len(self.memorised)
        labels = torch.tensor([1] * count + [0] * count)
        return torch.cat(states, dim=1), labels

    def backward(self, epoch: int, basis: Tensor | None) -> dict[str, float]:
        """Add the gradient of one epoch and return the unweighted terms."""
        rows, config = self.clean(epoch), self.config
        total = count_scored(rows, "all")
        align = entropy = 0.0
        batches = zip(self.batches, self.padded(rows), self.chunks, strict=True)
        for memorized, clean, chunk in batches:
            memorized_states = last_token_states(self.model, memorized, self.depths)
            with record_depths(self.model, self.depths) as recorded:
                logprob, _ = token_logprobs(self.model, clean, "all")
            starts = torch.tensor([rows.answer_start[row] for row in chunk])
            ends = starts.to(clean.input_ids.device) - 1
            clean_states = states_at(recorded, self.depths, ends)
            gap = squared_gap(memorized_states - clean_states, basis).sum() / len(self.memorised)
            nats = -logprob.sum() / total
            (config.align_weight * gap + config.clean_weight * nats).backward()
            align += float(gap.detach())
            entropy += float(nats.detach())
        return {"align": align, "clean": entropy}


def squared_gap(difference: Tensor, basis: Tensor | None) -> Tensor:
    """(row,) squared norm of the differences along the probes, mean over depths.

    Args:
        difference: (depth, row, d) memorized minus clean.
        basis: (depth, k, d) orthonormal probes, whose squares are summed; None for the mean over
            all directions.
    """
    if basis is None:
        return difference.square().mean(-1).mean(0)
    components = torch.einsum("znd,zkd->znk", difference, basis.to(difference))
    return components.square().sum(-1).mean(0)


def _constant(rows: Sequences) -> CleanTexts:
    return lambda epoch: rows
