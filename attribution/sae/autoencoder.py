"""Sparse autoencoders at our sites: encode, decode, splice and steer.

The models themselves are sae-lens's; ``attribution.sae.files`` reads them.
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
from evidence.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Sae:
    """A sparse autoencoder of one site.

    Attributes:
        module: The sae-lens model, in evaluation mode.
        site: Site whose states it reconstructs.
        metadata: What was written down when it was trained: "kind", "model" (hash of the
            weights it belongs to), "dead" (latents that never fire), "prefixes"; empty
            for one from elsewhere.
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
        """(latent, d) what one unit of each latent adds to the reconstruction."""
        return self.module.W_dec.detach()

    def encode(self, states: Tensor) -> Tensor:
        """(..., latent) from (..., d).

        Raises:
            InputError: states of another width.
        """
        if states.shape[-1] != self.d_in:
            raise InputError(
                "the states have another width than the autoencoder",
                expected=str(self.d_in),
                got=str(states.shape[-1]),
                fix="Use one that was trained on this site of this model",
            )
        with torch.no_grad():
            return self.module.encode(states)

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
    sites: Sites | None = None,
) -> AbstractContextManager[None]:
    """Run the model's states through an autoencoder: a context manager, as ``patch``.

    Args:
        model: Run by the caller, inside the block.
        sae: The autoencoder.
        edit: From latents (row, position, latent) to latents; none by default.
        keep_error: Add what the autoencoder does not reconstruct, so that without an
            edit nothing changes.
        first_position: Positions below this one are left alone: the state of the first token
            is an outlier in most language models, and no autoencoder is trained on it.
        sites: The model's sites, if already found.

    Raises:
        InputError: the site does not exist in the model, or has another width.
    """
    found = sites if sites is not None else find_sites(model)
    found.resolve(sae.site)
    if found.d_model not in (None, sae.d_in):
        raise InputError(
            f"the autoencoder has another width than {sae.site} of the model",
            expected=str(found.d_model),
            got=str(sae.d_in),
            fix="Use one that was trained on this model",
        )

    def through(value: Tensor) -> Tensor:
        # Decoding steps of a generation hold one position, which is never the first.
        rest = value[:, first_position:] if value.shape[1] > 1 else value
        if rest.shape[1] == 0:
            return value
        latents = sae.encode(rest)
        new = sae.decode(edit(latents.clone()) if edit else latents)
        if keep_error:
            new = new + rest - sae.decode(latents)
        return torch.cat([value[:, : value.shape[1] - rest.shape[1]], new], 1)

    return patch(model, {sae.site: through}, known_sites=found)


def steer_latents(
    model: nn.Module,
    sae: Sae,
    amounts: Mapping[int, float],
    *,
    sites: Sites | None = None,
) -> AbstractContextManager[None]:
    """Add to latents at every position but the first, the rest of the state kept.

    Adding c to a latent moves the state by c times its decoder row.

    Args:
        model: Run by the caller, inside the block.
        sae: The autoencoder.
        amounts: Latent to what is added to it, in latent units.
        sites: The model's sites, if already found.

    Raises:
        InputError: a latent that does not exist or never fires, or an amount that is
            not a finite number; or as ``spliced``.
    """
    for latent, amount in amounts.items():
        check_latent(sae, latent)
        if not torch.isfinite(torch.tensor(float(amount))):
            raise InputError(
                "the steering strength is not a finite number", got=str(amount)
            )
    index = torch.tensor(list(amounts), dtype=torch.long)
    size = torch.tensor([float(each) for each in amounts.values()])

    def edit(latents: Tensor) -> Tensor:
        latents[..., index.to(latents.device)] += size.to(latents)
        return latents

    return spliced(model, sae, edit, sites=sites)


def check_latent(sae: Sae, latent: int) -> None:
    """Refuse a latent that is not there or never fires.

    Raises:
        InputError: saying which.
    """
    if not 0 <= latent < sae.d_sae:
        raise InputError(
            f"the autoencoder has no latent {latent}",
            expected=f"0 to {sae.d_sae - 1}",
        )
    if latent in set(sae.metadata.get("dead", ())):
        raise InputError(
            f"latent {latent} is dead: it never fired on the rows it was trained on",
            fix="Choose a latent that fires",
        )


