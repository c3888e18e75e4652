"""Logit lens: what the states of each layer say, through the model's own final norm and head.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); early exit as in
arXiv 2202.05262.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from attribution.readout import find_readout, next_tokens
from capture.activations.capture import capture_activations
from capture.activations.positions import Positions, select_positions
from capture.data.sequences import Sequences
from capture.network.hooks import evaluation_mode
from capture.network.model_inputs import plain_inputs
from capture.network.sites import find_sites
from capture.network.structure import model_device
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress

# Largest number of logits in memory: 64 MiB in float32.
MAX_LOGITS = 2**24


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """Predictions of the next token from the states at each site.

    Arrays have an axis of positions after that of rows if several positions were asked for.

    Attributes:
        sites: (site,) names.
        tokens: (row,) token ids of interest; -1 where there is none.
        logit: (site, row) logit of the token; NaN where there is none.
        probability: (site, row) its probability, likewise.
        rank: (site, row) number of tokens with a larger logit; -1 where there is none.
        top_tokens: (site, row, top) the likeliest token ids, likeliest first.
        top_probability: (site, row, top) their probabilities.
        logits: (site, row, token) all logits, float32; None unless asked for.

    Examples:
        >>> lens = exhume.logit_lens(model, rows, ["resid.0", "resid.1"], top=1)
        >>> said = tokenizer.decode(lens.top_tokens[-1, 0])
        >>> said == births[0].answer
        True
    """

    sites: tuple[str, ...]
    tokens: NDArray[np.int64]
    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    rank: NDArray[np.int64]
    top_tokens: NDArray[np.int64]
    top_probability: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return f"LogitLens({len(self.sites)} sites, {len(self.tokens)} rows)"

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a site: mean probability, median rank and share of rank 0 of the tokens."""
        known = self.tokens >= 0
        rows = []
        for site, probability, rank in zip(self.sites, self.probability, self.rank, strict=True):
            some = known.any()
            rows.append(
                (
                    site,
                    float(probability[known].mean()) if some else np.nan,
                    float(np.median(rank[known])) if some else np.nan,
                    float((rank[known] == 0).mean()) if some else np.nan,
                )
            )
        return pd.DataFrame(rows, columns=["site", "probability", "median_rank", "is_top"])


@plain_inputs
def logit_lens(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str] | None = None,
    positions: Positions = "last_prompt",
    *,
    tokens: ArrayLike | None = None,
    top: int = 5,
    keep_logits: bool = False,
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> LogitLens:
    """Decode the states at each site with the model's own final norm and output layer.

    At the last block the result is the model's own prediction, with its soft cap or scale.

    Args:
        model: A causal language model.
        sequences: The rows.
        sites: Sites of the stream's width; ``embed`` and every ``resid.L`` by default.
        positions: As in ``capture_activations``; by default the last token of the prompt, which
            predicts the first token of the answer.
        tokens: Token ids of interest: one for all rows, or one a row. By default the token that
            follows each position in its row.
        top: Number of likeliest tokens that are kept.
        keep_logits: Keep all logits, site x row x vocabulary numbers.
        batch_tokens: Maximum number of padded positions per batch.
        progress: One unit a row, then one a site.

    Raises:
        InputError: Something other than one norm lies between the last block and the output layer;
            a site has another width; tokens do not fit; or as ``capture_activations``.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).

    Examples:
        >>> lens = exhume.logit_lens(model, rows)
        >>> lens
        LogitLens(3 sites, 76 rows)
        >>> lens.to_frame().site.tolist(), bool((lens.rank[-1] == 0).all())
        (['embed', 'resid.0', 'resid.1'], True)
    """
    found = find_sites(model)
    names = tuple(sites) if sites is not None else ("embed", *found.of("resid"))
    selection = select_positions(sequences, positions)
    if selection.index is None:
        raise InputError(
            "the mean over a row is no state of the model, and predicts no token",
            expected="positions of the rows",
            got=repr(positions),
        )
    readout = find_readout(model, found, sequences)
    states = capture_activations(
        model, sequences, names, positions, batch_tokens=batch_tokens, progress=progress
    )
    device, dtype = model_device(model), next(model.parameters()).dtype
    wanted: NDArray[np.int64] | None = None
    parts: list[dict[str, NDArray]] = []
    with (
        torch.no_grad(),
        evaluation_mode(model),
        as_progress(progress).task("logit lens", len(names)) as advance,
    ):
        for name in names:
            values = torch.from_numpy(np.asarray(states.site(name)))
            if found.d_model is not None and values.shape[-1] != found.d_model:
                raise InputError(
                    f"{name} has another width than the stream",
                    expected=str(found.d_model),
                    got=str(values.shape[-1]),
                )
            flat = values.reshape(-1, values.shape[-1])
            chunks: list[dict[str, NDArray]] = []
            start, step = 0, 1  # the first state shows the size of the vocabulary
            while start < len(flat):
                logits = readout(flat[None, start : start + step].to(device, dtype))[0].float()
                if wanted is None:
                    wanted = next_tokens(sequences, selection.index, tokens, logits.shape[1])
                target = torch.from_numpy(wanted.ravel()[start : start + step].copy())
                chunks.append(_statistics(logits, target.to(device), top, keep_logits))
                start, step = start + step, max(1, MAX_LOGITS // logits.shape[1])
            parts.append({key: np.concatenate([c[key] for c in chunks]) for key in chunks[0]})
            advance(1)
    assert wanted is not None
    shape = (len(wanted),) if selection.squeeze else wanted.shape
    if selection.mask is not None:
        wanted = np.where(selection.mask, wanted, -1)
    arrays = {
        key: np.stack([part[key].reshape(*shape, *part[key].shape[1:]) for part in parts])
        for key in parts[0]
    }
    wanted = wanted.reshape(shape)
    for key, none in (("logit", np.nan), ("probability", np.nan), ("rank", -1)):
        arrays[key][:, wanted < 0] = none
    return LogitLens(names, wanted, **arrays)


def _statistics(
    logits: torch.Tensor, target: torch.Tensor, top: int, keep_logits: bool
) -> dict[str, NDArray]:
    logprob = logits.log_softmax(1)
    at = target.clamp(min=0)[:, None]
    own = logits.gather(1, at)
    best = logprob.topk(min(top, logits.shape[1]), dim=1)
    values = {
        "logit": own[:, 0],
        "probability": logprob.gather(1, at)[:, 0].exp(),
        "rank": (logits > own).sum(1),
        "top_tokens": best.indices,
        "top_probability": best.values.exp(),
    } | ({"logits": logits} if keep_logits else {})
    return {name: value.cpu().numpy() for name, value in values.items()}
