"""Put reconstructions or edited latents in the place of a model's states."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from attribution.sae.autoencoder import Sae, check_latent
from attribution.sae.call_positions import watch_positions
from attribution.sae.mlp_inputs import reading
from capture.network.hooks import patch, same_everywhere
from capture.network.model_inputs import plain_inputs
from capture.network.sites import Sites, find_sites
from evidence.errors import InputError
from evidence.moved import renamed_arguments


@renamed_arguments(first="first_position")
@plain_inputs
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

    A transcoder's prediction from its input site takes the place of the states at its output
    site. Padding is left unchanged, and positions are counted in the tokens of a row: with padding
    on the left, or in a call that continues a cache, the first token is still the first.

    Args:
        model: Run by the caller inside the context.
        edit: Maps latents (row, position, latent) to latents; no edit by default.
        keep_error: Add the reconstruction error, so that without an edit nothing changes.
        first_position: Earlier tokens of a row are left unchanged. The first token's state is an
            outlier in most language models, and no autoencoder is trained on it.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: The site does not exist in the model, or has another width; or a transcoder's
            input cannot be read (``attribution.sae.mlp_inputs``).

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> plain = exhume.score_answers(model, rows)
        >>> with exhume.spliced(model, sae, keep_error=False):
        ...     rebuilt = exhume.score_answers(model, rows)
        >>> bool((rebuilt.logprob != plain.logprob).any())
        True
    """
    sites = check_fit(model, sae, known_sites)

    def change(states: Tensor, value: Tensor) -> Tensor:
        if keep_error and edit is None:
            return value
        latents = sae.encode(states)
        new = sae.decode(latents if edit is None else edit(latents.clone()), states)
        if not keep_error:
            return new
        return value + (new - sae.decode(latents, states)).to(value.device)

    by_row = edit is not None
    return replaced_states(model, sae, change, first_position, sites, by_row=by_row)


@plain_inputs
def steer_latents(
    model: nn.Module,
    sae: Sae,
    amounts: Mapping[int, float],
    *,
    first_position: int = 1,
    known_sites: Sites | None = None,
) -> AbstractContextManager[None]:
    """Context manager that adds constants to latents at every position but the first.

    Adding c to a latent moves the state by c times its decoder row; the reconstruction error is
    kept. An autoencoder that rescales each state moves it by that times the scale of the state
    (``Sae.output_scale``). A transcoder moves the states at its output site.

    Args:
        model: Run by the caller inside the context.
        amounts: Latent index to the amount added, in latent units.
        first_position: As in ``spliced``.
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
    sites = check_fit(model, sae, known_sites)
    decoder = sae.decoder
    moved = torch.zeros(sae.d_out, device=decoder.device)
    for latent, amount in amounts.items():
        moved = moved + float(amount) * decoder[latent].float()

    def change(states: Tensor, value: Tensor) -> Tensor:
        step = moved.to(value.device)
        if sae.is_rescaled:
            step = step * sae.output_scale(states).to(step)
        return value + step

    return replaced_states(model, sae, change, first_position, sites)


def check_fit(model: nn.Module, sae: Sae, known_sites: Sites | None = None) -> Sites:
    """The sites of a model, after a check that an autoencoder fits them.

    Raises:
        InputError: The site does not exist in the model, or has another width.
    """
    sites = known_sites if known_sites is not None else find_sites(model)
    sites.resolve(sae.site)
    for name, width in ((sae.site, sae.d_out), (sae.input_site, sae.d_in)):
        if name.split(".")[0] not in ("head", "neurons") and sites.d_model not in (None, width):
            raise InputError(
                f"the autoencoder has another width than {name} of the model",
                expected=str(sites.d_model),
                got=str(width),
                fix="Use one that was trained on this model",
            )
    return sites


@contextmanager
def replaced_states(
    model: nn.Module,
    sae: Sae,
    change: Callable[[Tensor, Tensor], Tensor],
    first_position: int,
    sites: Sites,
    *,
    by_row: bool = False,
) -> Iterator[None]:
    """Replace the states at an autoencoder's site at real tokens from ``first_position`` on.

    Args:
        model: Run by the caller inside the block.
        change: Maps the states it reads, (row, position, d_in), and the values at its site,
            (row, position, d_out), to new values.
        sites: The model's sites.
        by_row: Whether ``change`` may treat rows or positions differently.
    """
    with ExitStack() as stack:
        positions = stack.enter_context(watch_positions(model, first_position))
        read = None
        if sae.is_transcoder:
            read = stack.enter_context(reading(model, sae.input_site, sites))

        def replace(value: Tensor) -> Tensor:
            mask = positions(value)
            if value.dim() != 3:
                return change(value if read is None else read(), value)
            columns = mask.any(0).nonzero()
            if not len(columns):
                return value
            start = int(columns[0])  # whole columns that stay are not encoded
            states = value if read is None else read()
            body, chosen = value[:, start:], mask[:, start:, None]
            new = change(states[:, start:], body).to(body)
            if not bool(chosen.all()):
                new = torch.where(chosen, new, body)
            return torch.cat([value[:, :start], new], 1) if start else new

        made = replace if by_row else same_everywhere(replace)
        stack.enter_context(patch(model, {sae.site: made}, known_sites=sites))
        yield
