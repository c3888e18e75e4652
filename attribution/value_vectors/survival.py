"""Test whether knowledge traces carry an answer, and compare them between two checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.value_vectors.find import KnowledgeTraces, unembedding_matrix
from capture.data.sequences import Sequences
from capture.network.model_inputs import reads_weights
from capture.network.sites import Sites, find_sites, neuron_projection
from capture.network.structure import value_vectors
from capture.scoring.answers import score_answers
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.hypothesis_tests import unpaired_max_test
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng, torch_rng

# Log-probabilities are floored here: anything lower is lost and would dominate a mean.
MIN_LOGPROB = -20.0


@dataclass(frozen=True, eq=False, repr=False)
class TraceConfirmation:
    """Effect of noise on a concept's traces on its own answers and on other concepts' answers.

    Attributes:
        concepts: (concept,) names.
        own_fall: (concept,) mean fall of the log-probability of the concept's answers, in nats.
        others_fall: (concept,) the same for the other concepts' answers.
        random_fall: (concept,) fall of the concept's answers when as many other neurons of the same
            blocks are noised.
        p_value: (concept,) permutation test over rows: do its own answers fall more than the
            others'?
        confirmed: (concept,) p below the level, and a larger fall than with random neurons.
    """

    concepts: tuple[str, ...]
    own_fall: NDArray[np.float64]
    others_fall: NDArray[np.float64]
    random_fall: NDArray[np.float64]
    p_value: NDArray[np.float64]
    confirmed: NDArray[np.bool_]

    def __repr__(self) -> str:
        return (
            f"TraceConfirmation({int(self.confirmed.sum())} of {len(self.concepts)} "
            "concepts confirmed)"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row per concept."""
        names = ("own_fall", "others_fall", "random_fall", "p_value", "confirmed")
        table = {name: getattr(self, name) for name in names}
        return pd.DataFrame({"concept": self.concepts} | table)


