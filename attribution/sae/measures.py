"""Quality of autoencoders and transcoders: unexplained variance, sparsity, and loss recovered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.sae.autoencoder import Sae
from attribution.sae.call_positions import watch_positions
from attribution.sae.splicing import check_fit, replaced_states, spliced
from capture.data.sequences import Sequences, running
from capture.network.edits.row_order import model_batches
from capture.network.hooks import evaluation_mode, patch, same_everywhere
from capture.network.logits import answer_logits
from capture.network.model_inputs import plain_inputs
from evidence.errors import InputError
from evidence.moved import renamed_arguments


@dataclass(frozen=True)
class SaeQuality:
    """Reconstruction quality and sparsity.

    Attributes:
        fvu: Fraction of variance unexplained: squared error over squared distance from the mean. 0
            is perfect; the mean alone gives 1.
        l0: Mean number of active latents per row, those that are not zero.
        dead: Share of latents that are active on no row.
        rows: Number of rows measured.
    """

    fvu: float
    l0: float
    dead: float
    rows: int


def measure_quality(sae: Sae, chunks: Iterator[Any]) -> SaeQuality:
    """Measure an autoencoder on states (row, d_in), given in chunks.

    Args:
        chunks: Arrays of states. For a transcoder, pairs of its inputs (row, d_in) and of the
            states that it predicts, (row, d_out).

    Raises:
        InputError: There are no rows, the states have another width, or they do not vary; or a
            transcoder is given states alone.

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> exhume.measure_quality(sae, iter([states.site("resid.0")])).rows
        76
    """
    squared_error, count, ever_active = 0.0, 0, None
    total, squared_norm, n_active = torch.zeros(sae.d_out, dtype=torch.float64), 0.0, 0.0
    for chunk in chunks:
        x, target = (each.to(sae.decoder.device) for each in _states_and_target(sae, chunk))
        latents = sae.encode(x)
        difference = sae.decode(latents, x) - target
        squared_error += float(difference.double().square().sum())
        is_active = latents != 0
        n_active += float(is_active.sum())
        ever_active = is_active.any(0) if ever_active is None else ever_active | is_active.any(0)
        total += target.double().sum(0).cpu()
        squared_norm += float(target.double().square().sum())
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


def _states_and_target(sae: Sae, chunk: Any) -> tuple[Tensor, Tensor]:
    if not sae.is_transcoder:
        x = torch.as_tensor(chunk, dtype=torch.float32)
        return x, x
    if not isinstance(chunk, tuple | list) or len(chunk) != 2:
        raise InputError(
            f"{sae!r} predicts {sae.site} from {sae.input_site}, and only one was given",
            expected="chunks that are pairs (inputs, outputs)",
        )
    x, target = (torch.as_tensor(each, dtype=torch.float32) for each in chunk)
    if target.shape != (len(x), sae.d_out):
        raise InputError(
            "inputs and outputs of a transcoder do not fit",
            expected=str((len(x), sae.d_out)),
            got=str(tuple(target.shape)),
        )
    return x, target


@dataclass(frozen=True)
class LossRecovered:
    """Next-token loss with the states replaced by their reconstructions.

    Attributes:
        plain: Mean loss of the model, nats per token.
        spliced: With reconstructions in place of the states.
        ablated: With the mean state in their place.
        recovered: (ablated - spliced) / (ablated - plain); 1 is perfect, NaN if the site does not
            matter.
        skipped: Number of rows of one token, which have no next token and are left out.
    """

    plain: float
    spliced: float
    ablated: float
    recovered: float
    skipped: int = 0


@renamed_arguments(tokens="batch_tokens")
@plain_inputs
def loss_recovered(
    model: nn.Module, sae: Sae, sequences: Sequences, *, batch_tokens: int = 4096
) -> LossRecovered:
    """Next-token loss with the reconstruction, and with the mean state, in place of the state.

    The first token of each row is left unchanged throughout, and padding counts nowhere. The mean
    is that of all other tokens of all rows, so the result does not depend on batches.

    Raises:
        InputError: No row has two tokens; or as ``spliced``.

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> found = exhume.loss_recovered(model, sae, rows)
        >>> found.plain <= found.ablated
        True
    """
    sites = check_fit(model, sae)
    kept = [row for row, ids in enumerate(sequences.ids) if len(ids) > 1]
    if not kept:
        raise InputError(
            "no row has a next token to predict",
            expected="rows of two tokens or more",
            got=f"{len(sequences)} rows",
        )
    rows = sequences if len(kept) == len(sequences) else sequences[kept]
    total, count = torch.zeros(sae.d_out, dtype=torch.float64), 0

    with watch_positions(model, 1) as positions:

        def accumulate(states: Tensor) -> Tensor:
            nonlocal total, count
            body = states[positions(states)]
            # Apple's devices have no float64.
            total += body.float().cpu().double().sum(0)
            count += len(body)
            return states

        with patch(model, {sae.site: same_everywhere(accumulate)}, known_sites=sites):
            plain = _loss(model, rows, batch_tokens)
    mean = (total / count).float()

    def to_mean(_: Tensor, value: Tensor) -> Tensor:
        return mean.to(value).expand_as(value)

    with spliced(model, sae, keep_error=False, known_sites=sites):
        spliced_loss = _loss(model, rows, batch_tokens)
    with replaced_states(model, sae, to_mean, 1, sites):
        ablated_loss = _loss(model, rows, batch_tokens)
    damage = ablated_loss - plain
    recovered = (ablated_loss - spliced_loss) / damage if abs(damage) > 1e-6 else float("nan")
    return LossRecovered(plain, spliced_loss, ablated_loss, recovered, len(sequences) - len(kept))


def _loss(model: nn.Module, sequences: Sequences, batch_tokens: int) -> float:
    """Mean next-token loss in nats."""
    total, count = 0.0, 0
    with torch.no_grad(), evaluation_mode(model):
        for batch in model_batches(model, sequences, batch_tokens):
            has_next = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
            has_next[:, :-1] = batch.attention_mask[:, 1:].bool()
            with running(batch, sequences):
                logits = answer_logits(model, batch, has_next)
            targets = batch.input_ids[:, 1:][has_next[:, :-1]]
            loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
            total += float(loss)
            count += len(targets)
    return total / max(count, 1)