@dataclass(frozen=True)
class SaeQuality:
    """What an autoencoder loses.

    Attributes:
        fvu: Fraction of variance unexplained: squared error over squared distance
            from the mean. 0 is perfect, 1 what the mean alone would give.
        l0: Mean number of latents that fire.
        dead: Share of latents that fire on no row.
        rows: Rows it was measured on.
    """

    fvu: float
    l0: float
    dead: float
    rows: int


def measure_quality(sae: Sae, chunks: Iterator[Any]) -> SaeQuality:
    """Measure an autoencoder on states (row, d), given chunk by chunk.

    Raises:
        InputError: no rows, states of another width, or states that do not vary.
    """
    error, count, fired = 0.0, 0, None
    total, square, active = torch.zeros(sae.d_in, dtype=torch.float64), 0.0, 0.0
    for chunk in chunks:
        x = torch.as_tensor(chunk, dtype=torch.float32)
        latents = sae.encode(x)
        error += float((sae.decode(latents) - x).double().square().sum())
        on = latents > 0
        active += float(on.sum())
        fired = on.any(0) if fired is None else fired | on.any(0)
        total += x.double().sum(0)
        square += float(x.double().square().sum())
        count += len(x)
    variance = square - float(total.square().sum()) / max(count, 1)
    if fired is None or variance <= 1e-9 * max(square, 1e-300):
        raise InputError(
            "an autoencoder cannot be measured on these states",
            expected="rows that differ",
            got=f"{count} rows",
        )
    dead = 1 - float(fired.double().mean())
    return SaeQuality(error / variance, active / count, dead, count)


@dataclass(frozen=True)
class LossRecovered:
    """What is left of the next-token loss when states pass through an autoencoder.

    Attributes:
        plain: Mean loss of the model, nats a token.
        spliced: With reconstructions in place of the states.
        ablated: With the mean state in their place.
        recovered: (ablated - spliced) / (ablated - plain); 1 is perfect. NaN where
            the site does not matter.
    """

    plain: float
    spliced: float
    ablated: float
    recovered: float


def loss_recovered(
    model: nn.Module, sae: Sae, sequences: Sequences, *, tokens: int = 4096
) -> LossRecovered:
    """Splice an autoencoder in, without its error, and see what the model loses.

    The first position is left as it is in every arm.

    Raises:
        InputError: as ``spliced``.
    """
    where = find_sites(model)
    total, count = torch.zeros(sae.d_in), 0

    def see(latents_of: Tensor) -> Tensor:
        nonlocal total, count
        rest = latents_of[:, 1:]
        total = total.to(rest) + rest.sum((0, 1))
        count += rest.shape[0] * rest.shape[1]
        return latents_of

    with patch(model, {sae.site: see}, known_sites=where):
        plain = _loss(model, sequences, tokens)
    mean = total / max(count, 1)

    def flat(value: Tensor) -> Tensor:
        out = value.clone()
        out[:, 1:] = mean
        return out

    with spliced(model, sae, keep_error=False, sites=where):
        through = _loss(model, sequences, tokens)
    with patch(model, {sae.site: flat}, known_sites=where):
        without = _loss(model, sequences, tokens)
    span = without - plain
    recovered = (without - through) / span if abs(span) > 1e-6 else float("nan")
    return LossRecovered(plain, through, without, recovered)


def _loss(model: nn.Module, sequences: Sequences, tokens: int) -> float:
    """Mean next-token loss in nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches(sequences, batch_tokens=tokens, device=device):
            logits = model(**batch.model_inputs, use_cache=False).logits
            there = batch.attention_mask[:, 1:].bool()
            loss = nn.functional.cross_entropy(
                logits[:, :-1][there].float(), batch.input_ids[:, 1:][there]
            )
            total += float(loss) * int(there.sum())
            count += int(there.sum())
    return total / max(count, 1)
