"""Latents of an autoencoder as a change of states: made louder, or put in from outside.

Two changes, and for each its control of other latents that write as much:
``LatentAmplifier`` makes louder what a state holds already, the same for every input;
``decode_difference`` is what the published test injects from another model's state.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.sae.autoencoder import Sae, check_latent
from evidence.errors import InputError


def live_latents(sae: Sae) -> NDArray[np.int64]:
    """Latents that fired on some row the autoencoder was trained on."""
    return np.setdiff1d(np.arange(sae.d_sae), sae.metadata.get("dead", ()))


def draw_control_latents(
    sae: Sae, latents: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """As many live latents that are not among ``latents``.

    Raises:
        InputError: there are too few.
    """
    free = np.setdiff1d(live_latents(sae), latents)
    if len(free) < len(latents):
        raise InputError(
            "the autoencoder has too few other latents to compare with",
            expected=f"{len(latents)} that fire",
            got=str(len(free)),
            fix="Take fewer latents, or train a wider autoencoder",
        )
    return np.sort(rng.permutation(free)[: len(latents)])


@dataclass(frozen=True, eq=False, repr=False)
class LatentAmplifier:
    """The map h -> h + strength * sum over latents (z - centre) decoder.

    It is the same for every input: what it writes depends on how strongly latents fire
    in the state itself, never on a label.

    Attributes:
        sae: The autoencoder.
        latents: (n,) latents.
        center: (n,) their mean activation on ``rows``.
        rows: (row, d) states the mean was taken over.
        scale: Factor on all that is written.
    """

    sae: Sae
    latents: Tensor
    center: Tensor
    rows: Tensor
    scale: float = 1.0

    @classmethod
    def fit(
        cls, sae: Sae, latents: NDArray[np.int64], rows: NDArray
    ) -> "LatentAmplifier":
        """An amplifier of some latents.

        Args:
            sae: The autoencoder.
            latents: Which.
            rows: (row, d) states of the model that is to be changed.

        Raises:
            InputError: no latents, one that does not exist or is dead, or one that
                fires alike on every row, so that there is nothing to make louder.
        """
        if not len(latents):
            raise InputError("there are no latents to amplify", expected="one or more")
        for latent in latents:
            check_latent(sae, int(latent))
        index = torch.as_tensor(latents, dtype=torch.long)
        table = torch.as_tensor(rows, dtype=torch.float32)
        own = sae.encode(table)[:, index]
        same = own.amax(0) == own.amin(0)
        if bool(same.all()):
            raise InputError(
                f"latent {int(index[0])} is constant: it fires alike on every row",
                expected="one or more latents that differ between rows",
                fix="Choose other latents, or give other rows",
            )
        return cls(sae, index, own.mean(0), table)

    def apply(self, states: Tensor) -> Tensor:
        """(row, d) what is added to each state at strength 1."""
        own = self.sae.encode(states.float())[..., self.latents] - self.center
        return (self.scale * own @ self.sae.decoder[self.latents]).to(states)

    def randomly_rotated(self, rng: np.random.Generator) -> "LatentAmplifier":
        """The control: as many other live latents, which write as much on average."""
        drawn = torch.from_numpy(
            draw_control_latents(self.sae, self.latents.numpy(), rng)
        )
        other = replace(
            self,
            latents=drawn,
            center=self.sae.encode(self.rows)[:, drawn].mean(0),
            scale=1.0,
        )
        mine, theirs = (_rms_norm(each.apply(self.rows)) for each in (self, other))
        return replace(other, scale=mine / max(theirs, 1e-12))


def decode_difference(
    sae: Sae, difference: Tensor, latents: NDArray[np.int64]
) -> Tensor:
    """What a difference between two states amounts to in some latents, decoded.

    As in the published code neither biases nor the choice of the strongest latents
    enter: this is ``difference`` times the encoder's columns times the decoder's rows,
    a linear map of low rank.

    Args:
        sae: The autoencoder.
        difference: (..., d).
        latents: Which.

    Raises:
        InputError: the difference has another width, or there is no such latent.

    Source: Suppression or Deletion, arXiv 2602.18505.
    """
    if difference.shape[-1] != sae.d_in:
        raise InputError(
            "the states have another width than the autoencoder",
            expected=str(sae.d_in),
            got=str(difference.shape[-1]),
            fix="Use one that was trained on this site of this model",
        )
    for latent in latents:
        if not 0 <= latent < sae.d_sae:
            check_latent(sae, int(latent))
    index = torch.as_tensor(latents, dtype=torch.long)
    encoder = sae.module.W_enc.detach()[:, index].to(difference)
    return difference @ encoder @ sae.decoder[index].to(difference)


def match_norms(change: Tensor, reference: Tensor) -> Tensor:
    """``change`` with the length of ``reference``, vector by vector; zero stays zero."""
    length = change.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return change * reference.norm(dim=-1, keepdim=True) / length


def _rms_norm(rows: Tensor) -> float:
    """Root mean square length of rows."""
    return float(rows.double().square().sum(-1).mean().sqrt())
