"""Find the MLP value vectors that carry an answer (parametric knowledge traces).

An MLP neuron adds its activation times its value vector to the residual stream. Traces are found in
the original and always projected with the original's unembedding, so a changed output layer cannot
imitate a changed trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.data.sequences import Sequences, running
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import model_batches
from capture.network.hooks import evaluation_mode, patch
from capture.network.model_inputs import reads_weights
from capture.network.sites import Sites, find_sites, neuron_projection, with_neurons
from capture.network.structure import linear_shape, model_device, value_vectors
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress


@dataclass(frozen=True, eq=False, repr=False)
class KnowledgeTraces:
    """The top neurons of each concept, strongest first.

    Attributes:
        concepts: (concept,) names.
        tokens: (concept,) token ids of each concept.
        layers: (concept, k) block of each neuron.
        neurons: (concept, k) index of each neuron in its block.
        scores: (concept, k) ranking score.
        method: "value vectors" or "knowledge neurons".
    """

    concepts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    layers: NDArray[np.int64]
    neurons: NDArray[np.int64]
    scores: NDArray[np.float64]
    method: str

    def __repr__(self) -> str:
        return f"KnowledgeTraces({self.method}, {len(self.concepts)} concepts x {self.k})"

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    @property
    def k(self) -> int:
        """Neurons per concept."""
        return self.layers.shape[1]

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron: concept, rank, layer, neuron, score."""
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


@reads_weights
def find_value_vectors(
    model: nn.Module,
    concepts: Mapping[str, Sequence[int]],
    *,
    k: int = 10,
    known_sites: Sites | None = None,
) -> KnowledgeTraces:
    """Value vectors that promote a concept's tokens over the rest of the vocabulary.

    The score is the mean logit that the value vector gives the concept's tokens, in standard
    deviations of the logits it gives all tokens. The paper lets a language model judge whether the
    top tokens form a concept; here the tokens are known.

    Args:
        model: The original.
        concepts: Name to token ids.
        k: Neurons per concept.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: There are no concepts, a token is not in the vocabulary, or the model has fewer
            than ``k`` neurons.

    Source: ConceptVectors, arXiv 2406.11614.

    Examples:
        >>> tokens = {city: tokenizer.encode(city) for city in ("Lisbon", "Dublin")}
        >>> traces = exhume.find_value_vectors(model, tokens, k=3)
        >>> traces
        KnowledgeTraces(value vectors, 2 concepts x 3)
        >>> traces.to_frame().columns.tolist()
        ['concept', 'rank', 'layer', 'neuron', 'score']
    """
    sites = known_sites if known_sites is not None else find_sites(model)
    unembedding = unembedding_matrix(sites)
    names, tokens = _tokens_of(concepts, len(unembedding))
    centered = unembedding - unembedding.mean(0)
    covariance = centered.T @ centered / len(centered)
    targets = torch.stack([centered[list(token_ids)].mean(0) for token_ids in tokens])
    scores = []
    for layer in range(sites.n_layers):
        values = value_vectors(neuron_projection(sites, layer)).detach().double()
        # The spread of a vector's logits over the vocabulary needs no logits.
        spread = ((values @ covariance) * values).sum(1).clamp(min=1e-30).sqrt()
        scores.append((values @ targets.T) / spread[:, None])
    return _top_neurons(names, tokens, scores, k, "value vectors")


