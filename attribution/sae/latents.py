"""Edits of states along autoencoder latents, each with a control of other latents.

``LatentAmplifier`` amplifies latents that are already active in a state, with the same map for
every input. ``decode_difference`` is the change that the published state-injection test adds from
another model's state.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.sae.autoencoder import Sae, check_latent, check_one_site
from evidence.errors import InputError


def live_latents(sae: Sae) -> NDArray[np.int64]:
    """Indices of the latents that fired on some training row."""
    return np.setdiff1d(np.arange(sae.d_sae), sae.metadata.get("dead", ()))


def draw_control_latents(
    sae: Sae, latents: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw as many live latents that are not among ``latents``, sorted.

    Raises:
        InputError: There are too few.
    """
    candidates = np.setdiff1d(live_latents(sae), latents)
    if len(candidates) < len(latents):
        raise InputError(
            "the autoencoder has too few other latents to compare with",
            expected=f"{len(latents)} that fire",
            got=str(len(candidates)),
            fix="Take fewer latents, or train a wider autoencoder",
        )
    return np.sort(rng.permutation(candidates)[: len(latents)])


@dataclass(frozen=True, eq=False, repr=False)
class LatentAmplifier:
    """The map h -> h + strength * sum over latents of (z - center) * decoder row.

    The map is the same for every input: the change depends on the activations z of the state
    itself, never on a label.

    Attributes:
        latents: (n,) latent indices.
        center: (n,) their mean activation on ``rows``.
        rows: (row, d) states the mean was taken over.
        scale: Factor on the change.
    """

    sae: Sae
    latents: Tensor
    center: Tensor
    rows: Tensor
    scale: float = 1.0

    @classmethod
    def fit(cls, sae: Sae, latents: NDArray[np.int64], rows: NDArray) -> "LatentAmplifier":
        """Center the amplifier of some latents on given states.

        Args:
            latents: Latent indices.
            rows: (row, d) states of the model that is to be edited.

        Raises:
            InputError: There are no latents, one does not exist or is dead, or all are constant
                over the rows; or the autoencoder is a transcoder.
        """
        if not len(latents):
            raise InputError("there are no latents to amplify", expected="one or more")
        check_one_site(sae)
        for latent in latents:
            check_latent(sae, int(latent))
        index = torch.as_tensor(latents, dtype=torch.long)
        states = torch.as_tensor(rows, dtype=torch.float32)
        activations = sae.encode(states)[:, index]
        is_constant = activations.amax(0) == activations.amin(0)
        if bool(is_constant.all()):
            raise InputError(
                f"latent {int(index[0])} is constant over the rows",
                expected="one or more latents that differ between rows",
                fix="Choose other latents, or give other rows",
            )
        return cls(sae, index, activations.mean(0), states)

    def apply(self, states: Tensor) -> Tensor:
        """(row, d) change of each state at strength 1."""
        activations = self.sae.encode(states.float())[..., self.latents] - self.center
        change = self.scale * activations @ self.sae.decoder[self.latents]
        if self.sae.is_rescaled:
            change = change * self.sae.output_scale(states.float())
        return change.to(states)

    def randomly_rotated(self, rng: np.random.Generator) -> "LatentAmplifier":
        """The control: as many other live latents, scaled to the same root mean square change."""
        control_latents = torch.from_numpy(
            draw_control_latents(self.sae, self.latents.numpy(), rng)
        )
        control = replace(
            self,
            latents=control_latents,
            center=self.sae.encode(self.rows)[:, control_latents].mean(0),
            scale=1.0,
        )
        norm, control_norm = (_rms_norm(each.apply(self.rows)) for each in (self, control))
        return replace(control, scale=norm / max(control_norm, 1e-12))


def decode_difference(sae: Sae, difference: Tensor, latents: NDArray[np.int64]) -> Tensor:
    """Encode a difference of two states in some latents and decode it, without nonlinearity.

    As in the published code, neither biases nor top-k selection enter: the result is ``difference``
    times the latents' encoder columns times their decoder rows, a linear map of low rank.

    Args:
        difference: (..., d).
        latents: Latent indices.

    Raises:
        InputError: The difference has another width, or a latent does not exist; or the
            autoencoder is a transcoder or rescales each state, and so is no map of differences.

    Source: Suppression or Deletion, arXiv 2602.18505.
    """
    check_one_site(sae)
    if sae.is_rescaled:
        raise InputError(
            f"{sae!r} rescales each state, so it does not encode a difference of two states",
            expected="an autoencoder without layer_norm or constant_norm_rescale",
        )
    sae.check_width(difference)
    for latent in latents:
        if not 0 <= latent < sae.d_sae:
            check_latent(sae, int(latent))
    index = torch.as_tensor(latents, dtype=torch.long)
    encoder = sae.module.W_enc.detach()[:, index].to(difference)
    return difference @ encoder @ sae.decoder[index].to(difference)


def match_norms(change: Tensor, reference: Tensor) -> Tensor:
    """Rescale each vector of ``change`` to the norm of ``reference``; zero stays zero."""
    length = change.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return change * reference.norm(dim=-1, keepdim=True) / length


def _rms_norm(rows: Tensor) -> float:
    """Root mean square norm of the rows."""
    return float(rows.double().square().sum(-1).mean().sqrt())
