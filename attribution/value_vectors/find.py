"""Parametric knowledge traces: the value vectors that carry an answer.

A feed-forward neuron adds its activation times its value vector to the residual
stream. Traces are found in the original, and always looked at through the original's
unembedding, so that a changed output layer cannot fake a change of a trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.data.sequences import Sequences, batches
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import Sites, find_sites, neuron_projection, with_neurons
from capture.network.structure import linear_shape, value_vectors
from evidence.errors import InputError
from evidence.progress import SILENT, Progress


@dataclass(frozen=True, eq=False, repr=False)
class KnowledgeTraces:
    """The strongest neurons of each concept, the strongest first.

    Attributes:
        concepts: (concept,) names.
        tokens: (concept,) the tokens that stand for each.
        layers: (concept, k) block of each neuron.
        neurons: (concept, k) its index there.
        scores: (concept, k) what they were ranked by.
        method: "value vectors" or "knowledge neurons".
    """

    concepts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    layers: NDArray[np.int64]
    neurons: NDArray[np.int64]
    scores: NDArray[np.float64]
    method: str

    def __repr__(self) -> str:
        return f"Traces({self.method}, {len(self.concepts)} concepts x {self.k})"

    @property
    def k(self) -> int:
        """Neurons a concept."""
        return self.layers.shape[1]

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron: concept, rank, layer, neuron, score."""
        count, k = self.layers.shape
        return pd.DataFrame(
            {
                "concept": np.repeat(self.concepts, k),
                "rank": np.tile(np.arange(k), count),
                "layer": self.layers.ravel(),
                "neuron": self.neurons.ravel(),
                "score": self.scores.ravel(),
            }
        )


def find_value_vectors(
    model: nn.Module,
    concepts: Mapping[str, Sequence[int]],
    *,
    k: int = 10,
    sites: Sites | None = None,
) -> KnowledgeTraces:
    """Value vectors that write a concept's tokens more than the rest of the vocabulary.

    The score is the mean logit that a value vector alone gives the concept's tokens,
    in standard deviations of the logits it gives all tokens. The paper asks a language
    model whether the top tokens make a concept; here the tokens are known.

    Args:
        model: The original.
        concepts: Name to token ids.
        k: Neurons a concept.
        sites: The model's sites, if already found.

    Raises:
        InputError: no concepts, a token the model lacks, or fewer than ``k`` neurons.

    Source: ConceptVectors, arXiv 2406.11614.
    """
    sites = sites if sites is not None else find_sites(model)
    unembedding = unembedding_matrix(sites)
    names, tokens = _tokens_of(concepts, len(unembedding))
    centred = unembedding - unembedding.mean(0)
    covariance = centred.T @ centred / len(centred)
    targets = torch.stack([centred[list(each)].mean(0) for each in tokens])
    scores = []
    for layer in range(sites.n_layers):
        values = value_vectors(neuron_projection(sites, layer)).detach().double()
        # The spread of a vector's logits over the vocabulary needs no logits.
        spread = ((values @ covariance) * values).sum(1).clamp(min=1e-30).sqrt()
        scores.append((values @ targets.T) / spread[:, None])
    return _top_neurons(names, tokens, scores, k, "value vectors")


def find_knowledge_neurons(
    model: nn.Module,
    sequences: Sequences,
    row_concepts: Sequence[str],
    *,
    baseline: Sequences | None = None,
    baseline_concepts: Sequence[str] = (),
    k: int = 10,
    sites: Sites | None = None,
    tokens: int = 4096,
    progress: Progress = SILENT,
) -> KnowledgeTraces:
    """Neurons whose activation times gradient speaks for a concept's answers.

    The gradient is that of the log-probability of the first answer token; products
    are summed over the prompt's positions and averaged over a concept's rows. With a
    ``baseline`` its attributions are taken off: what a neuron does for the answer
    whoever the prompt is about is not knowledge of the fact.

    Args:
        model: The original.
        sequences: Rows with answers.
        row_concepts: (row,) concept of each row.
        baseline: Rows that ask for the same answers without the facts' context, such
            as about invented entities; every concept needs one or more.
        baseline_concepts: (baseline row,) concept of each.
        k: Neurons a concept.
        sites: The model's sites, if already found.
        tokens: Padded positions a batch.
        progress: Where to show progress.

    Raises:
        InputError: rows and concepts that do not match, or a concept without baseline.

    Source: FaithUn's KLUE, arXiv 2502.19207; knowledge neurons, arXiv 2104.08696.
    """
    sites = with_neurons(sites if sites is not None else find_sites(model))
    names = tuple(dict.fromkeys(row_concepts))
    own = _neuron_attribution(
        model, sites, sequences, row_concepts, names, tokens, progress
    )
    if baseline is not None:
        missing = set(names) - set(baseline_concepts)
        if missing:
            raise InputError(
                f"concept {min(missing)!r} has no baseline row",
                expected="one or more rows of each concept",
            )
        chance = _neuron_attribution(
            model, sites, baseline, baseline_concepts, names, tokens, progress
        )
        own = [mine - theirs for mine, theirs in zip(own, chance, strict=True)]
    first: dict[str, set[int]] = {name: set() for name in names}
    for row, name in enumerate(row_concepts):
        first[name].add(sequences.ids[row][sequences.answer_start[row]])
    kept = tuple(tuple(sorted(first[name])) for name in names)
    return _top_neurons(names, kept, own, k, "knowledge neurons")