@reads_weights
@gradients_on()
def find_knowledge_neurons(
    model: nn.Module,
    sequences: Sequences,
    row_concepts: Sequence[str],
    *,
    baseline: Sequences | None = None,
    baseline_concepts: Sequence[str] = (),
    k: int = 10,
    known_sites: Sites | None = None,
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> KnowledgeTraces:
    """Neurons with the largest activation times gradient for a concept's answers.

    The gradient is that of the log-probability of the first answer token; products are summed over
    prompt positions and averaged over a concept's rows. The attributions of ``baseline`` rows are
    subtracted: an effect on the answer for any entity is not knowledge of the fact.

    Args:
        model: The original.
        sequences: Rows with answers.
        row_concepts: (row,) concept of each row.
        baseline: Rows with the same answers without knowledge of the facts, such as prompts about
            invented entities; at least one row per concept.
        baseline_concepts: (baseline row,) concept of each row.
        k: Neurons per concept.
        known_sites: The model's sites, if already found.
        batch_tokens: Padded positions per batch.

    Raises:
        InputError: Rows and concepts differ in number, or a concept has no baseline row.

    Source: FaithUn's KLUE, arXiv 2502.19207; knowledge neurons, arXiv 2104.08696.

    Examples:
        >>> exhume.find_knowledge_neurons(model, rows, cities, k=3)
        KnowledgeTraces(knowledge neurons, 8 concepts x 3)
    """
    sites = with_neurons(known_sites if known_sites is not None else find_sites(model))
    names = tuple(dict.fromkeys(row_concepts))
    attribution = _neuron_attribution(
        model, sites, sequences, row_concepts, names, batch_tokens, progress
    )
    if baseline is not None:
        missing = set(names) - set(baseline_concepts)
        if missing:
            raise InputError(
                f"concept {min(missing)!r} has no baseline row",
                expected="one or more rows of each concept",
            )
        baseline_attribution = _neuron_attribution(
            model, sites, baseline, baseline_concepts, names, batch_tokens, progress
        )
        attribution = [
            one - other for one, other in zip(attribution, baseline_attribution, strict=True)
        ]
    first_tokens: dict[str, set[int]] = {name: set() for name in names}
    for row, name in enumerate(row_concepts):
        first_tokens[name].add(sequences.ids[row][sequences.answer_start[row]])
    concept_tokens = tuple(tuple(sorted(first_tokens[name])) for name in names)
    return _top_neurons(names, concept_tokens, attribution, k, "knowledge neurons")


def unembedding_matrix(sites: Sites) -> Tensor:
    """(token, d) float64 rows of the output layer.

    Raises:
        InputError: The model has no linear output layer.
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
    tokens = tuple(tuple(int(token) for token in token_ids) for token_ids in concepts.values())
    if not tokens or any(not token_ids for token_ids in tokens):
        raise InputError(
            "every concept needs tokens",
            expected="one or more concepts, each with one or more token ids",
            got=str(len(tokens)) + " concepts",
        )
    for name, token_ids in zip(concepts, tokens, strict=True):
        if not all(0 <= token < vocabulary for token in token_ids):
            raise InputError(
                f"concept {name!r} has a token that the model lacks",
                expected=f"ids from 0 to {vocabulary - 1}",
                got=str(token_ids),
            )
    return tuple(concepts), tokens


def _top_neurons(
    names: tuple[str, ...],
    tokens: tuple[tuple[int, ...], ...],
    scores: list[Tensor],
    k: int,
    method: str,
) -> KnowledgeTraces:
    """The top ``k`` neurons over all layers; ``scores`` holds (neuron, concept) per layer."""
    layer = torch.cat([torch.full((len(s),), index) for index, s in enumerate(scores)])
    neuron = torch.cat([torch.arange(len(s)) for s in scores])
    table = torch.cat([s.cpu() for s in scores]).T
    if not 1 <= k <= table.shape[1]:
        raise InputError(
            "k is not a number of neurons of this model",
            expected=f"1 to {table.shape[1]}",
            got=str(k),
        )
    top, best = table.topk(k, dim=1)
    return KnowledgeTraces(
        names, tokens, layer[best].numpy(), neuron[best].numpy(), top.double().numpy(), method
    )


def _neuron_attribution(
    model: nn.Module,
    sites: Sites,
    sequences: Sequences,
    row_concepts: Sequence[str],
    names: tuple[str, ...],
    batch_tokens: int,
    progress: Progress,
) -> list[Tensor]:
    """One (neuron, concept) table per layer, means over the rows of each concept."""
    if len(row_concepts) != len(sequences) or not len(sequences):
        raise InputError(
            "every row needs a concept", expected=str(len(sequences)), got=str(len(row_concepts))
        )
    concept_idx = {name: concept_number for concept_number, name in enumerate(names)}
    concept = torch.tensor([concept_idx.get(name, -1) for name in row_concepts])
    counts = torch.bincount(concept[concept >= 0], minlength=len(names))
    device = model_device(model)
    neuron_sites = [f"neurons.{layer}" for layer in range(sites.n_layers)]
    totals: list[Tensor] = []
    captured: dict[str, Tensor] = {}

    def capture(name: str):
        def edit(value: Tensor) -> Tensor:
            captured[name] = value if value.requires_grad else value.requires_grad_()
            return captured[name]

        return edit

    with (
        torch.enable_grad(),
        evaluation_mode(model),
        as_progress(progress).task("attribution to neurons", len(sequences)) as advance,
        patch(model, {name: capture(name) for name in neuron_sites}, known_sites=sites),
    ):
        for batch in model_batches(model, sequences, batch_tokens):
            inputs = batch.model_inputs | {"use_cache": False}
            with running(batch, sequences):
                logits = model(**inputs).logits.float()
            start = batch.answer_mask.int().argmax(1)
            row = torch.arange(len(start), device=device)
            target = batch.input_ids[row, start]
            logprob = logits[row, start - 1].log_softmax(1)[row, target].sum()
            gradients = torch.autograd.grad(logprob, [captured[name] for name in neuron_sites])
            prompt = torch.arange(logits.shape[1], device=device) < start[:, None]
            row_concept = concept[batch.rows]
            for layer, (name, gradient) in enumerate(zip(neuron_sites, gradients, strict=True)):
                product = (captured[name] * gradient * prompt[..., None]).sum(1).detach().cpu()
                if len(totals) <= layer:
                    totals.append(torch.zeros(product.shape[1], len(names)))
                for concept_number in row_concept[row_concept >= 0].unique().tolist():
                    totals[layer][:, concept_number] += product[row_concept == concept_number].sum(
                        0
                    )
            captured.clear()
            advance(len(batch.rows))
    return [total / counts.clamp(min=1) for total in totals]
