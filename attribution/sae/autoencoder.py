"""Sparse autoencoders and transcoders of model sites: encode, decode, and the sites they belong to.

The models are sae-lens's; ``attribution.sae.files`` reads them. Some of them rescale each state at
run time and keep the coefficients between encoding and decoding. Here nothing is kept between
calls: ``decode`` takes the states that the latents belong to.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attribution.sae.hook_names import MLP_INPUTS, site_name, site_of_hook
from evidence import moved
from evidence.errors import InputError, quoted

RESCALED = ("layer_norm", "constant_norm_rescale")
"""Normalizations of sae-lens whose coefficients depend on the state."""
_COEFFICIENTS = ("ln_mu", "ln_std", "x_norm_coeff")
# Rows this close to length 1 are taken to be of length 1.
_UNIT_TOL = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Sae:
    """A sparse autoencoder of one site, or a transcoder from one site to another.

    Attributes:
        module: The sae-lens model, in evaluation mode.
        site: Name of the site whose states it reconstructs or, as a transcoder, predicts; a name
            of ours or of TransformerLens. By default, the one in the model's metadata.
        metadata: Written by ``train_sae``: "kind", "model" (hash of the weights), "dead" (latents
            that never fire) and "prefixes"; empty for an autoencoder from elsewhere.
        input_site: Name of the site it reads: ``site``, or for a transcoder another one, such as
            "mlp_in.5" (input of the MLP) or "mlp_norm.5" (the same before the gain of the norm).

    Raises:
        InputError: The site is unknown or contradicts the metadata; a transcoder names one site
            for both; or the kind is not a map of single states (temporal and batch-wise kinds,
            all heads of a block side by side).

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> latents = sae.encode(torch.from_numpy(states.site("resid.0")))
        >>> latents.shape, sae.decode(latents).shape
        (torch.Size([76, 64]), torch.Size([76, 32]))
    """

    module: Any
    site: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    input_site: str = ""

    def __post_init__(self) -> None:
        _check_kind(self.module)
        site, input_site = _resolve_sites(self.module, self.site, self.input_site)
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "input_site", input_site)

    def __repr__(self) -> str:
        kind = self.metadata.get("kind", self.module.cfg.architecture())
        places = f"{self.input_site} to {self.site}" if self.is_transcoder else f"at {self.site}"
        widths = f"{self.d_in} -> {self.d_sae}"
        return f"Sae({kind} {places}, {widths}{f' -> {self.d_out}' * self.is_transcoder})"

    @property
    def d_in(self) -> int:
        """Width of the site it reads."""
        return int(self.module.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.module.cfg.d_sae)

    @property
    def d_out(self) -> int:
        """Width of ``site``."""
        return int(getattr(self.module.cfg, "d_out", self.d_in))

    @property
    def is_transcoder(self) -> bool:
        """Whether it reads one site and predicts another."""
        return hasattr(self.module.cfg, "d_out")

    @property
    def is_rescaled(self) -> bool:
        """Whether decoding rescales by coefficients of each state."""
        normalization = getattr(self.module.cfg, "normalize_activations", "none")
        return normalization in RESCALED and not self.is_transcoder

    @property
    def decoder(self) -> Tensor:
        """(latent, d_out) direction that one unit of each latent adds to the reconstruction.

        If decoding rescales each state, in units of ``output_scale``.
        """
        rows = self.module.W_dec.detach()
        if not getattr(self.module.cfg, "rescale_acts_by_decoder_norm", False):
            return rows
        lengths = rows.norm(dim=-1, keepdim=True)
        return rows if bool(((lengths - 1).abs() < _UNIT_TOL).all()) else rows / lengths

    def output_scale(self, states: Tensor) -> Tensor:
        """(..., 1) length in units of the site of one unit of the decoder, for (..., d_in) states.

        1 unless the autoencoder rescales each state: then adding c to a latent moves the
        reconstruction of a state by c times its scale times the latent's row of ``decoder``.

        Raises:
            InputError: The states have another width.
        """
        self.check_width(states)
        if not self.is_rescaled:
            return torch.ones_like(states[..., :1])
        with torch.no_grad():
            self.module.process_sae_in(states.to(self.module.W_dec.device))
            kept = _take_coefficients(self.module)
        return kept["ln_std"] if "ln_std" in kept else 1 / kept["x_norm_coeff"]

    def encode(self, states: Tensor) -> Tensor:
        """(..., latent) activations of (..., d_in) states of ``input_site``.

        Raises:
            InputError: The states have another width.
        """
        self.check_width(states)
        with torch.no_grad():
            latents = self.module.encode(states.to(self.module.W_dec.device))
            _take_coefficients(self.module)
        return latents.to_dense() if latents.is_sparse else latents

    def check_width(self, states: Tensor) -> None:
        """Check that states (..., d_in) have the width of the site.

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

    def decode(self, latents: Tensor, states: Tensor | None = None) -> Tensor:
        """(..., d_out) from (..., latent).

        Args:
            states: (..., d_in) that the latents belong to, for autoencoders that rescale each
                state (``is_rescaled``) and transcoders with a skip connection; else unused.

        Raises:
            InputError: The states are needed and missing, or do not fit the latents.
        """
        skip = getattr(self.module, "W_skip", None)
        if states is None and (self.is_rescaled or skip is not None):
            raise InputError(
                f"{self!r} cannot decode latents alone: "
                + ("it adds a map of the states" if skip is not None else "it rescales each state"),
                expected="the states that the latents belong to",
                fix="Call decode(latents, states)",
            )
        with torch.no_grad():
            if states is not None and (self.is_rescaled or skip is not None):
                self.check_width(states)
                if states.shape[:-1] != latents.shape[:-1]:
                    raise InputError(
                        "states and latents differ in rows",
                        expected=str(tuple(latents.shape[:-1])),
                        got=str(tuple(states.shape[:-1])),
                    )
                states = states.to(self.module.W_dec.device)
                if self.is_rescaled:
                    self.module.process_sae_in(states)
            try:
                decoded = self.module.decode(latents.to(self.module.W_dec))
            finally:
                _take_coefficients(self.module)
            if skip is not None and states is not None:
                decoded = decoded + states.to(skip.dtype) @ skip.T
        return decoded

    def reconstruct(self, states: Tensor) -> Tensor:
        """(..., d_out) reconstruction, or a transcoder's prediction, from (..., d_in) states.

        Raises:
            InputError: The states have another width.
        """
        return self.decode(self.encode(states), states)


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


