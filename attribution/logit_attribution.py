"""Direct logit attribution: what each part of a model adds to a logit, with the norm frozen.

The last state of the stream is a sum: the embedding, and what attention and the MLP of each block
add. With the scale of the final norm held at its value, norm and head are linear, so the logit is
the sum of the parts' contributions and of a constant.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from attribution.circuits.qkv_projections import weight_matrix
from attribution.norms import NormMap, find_norm_map
from attribution.readout import StreamReadout, find_readout, next_tokens
from capture.activations.capture import Activations, capture_activations
from capture.activations.positions import PositionName, select_positions
from capture.data.sequences import Sequences
from capture.network.contributions import CONTRIBUTIONS
from capture.network.hooks import evaluation_mode
from capture.network.model_inputs import reads_weights
from capture.network.sites import Sites, find_sites
from capture.network.structure import find_transformer, model_device
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

# Largest difference of the stream to the sum of its parts, relative to its largest value.
REL_TOL = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class LogitAttribution:
    """Contributions to the logit of a token, or to the difference of two.

    Attributes:
        components: (component,) "embed", "attn.L", "mlp.L" (or "head.L.H"), and "bias": biases of
            the norm and the head, and of output projections if heads are separate.
        values: (row, component) contributions, in logits.
        logit: (row,) the model's own logit, or difference of logits.
        tokens: (row,) token ids.
        against: (row,) token ids of the subtracted logit; None for the logit itself.

    Examples:
        >>> found = exhume.logit_attribution(model, rows)
        >>> found
        LogitAttribution(76 rows, 6 components, largest error 3e-06)
        >>> found.components
        ('embed', 'attn.0', 'mlp.0', 'attn.1', 'mlp.1', 'bias')
    """

    components: tuple[str, ...]
    values: NDArray[np.float64]
    logit: NDArray[np.float64]
    tokens: NDArray[np.int64]
    against: NDArray[np.int64] | None = None

    @property
    def error(self) -> NDArray[np.float64]:
        """(row,) sum of the contributions minus the model's logit: rounding."""
        return self.values.sum(1) - self.logit

    def __repr__(self) -> str:
        return (
            f"LogitAttribution({len(self.values)} rows, {len(self.components)} components, "
            f"largest error {float(np.abs(self.error).max()):.0e})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row a component: mean and standard deviation over rows."""
        spread = self.values.std(0, ddof=1) if len(self.values) > 1 else 0.0
        return pd.DataFrame(
            {
                "component": self.components,
                "contribution": self.values.mean(0),
                "standard_deviation": spread,
            }
        )


@reads_weights
def logit_attribution(
    model: nn.Module,
    sequences: Sequences,
    *,
    tokens: ArrayLike | None = None,
    against: ArrayLike | None = None,
    heads: bool = False,
    position: PositionName | int = "last_prompt",
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> LogitAttribution:
    """Contribution of the embedding and of each attention and MLP layer to a logit.

    The scale of the final norm is that of the whole state. The contributions add up to the model's
    logit; ``LogitAttribution.error`` is the difference, from rounding.

    Args:
        model: A causal language model whose blocks add to the stream.
        sequences: The rows.
        tokens: Token id, or one a row; by default the token that follows the position.
        against: Token id, or one a row, whose logit is subtracted.
        heads: Separate the heads of attention.
        position: One position of each row, as in ``capture_activations``.
        batch_tokens: Maximum number of padded positions per batch.
        progress: One unit a row.

    Raises:
        InputError: The logit is no sum of contributions: the model caps its logits, its final norm
            is neither a layer norm nor a root mean square norm, or blocks do more than add to the
            stream; heads are not separate terms (a norm follows attention); or tokens do not fit.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); as
    ``logit_attrs`` of TransformerLens.

    Examples:
        >>> found = exhume.logit_attribution(model, rows, against=rows.ids[0][-1], heads=True)
        >>> found.to_frame().component.tolist()[:3]
        ['embed', 'head.0.0', 'head.0.1']
        >>> bool(np.abs(found.error).max() < 1e-3)
        True
    """
    sites = find_sites(model)
    place = sites.resolve("logits")
    if place.cap is not None:
        raise InputError(
            f"{type(model).__name__} caps its logits, so a logit is no sum of contributions",
            expected="a model without a soft cap of its logits",
        )
    selection = select_positions(sequences, position)
    if selection.index is None or selection.index.shape[1] != 1:
        raise InputError(
            "contributions are those to the logits at one position of each row",
            expected="one position",
            got=repr(position),
        )
    readout = find_readout(model, sites, sequences)
    kinds = [kind for kind in CONTRIBUTIONS if sites.of(kind)]
    if not kinds:
        sites.resolve("attn.0")  # says why there is none
    added = [name for name in sites.places if name.split(".")[0] in kinds]
    last = f"resid.{sites.n_layers - 1}"
    separate = [name for name in sites.of("head") if heads]
    if heads and not separate:
        sites.resolve("head.0.0")
    names = ["embed", *added, last, "final", *separate]
    states = capture_activations(
        model, sequences, names, position, batch_tokens=batch_tokens, progress=progress
    )

    def value(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(states.site(name))).double()

    _check_sum([value(name) for name in ("embed", *added)], value(last), model)
    dtype = next(model.parameters()).dtype
    norm = _norm_map(readout, states, last, dtype)
    matrix, bias = _head(readout)
    targets = next_tokens(sequences, selection.index, tokens, len(matrix))[:, 0]
    if (targets < 0).any():
        raise InputError(
            f"row {int(np.flatnonzero(targets < 0)[0])} has no token after the position",
            expected="rows with answers, or tokens=",
        )
    direction, offset = matrix[targets].double(), bias[targets].double()
    others = None
    if against is not None:
        others = next_tokens(sequences, selection.index, against, len(matrix))[:, 0]
        direction, offset = direction - matrix[others].double(), offset - bias[others].double()

    scale = norm.scale(value(last), value("final")) * place.factor
    pull = direction * norm.gain.double() * scale

    def contribution(term: Tensor) -> Tensor:
        return (norm.center(term) * pull).sum(-1)

    constant = place.factor * (direction @ norm.bias.double() + offset)
    parts: dict[str, Tensor] = {"embed": contribution(value("embed"))}
    for name in added:
        if separate and name.startswith("attn."):
            terms = dict(_head_terms(model, sites, states, name))
            rest = value(name) - torch.stack(list(terms.values())).sum(0)
            _check_constant(rest, value(name), name, dtype)
            parts |= {head: contribution(term) for head, term in terms.items()}
            constant = constant + contribution(rest)
        else:
            parts[name] = contribution(value(name))
    parts["bias"] = constant
    with torch.no_grad(), evaluation_mode(model):
        own = readout(value(last)[None].to(model_device(model), dtype))[0].double().cpu()
    rows = np.arange(len(targets))
    logit = own.numpy()[rows, targets]
    if others is not None:
        logit = logit - own.numpy()[rows, others]
    table = torch.stack(list(parts.values()), 1).numpy()
    return LogitAttribution(tuple(parts), table, logit, targets, others)


def _norm_map(
    readout: StreamReadout, states: Activations, last: str, dtype: torch.dtype
) -> NormMap:
    before = torch.from_numpy(np.asarray(states.site(last)))
    after = torch.from_numpy(np.asarray(states.site("final")))
    if readout.norm is None:
        width = before.shape[-1]
        return NormMap(False, torch.ones(width), torch.zeros(width))
    found = find_norm_map(readout.norm, before, after, dtype)
    if found is None:
        raise InputError(
            "the final norm is not understood, so a logit is no sum of contributions",
            expected="a layer norm or a root mean square norm",
            got=type(readout.norm).__name__,
        )
    return found


def _head(readout: StreamReadout) -> tuple[Tensor, Tensor]:
    """(token, d) matrix and (token,) bias of the output layer."""
    head = readout.logits.module
    own = getattr(head, "W_U", None)  # of TransformerLens, (d, token)
    matrix = own.T if isinstance(own, Tensor) else weight_matrix(head)
    bias = getattr(head, "b_U" if isinstance(own, Tensor) else "bias", None)
    matrix = matrix.detach().float().cpu()
    if not isinstance(bias, Tensor):
        return matrix, torch.zeros(len(matrix))
    return matrix, bias.detach().float().cpu()


def _head_terms(
    model: nn.Module, sites: Sites, states: Activations, attention: str
) -> Iterator[tuple[str, Tensor]]:
    """What each head of a block adds to the stream, (row, d)."""
    layer = int(attention.split(".")[1])
    factor = sites.resolve(attention).factor
    for name in sites.of("head"):
        if int(name.split(".")[1]) != layer:
            continue
        place = sites.resolve(name)
        z = torch.from_numpy(np.asarray(states.site(name))).double()
        if isinstance(place.part, slice):
            matrix = weight_matrix(place.module).T[place.part]
        else:
            transformer = find_transformer(model)
            block = None if transformer is None else transformer.blocks[layer]
            matrix = block.attn.W_O[place.part]  # pyright: ignore  # of TransformerLens
        yield name, factor * z @ matrix.detach().double().cpu()


def _check_sum(terms: list[Tensor], total: Tensor, model: nn.Module) -> None:
    difference = (torch.stack(terms).sum(0) - total).abs().max()
    eps = torch.finfo(next(model.parameters()).dtype).eps
    limit = max(REL_TOL, 2 * eps * len(terms) ** 0.5) * total.abs().max()
    if float(difference) > float(limit):
        raise InputError(
            f"a logit of {type(model).__name__} is no sum of contributions: the last state is not "
            "the sum of the embedding and of what attention and MLP add",
            expected="a model with norms before its parts, not after additions",
        )


def _check_constant(rest: Tensor, whole: Tensor, name: str, dtype: torch.dtype) -> None:
    spread = (rest - rest[:1]).abs().max()
    if float(spread) > max(REL_TOL, 8 * torch.finfo(dtype).eps) * max(
        float(whole.abs().max()), 1e-9
    ):
        layer = name.split(".")[1]
        raise InputError(
            f"the heads of block {layer} are not separate terms of the stream: what follows the "
            "output projection is not linear",
            expected="heads=False, or a model without a norm after attention",
        )
