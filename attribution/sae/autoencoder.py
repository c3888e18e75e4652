"""Sparse autoencoders of model sites: encode, decode, splice, steer, and measure quality.

The models are sae-lens's; ``attribution.sae.files`` reads them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import Sites, find_sites
from capture.network.structure import model_device
from evidence.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Sae:
    """A sparse autoencoder of one site.

    Attributes:
        module: The sae-lens model, in evaluation mode.
        site: Name of the site whose states it reconstructs.
        metadata: Written by ``train_sae``: "kind", "model" (hash of the weights), "dead" (latents
            that never fire) and "prefixes"; empty for an autoencoder from elsewhere.

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> latents = sae.encode(torch.from_numpy(states.site("resid.0")))
        >>> latents.shape, sae.decode(latents).shape
        (torch.Size([76, 64]), torch.Size([76, 32]))
    """

    module: Any
    site: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = self.metadata.get("kind", self.module.cfg.architecture())
        return f"Sae({kind} at {self.site}, {self.d_in} -> {self.d_sae})"

    @property
    def d_in(self) -> int:
        """Width of the site."""
        return int(self.module.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.module.cfg.d_sae)

    @property
    def decoder(self) -> Tensor:
        """(latent, d) direction that one unit of each latent adds to the reconstruction."""
        return self.module.W_dec.detach()

    def encode(self, states: Tensor) -> Tensor:
        """(..., latent) activations of (..., d) states.

        Raises:
            InputError: The states have another width.
        """
        self.check_width(states)
        with torch.no_grad():
            return self.module.encode(states)

    def check_width(self, states: Tensor) -> None:
        """Check that states (..., d) have the width of the site.

        Raises:
            InputError: They have another width.
        """
        if states.shape[-1] != self.d_in:
            raise InputError(
                "the states have another width than the autoencoder",
                expected=str(self.d_in),
                got=str(states.shape[-1]),
                fix="Use one that was trained on this site of this model",
            )

    def decode(self, latents: Tensor) -> Tensor:
        """(..., d) from (..., latent)."""
        with torch.no_grad():
            return self.module.decode(latents)


def spliced(
    model: nn.Module,
    sae: Sae,
    edit: Callable[[Tensor], Tensor] | None = None,
    *,
    keep_error: bool = True,
    first_position: int = 1,
    known_sites: Sites | None = None,
) -> AbstractContextManager[None]:
    """Context manager that routes the model's states at a site through the autoencoder.

    Args:
        model: Run by the caller inside the context.
        edit: Maps latents (row, position, latent) to latents; no edit by default.
        keep_error: Add the reconstruction error, so that without an edit nothing changes.
        first_position: Earlier positions are left unchanged. The first token's state is an outlier
            in most language models, and no autoencoder is trained on it.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: The site does not exist in the model, or has another width.
    """
    sites = known_sites if known_sites is not None else find_sites(model)
    sites.resolve(sae.site)
    if sites.d_model not in (None, sae.d_in):
        raise InputError(
            f"the autoencoder has another width than {sae.site} of the model",
            expected=str(sites.d_model),
            got=str(sae.d_in),
            fix="Use one that was trained on this model",
        )

    def splice(value: Tensor) -> Tensor:
        # A decoding step of a generation has one position, which is never the first.
        body = value[:, first_position:] if value.shape[1] > 1 else value
        if body.shape[1] == 0:
            return value
        latents = sae.encode(body)
        new = sae.decode(edit(latents.clone()) if edit else latents)
        if keep_error:
            new = new + body - sae.decode(latents)
        return torch.cat([value[:, : value.shape[1] - body.shape[1]], new], 1)

    return patch(model, {sae.site: splice}, known_sites=sites)


def steer_latents(
    model: nn.Module, sae: Sae, amounts: Mapping[int, float], *, known_sites: Sites | None = None
) -> AbstractContextManager[None]:
    """Context manager that adds constants to latents at every position but the first.

    Adding c to a latent moves the state by c times its decoder row; the reconstruction error is
    kept.

    Args:
        model: Run by the caller inside the context.
        amounts: Latent index to the amount added, in latent units.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: A latent does not exist or is dead, or an amount is not finite; or as
            ``spliced``.

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> latent = int(sae.encode(torch.from_numpy(states.site("resid.0"))).sum(0).argmax())
        >>> plain = exhume.score_answers(model, rows)
        >>> with exhume.steer_latents(model, sae, {latent: 20.0}):
        ...     steered = exhume.score_answers(model, rows)
        >>> bool(steered.logprob.mean() < plain.logprob.mean())
        True
    """
    for latent, amount in amounts.items():
        check_latent(sae, latent)
        if not torch.isfinite(torch.tensor(float(amount))):
            raise InputError("the steering strength is not a finite number", got=str(amount))
    indices = torch.tensor(list(amounts), dtype=torch.long)
    added = torch.tensor([float(each) for each in amounts.values()])

    def edit(latents: Tensor) -> Tensor:
        latents[..., indices.to(latents.device)] += added.to(latents)
        return latents

    return spliced(model, sae, edit, known_sites=known_sites)


def check_latent(sae: Sae, latent: int) -> None:
    """Check that a latent exists and is not dead.

    Raises:
        InputError: It does not exist, or it never fired in training.
    """
    if not 0 <= latent < sae.d_sae:
        raise InputError(
            f"the autoencoder has no latent {latent}", expected=f"0 to {sae.d_sae - 1}"
        )
    if latent in set(sae.metadata.get("dead", ())):
        raise InputError(
            f"latent {latent} is dead: it never fired on the rows it was trained on",
            fix="Choose a latent that fires",
        )


@dataclass(frozen=True)
class SaeQuality:
    """Reconstruction quality and sparsity.

    Attributes:
        fvu: Fraction of variance unexplained: squared error over squared distance from the mean. 0
            is perfect; the mean alone gives 1.
        l0: Mean number of active latents per row.
        dead: Share of latents that are active on no row.
        rows: Number of rows measured.
    """

    fvu: float
    l0: float
    dead: float
    rows: int


def measure_quality(sae: Sae, chunks: Iterator[Any]) -> SaeQuality:
    """Measure an autoencoder on states (row, d), given in chunks.

    Raises:
        InputError: There are no rows, the states have another width, or they do not vary.
    """
    squared_error, count, ever_active = 0.0, 0, None
    total, squared_norm, n_active = torch.zeros(sae.d_in, dtype=torch.float64), 0.0, 0.0
    for chunk in chunks:
        x = torch.as_tensor(chunk, dtype=torch.float32)
        latents = sae.encode(x)
        squared_error += float((sae.decode(latents) - x).double().square().sum())
        is_active = latents > 0
        n_active += float(is_active.sum())
        ever_active = is_active.any(0) if ever_active is None else ever_active | is_active.any(0)
        total += x.double().sum(0)
        squared_norm += float(x.double().square().sum())
        count += len(x)
    variance = squared_norm - float(total.square().sum()) / max(count, 1)
    if ever_active is None or variance <= 1e-9 * max(squared_norm, 1e-300):
        raise InputError(
            "an autoencoder cannot be measured on these states",
            expected="rows that differ",
            got=f"{count} rows",
        )
    dead = 1 - float(ever_active.double().mean())
    return SaeQuality(squared_error / variance, n_active / count, dead, count)


@dataclass(frozen=True)
class LossRecovered:
    """Next-token loss with the states replaced by their reconstructions.

    Attributes:
        plain: Mean loss of the model, nats per token.
        spliced: With reconstructions in place of the states.
        ablated: With the mean state in their place.
        recovered: (ablated - spliced) / (ablated - plain); 1 is perfect, NaN if the site does not
            matter.
    """

    plain: float
    spliced: float
    ablated: float
    recovered: float


def loss_recovered(
    model: nn.Module, sae: Sae, sequences: Sequences, *, batch_tokens: int = 4096
) -> LossRecovered:
    """Next-token loss with the reconstruction, and with the mean state, in place of the state.

    The first position is left unchanged throughout.

    Raises:
        InputError: As ``spliced``.
    """
    sites = find_sites(model)
    total, count = torch.zeros(sae.d_in), 0

    def accumulate(latents_of: Tensor) -> Tensor:
        nonlocal total, count
        body = latents_of[:, 1:]
        total = total.to(body) + body.sum((0, 1))
        count += body.shape[0] * body.shape[1]
        return latents_of

    with patch(model, {sae.site: accumulate}, known_sites=sites):
        plain = _loss(model, sequences, batch_tokens)
    mean = total / max(count, 1)

    def to_mean(value: Tensor) -> Tensor:
        out = value.clone()
        out[:, 1:] = mean
        return out

    with spliced(model, sae, keep_error=False, known_sites=sites):
        spliced_loss = _loss(model, sequences, batch_tokens)
    with patch(model, {sae.site: to_mean}, known_sites=sites):
        ablated_loss = _loss(model, sequences, batch_tokens)
    damage = ablated_loss - plain
    recovered = (ablated_loss - spliced_loss) / damage if abs(damage) > 1e-6 else float("nan")
    return LossRecovered(plain, spliced_loss, ablated_loss, recovered)


def _loss(model: nn.Module, sequences: Sequences, batch_tokens: int) -> float:
    """Mean next-token loss in nats."""
    device = model_device(model)
    total, count = 0.0, 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches(sequences, batch_tokens=batch_tokens, device=device):
            logits = model(**batch.model_inputs, use_cache=False).logits
            mask = batch.attention_mask[:, 1:].bool()
            loss = nn.functional.cross_entropy(
                logits[:, :-1][mask].float(), batch.input_ids[:, 1:][mask]
            )
            total += float(loss) * int(mask.sum())
            count += int(mask.sum())
    return total / max(count, 1)