def check_one_site(sae: Sae) -> None:
    """Check that it reads the site that it reconstructs.

    Raises:
        InputError: It is a transcoder.
    """
    if sae.is_transcoder:
        raise InputError(
            f"{sae!r} is a transcoder: its latents are not those of {sae.site}",
            expected="an autoencoder of one site",
        )


def _take_coefficients(module: Any) -> dict[str, Tensor]:
    """Remove from a sae-lens model what encoding left for decoding, and return it."""
    state = vars(module)
    return {name: state.pop(name) for name in _COEFFICIENTS if name in state}


def _check_kind(module: Any) -> None:
    kind = module.cfg.architecture()
    if kind == "temporal":
        reason = "it predicts each state from the states before it, and is no map of one state"
    elif hasattr(module, "topk_threshold"):
        reason = "in training it chooses the active latents of a whole batch"
    elif getattr(module.cfg, "reshape_activations", "none") == "hook_z":
        reason = "it reads the outputs of all heads of a block side by side, which is no one site"
    else:
        return
    raise InputError(
        f"autoencoders of the kind {quoted(kind)} are not supported: {reason}",
        expected="an autoencoder that maps one state of one site",
        fix="Save it with save_inference_model" if "training" in reason else None,
    )


def _resolve_sites(module: Any, site: str, input_site: str) -> tuple[str, str]:
    """The site written and the site read."""
    metadata = getattr(module.cfg, "metadata", None)

    def stated(suffix: str = "") -> str | None:
        hook, head, name = (
            getattr(metadata, f"{each}{suffix}", None)
            for each in ("hook_name", "hook_head_index", "hf_hook_name")
        )
        if not isinstance(hook, str):
            return None
        return site_of_hook(
            hook,
            head=head if type(head) is int else None,
            module=name if isinstance(name, str) else None,
        )

    if hasattr(module.cfg, "d_out"):
        read = _agreed(input_site, stated(), "input_site")
        written = _agreed(site, stated("_out"), "site")
        if read == written:
            raise InputError(
                "a transcoder reads one site and predicts another",
                expected="two sites: hook_name and hook_name_out in its metadata, or input_site= "
                "and site=",
                got=f"{read} for both",
            )
        return written, read
    found = _agreed(site, stated(), "site")
    if found.split(".")[0] in MLP_INPUTS:
        raise InputError(
            f"an autoencoder of {found} is not supported: the input of an MLP is no site",
            expected="an autoencoder of a site, or a transcoder that reads it",
        )
    return found, found if not input_site else _agreed(input_site, found, "input_site")


def _agreed(given: str, stated: str | None, argument: str) -> str:
    """The site that was given and the one in the metadata, which have to agree."""
    named = site_name(given) if given else None
    if named is None and stated is None:
        raise InputError(
            "the site of this autoencoder is not known", expected=f"{argument}=, such as 'resid.12'"
        )
    if named is not None and stated is not None and named != stated:
        raise InputError(
            "the site is not the one that the autoencoder was trained on",
            expected=stated,
            got=given,
            fix=f"Leave {argument} out",
        )
    return named or str(stated)


__getattr__ = moved.names_of("attribution.sae.autoencoder")