def unembedding_matrix(sites: Sites) -> Tensor:
    """(token, d) float64 rows of the output layer.

    Raises:
        InputError: the model has no linear output layer.
    """
    weight = getattr(sites.head, "weight", None)
    if sites.head is None or not isinstance(weight, Tensor):
        raise InputError(
            "the model has no output layer whose weight can be read",
            expected="a language model with a linear head",
        )
    shape = linear_shape(sites.head)
    table = weight if shape is None or weight.shape[0] == shape[1] else weight.T
    return table.detach().double()


def _tokens_of(
    concepts: Mapping[str, Sequence[int]], vocabulary: int
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    tokens = tuple(tuple(int(token) for token in each) for each in concepts.values())
    if not tokens or any(not each for each in tokens):
        raise InputError(
            "every concept needs tokens",
            expected="one or more concepts, each with one or more token ids",
            got=str(len(tokens)) + " concepts",
        )
    for name, each in zip(concepts, tokens, strict=True):
        if not all(0 <= token < vocabulary for token in each):
            raise InputError(
                f"concept {name!r} has a token that the model lacks",
                expected=f"ids from 0 to {vocabulary - 1}",
                got=str(each),
            )
    return tuple(concepts), tokens


def _top_neurons(
    names: tuple[str, ...],
    tokens: tuple[tuple[int, ...], ...],
    scores: list[Tensor],
    k: int,
    method: str,
) -> KnowledgeTraces:
    """The top ``k`` over all layers; ``scores`` holds (neuron, concept) a layer."""
    layer = torch.cat([torch.full((len(s),), at) for at, s in enumerate(scores)])
    index = torch.cat([torch.arange(len(s)) for s in scores])
    table = torch.cat([s.cpu() for s in scores]).T
    if not 1 <= k <= table.shape[1]:
        raise InputError(
            "k is not a number of neurons of this model",
            expected=f"1 to {table.shape[1]}",
            got=str(k),
        )
    top, place = table.topk(k, dim=1)
    return KnowledgeTraces(
        names,
        tokens,
        layer[place].numpy(),
        index[place].numpy(),
        top.double().numpy(),
        method,
    )


def _neuron_attribution(
    model: nn.Module,
    sites: Sites,
    sequences: Sequences,
    row_concepts: Sequence[str],
    names: tuple[str, ...],
    tokens: int,
    progress: Progress,
) -> list[Tensor]:
    """One (neuron, concept) table a layer, means over the rows of each concept."""
    if len(row_concepts) != len(sequences) or not len(sequences):
        raise InputError(
            "every row needs a concept",
            expected=str(len(sequences)),
            got=str(len(row_concepts)),
        )
    place = {name: at for at, name in enumerate(names)}
    concept = torch.tensor([place.get(name, -1) for name in row_concepts])
    counts = torch.bincount(concept[concept >= 0], minlength=len(names))
    device = next(model.parameters()).device
    wanted = [f"neurons.{layer}" for layer in range(sites.n_layers)]
    totals: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def edit(value: Tensor) -> Tensor:
            seen[name] = value if value.requires_grad else value.requires_grad_()
            return seen[name]

        return edit

    with (
        torch.enable_grad(),
        evaluation_mode(model),
        progress.task("attribution to neurons", len(sequences)) as advance,
        patch(model, {name: keep(name) for name in wanted}, known_sites=sites),
    ):
        for batch in batches(sequences, batch_tokens=tokens, device=device):
            inputs = batch.model_inputs | {"use_cache": False}
            logits = model(**inputs).logits.float()
            start = batch.answer_mask.int().argmax(1)
            row = torch.arange(len(start), device=device)
            target = batch.input_ids[row, start]
            logprob = logits[row, start - 1].log_softmax(1)[row, target].sum()
            slopes = torch.autograd.grad(logprob, [seen[name] for name in wanted])
            prompt = torch.arange(logits.shape[1], device=device) < start[:, None]
            own = concept[batch.rows]
            for layer, (name, slope) in enumerate(zip(wanted, slopes, strict=True)):
                product = (seen[name] * slope * prompt[..., None]).sum(1).detach().cpu()
                if len(totals) <= layer:
                    totals.append(torch.zeros(product.shape[1], len(names)))
                for at in own[own >= 0].unique().tolist():
                    totals[layer][:, at] += product[own == at].sum(0)
            seen.clear()
            advance(len(batch.rows))
    return [total / counts.clamp(min=1) for total in totals]