@dataclass(frozen=True, eq=False, repr=False)
class TraceSurvival:
    """Comparison of the original's traces with another checkpoint.

    Attributes:
        traces: The original's traces.
        cosine: (concept, k) cosine of the value vector before and after.
        distance: (concept, k) norm of the change over the norm before.
        jaccard: (concept, k) Jaccard index of the top tokens before and after, both under the
            original's unembedding.
        kept_tokens: (concept, k) share of the concept's tokens among the top tokens before that are
            still among them after; NaN if there were none.
        top: Number of top tokens compared.
        layer_mean_cosine: (layer,) mean cosine of all neurons of each block: a trace was edited
            only if its cosine is lower.
    """

    traces: KnowledgeTraces
    cosine: NDArray[np.float64]
    distance: NDArray[np.float64]
    jaccard: NDArray[np.float64]
    kept_tokens: NDArray[np.float64]
    top: int
    layer_mean_cosine: NDArray[np.float64]

    def __repr__(self) -> str:
        concepts, k = self.cosine.shape
        return (
            f"TraceSurvival({concepts} concepts x {k}: mean cosine {self.cosine.mean():.2f}, "
            f"relative distance {self.distance.mean():.2f})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron."""
        names = ("cosine", "distance", "jaccard", "kept_tokens")
        extra = {name: getattr(self, name).ravel() for name in names}
        typical = self.layer_mean_cosine[self.traces.layers.ravel()]
        return self.traces.to_frame().assign(**extra, typical_cosine=typical)


@contextmanager
def noisy_value_vectors(
    model: nn.Module,
    layers: Sequence[int] | NDArray,
    neurons: Sequence[int] | NDArray,
    scale: float,
    rng: torch.Generator,
    sites: Sites,
) -> Iterator[None]:
    """Context manager that adds Gaussian noise to some value vectors.

    Args:
        model: Restored bit for bit on exit.
        layers: (n,) block of each neuron.
        neurons: (n,) index of each neuron in its block.
        scale: Standard deviation, in root mean squares of the vector's entries.
        rng: Source of the noise.
        sites: The model's sites.
    """
    saved: list[tuple[Tensor, int, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, neuron in zip(layers, neurons, strict=True):
                values = value_vectors(neuron_projection(sites, int(layer)))
                value = values[int(neuron)]
                saved.append((values, int(neuron), value.clone()))
                noise = torch.randn(value.shape, generator=rng).to(value)
                value += scale * value.square().mean().sqrt() * noise
        yield
    finally:
        with torch.no_grad():
            for values, neuron, original in reversed(saved):
                values[neuron] = original


@reads_weights
def confirm_traces(
    model: nn.Module,
    traces: KnowledgeTraces,
    sequences: Sequences,
    row_concepts: Sequence[str],
    *,
    scale: float = 3.0,
    alpha: float = 0.05,
    draws: int = 3,
    permutations: int = 999,
    seed: int = 0,
    known_sites: Sites | None = None,
    progress: Progress = AUTO,
) -> TraceConfirmation:
    """Add noise to each concept's value vectors and test whose answers become less likely.

    Args:
        model: The original; unchanged afterwards.
        traces: Noised concept by concept, all neurons of a concept together.
        sequences: Rows with answers.
        row_concepts: (row,) concept of each row.
        scale: See ``noisy_value_vectors``. The paper's 0.1 is about five root mean squares of the
            weights of its models.
        alpha: Level of the test.
        draws: Number of noise draws averaged over.
        permutations: Number of permutations of the test.
        seed: Seed of noise, random neurons and permutations.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: A concept has no rows, or all of them.

    Source: ConceptVectors, arXiv 2406.11614.

    Examples:
        >>> tokens = {city: tokenizer.encode(city) for city in ("Lisbon", "Dublin")}
        >>> traces = exhume.find_value_vectors(model, tokens, k=3)
        >>> found = exhume.confirm_traces(model, traces, rows, cities, draws=1, permutations=50)
        >>> found.to_frame().columns.tolist()
        ['concept', 'own_fall', 'others_fall', 'random_fall', 'p_value', 'confirmed']
    """
    sites = known_sites if known_sites is not None else find_sites(model)
    named = np.array(row_concepts)
    for concept in traces.concepts:
        if not (named == concept).any() or (named == concept).all():
            raise InputError(
                f"concept {concept!r} has no rows, or all of them",
                expected="rows of this concept, and rows of others",
                got=f"{int((named == concept).sum())} of {len(named)} rows",
            )

    def mean_logprobs() -> NDArray:
        return np.maximum(score_answers(model, sequences).mean_logprob, MIN_LOGPROB)

    before = mean_logprobs()
    table = np.zeros((len(traces.concepts), 3))
    p_value = np.ones(len(traces.concepts))
    with as_progress(progress).task("noise on traces", len(traces.concepts)) as advance:
        for number, concept in enumerate(traces.concepts):
            rng = torch_rng(seed, "noise", concept)
            neuron_rng = numpy_rng(seed, "other neurons", concept)
            layers, neurons = traces.layers[number], traces.neurons[number]
            fall, control_fall = np.zeros((2, len(named)))
            for _ in range(draws):
                with noisy_value_vectors(model, layers, neurons, scale, rng, sites):
                    fall += (before - mean_logprobs()) / draws
                control = _control_neurons(sites, layers, neurons, neuron_rng)
                with noisy_value_vectors(model, layers, control, scale, rng, sites):
                    control_fall += (before - mean_logprobs()) / draws
            in_concept = named == concept
            test = unpaired_max_test(
                fall[in_concept, None],
                fall[~in_concept, None],
                numpy_rng(seed, "confirm", concept),
                permutations,
            )
            table[number] = (
                fall[in_concept].mean(),
                fall[~in_concept].mean(),
                control_fall[in_concept].mean(),
            )
            p_value[number] = test.p_value
            advance(1)
    own_fall, others_fall, random_fall = table.T
    confirmed = (p_value < alpha) & (own_fall > random_fall)
    return TraceConfirmation(
        traces.concepts, own_fall, others_fall, random_fall, p_value, confirmed
    )


@reads_weights
def trace_survival(
    original: nn.Module, candidate: nn.Module, traces: KnowledgeTraces, *, top: int = 200
) -> TraceSurvival:
    """Compare the original's traces with the same neurons of a candidate.

    Args:
        original: The model of the traces; its unembedding is used for both models.
        candidate: A model of the same shape.
        traces: The traces.
        top: Number of top tokens compared; at most a quarter of the vocabulary, as longer lists
            overlap by chance.

    Raises:
        InputError: The models differ in shape.

    Source: ConceptVectors, arXiv 2406.11614.

    Examples:
        >>> traces = exhume.find_value_vectors(model, {"Lisbon": tokenizer.encode("Lisbon")}, k=3)
        >>> exhume.trace_survival(model, model, traces)
        TraceSurvival(1 concepts x 3: mean cosine 1.00, relative distance 0.00)
    """
    old_sites, new_sites = find_sites(original), find_sites(candidate)
    unembedding = unembedding_matrix(old_sites)
    top = max(1, min(top, len(unembedding) // 4))
    shape = traces.layers.shape
    cosine, distance, jaccard, kept_tokens = (np.full(shape, np.nan) for _ in range(4))
    layer_mean = np.ones(old_sites.n_layers)
    for layer in range(old_sites.n_layers):
        old, new = (
            value_vectors(neuron_projection(sites, layer)).detach().double().cpu()
            if layer < sites.n_layers
            else torch.zeros(0, 0)
            for sites in (old_sites, new_sites)
        )
        if old.shape != new.shape:
            raise InputError(
                f"the models differ in shape at block {layer}",
                expected=str(tuple(old.shape)),
                got=str(tuple(new.shape)),
            )
        cosines = torch.cosine_similarity(old, new, dim=1)
        layer_mean[layer] = float(cosines.mean())
        for concept, rank in np.argwhere(traces.layers == layer):
            neuron = int(traces.neurons[concept, rank])
            before, after = old[neuron], new[neuron]
            cosine[concept, rank] = float(cosines[neuron])
            distance[concept, rank] = float((after - before).norm() / before.norm())
            first, second = (
                set((unembedding.cpu() @ each).topk(top).indices.tolist())
                for each in (before, after)
            )
            jaccard[concept, rank] = len(first & second) / len(first | second)
            found = first & set(traces.tokens[concept])
            if found:
                kept_tokens[concept, rank] = len(found & second) / len(found)
    return TraceSurvival(traces, cosine, distance, jaccard, kept_tokens, top, layer_mean)


@reads_weights
def random_traces(traces: KnowledgeTraces, model: nn.Module, seed: int = 0) -> KnowledgeTraces:
    """The control of a survival comparison: as many other neurons of the same blocks.

    Examples:
        >>> traces = exhume.find_value_vectors(model, {"Lisbon": tokenizer.encode("Lisbon")}, k=3)
        >>> exhume.random_traces(traces, model)
        KnowledgeTraces(random neurons, 1 concepts x 3)
    """
    sites = find_sites(model)
    rng = numpy_rng(seed, "random traces")
    neurons = np.stack(
        [
            _control_neurons(sites, layers, own, rng)
            for layers, own in zip(traces.layers, traces.neurons, strict=True)
        ]
    )
    scores = np.full(traces.scores.shape, np.nan)
    return replace(traces, neurons=neurons, scores=scores, method="random neurons")


def _control_neurons(
    sites: Sites, layers: NDArray, neurons: NDArray, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,) neurons of the same blocks that are not among ``neurons``."""
    control = np.zeros(len(layers), dtype=np.int64)
    for layer in np.unique(layers):
        in_layer = layers == layer
        count = len(value_vectors(neuron_projection(sites, int(layer))))
        candidates = np.setdiff1d(np.arange(count), neurons[in_layer])
        if len(candidates) < in_layer.sum():
            raise InputError(
                f"block {layer} has too few other neurons to compare with",
                expected=str(int(in_layer.sum())),
                got=str(len(candidates)),
                fix="Ask for fewer traces",
            )
        control[in_layer] = rng.permutation(candidates)[: in_layer.sum()]
    return control
