"""Do traces carry an answer, and what did a change of weights do to them?"""

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
from capture.network.sites import Sites, find_sites, neuron_projection
from capture.network.structure import value_vectors
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.hypothesis_tests import unpaired_max_test
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng, torch_rng

# A log-probability lower than this is lost in any case, and would swamp a mean.
MIN_LOGPROB = -20.0


@dataclass(frozen=True, eq=False, repr=False)
class TraceConfirmation:
    """What noise on a concept's traces does to its answers and to the others'.

    Attributes:
        concepts: (concept,) names.
        own: (concept,) mean fall of the concept's answers' log-probability, in nats.
        others: (concept,) the same of the other concepts' answers.
        random: (concept,) fall of the concept's answers when as many other neurons of
            the same blocks are noised.
        p_value: (concept,) do its own answers fall more than the others'? Rows are
            exchanged.
        confirmed: (concept,) p below the level, and a larger fall than at random.
    """

    concepts: tuple[str, ...]
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    random: NDArray[np.float64]
    p_value: NDArray[np.float64]
    confirmed: NDArray[np.bool_]

    def to_frame(self) -> pd.DataFrame:
        """One row a concept."""
        names = ("own", "others", "random", "p_value", "confirmed")
        table = {name: getattr(self, name) for name in names}
        return pd.DataFrame({"concept": self.concepts} | table)


@dataclass(frozen=True, eq=False, repr=False)
class TraceSurvival:
    """How each trace of the original looks in another checkpoint.

    Attributes:
        traces: Whose.
        cosine: (concept, k) of the value vector before and after.
        distance: (concept, k) length of the change over the length before.
        jaccard: (concept, k) shared part of the top tokens before and after, both
            under the original's unembedding.
        kept_tokens: (concept, k) share of the concept's tokens among the top tokens
            before that are there afterwards; NaN where none was.
        top: How many top tokens were compared.
        layer_mean_cosine: (layer,) mean cosine of all neurons of each block: a trace has been
            edited only if its cosine is lower.
    """

    traces: KnowledgeTraces
    cosine: NDArray[np.float64]
    distance: NDArray[np.float64]
    jaccard: NDArray[np.float64]
    kept_tokens: NDArray[np.float64]
    top: int
    layer_mean_cosine: NDArray[np.float64]

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron."""
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
    """Gaussian noise on some value vectors for the length of a block.

    Args:
        model: Changed, and afterwards bit for bit as before.
        layers: (n,) block of each neuron.
        neurons: (n,) its index.
        scale: Standard deviation, in root mean squares of the vector's own entries.
        rng: Source of the noise.
        sites: The model's sites.
    """
    saved: list[tuple[Tensor, int, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, neuron in zip(layers, neurons, strict=True):
                values = value_vectors(neuron_projection(sites, int(layer)))
                own = values[int(neuron)]
                saved.append((values, int(neuron), own.clone()))
                noise = torch.randn(own.shape, generator=rng).to(own)
                own += scale * own.square().mean().sqrt() * noise
        yield
    finally:
        with torch.no_grad():
            for values, neuron, old in reversed(saved):
                values[neuron] = old


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
    sites: Sites | None = None,
    progress: Progress = SILENT,
) -> TraceConfirmation:
    """Noise each concept's value vectors and see whose answers break.

    Args:
        model: The original; left as it was found.
        traces: What to noise, all neurons of a concept together.
        sequences: Rows with answers.
        row_concepts: (row,) concept of each.
        scale: Of the noise, see ``noisy_value_vectors``. The paper's 0.1 is about five root mean
            squares of the weights of the models it was used on.
        alpha: Level of the test.
        draws: Noises averaged over.
        permutations: Of the test.
        seed: Of noise, random neurons and permutations.
        sites: The model's sites, if already found.
        progress: Shows one unit a concept.

    Raises:
        InputError: a concept without rows, or the only one with any.

    Source: ConceptVectors, arXiv 2406.11614.
    """
    sites = sites if sites is not None else find_sites(model)
    named = np.array(row_concepts)
    for concept in traces.concepts:
        if not (named == concept).any() or (named == concept).all():
            raise InputError(
                f"concept {concept!r} cannot be told from others",
                expected="rows of this concept, and rows of others",
                got=f"{int((named == concept).sum())} of {len(named)} rows",
            )

    def heard() -> NDArray:
        return np.maximum(score_answers(model, sequences).mean_logprob, MIN_LOGPROB)

    before = heard()
    table = np.zeros((len(traces.concepts), 3))
    p_value = np.ones(len(traces.concepts))
    with progress.task("noise on traces", len(traces.concepts)) as advance:
        for at, concept in enumerate(traces.concepts):
            rng = torch_rng(seed, "noise", concept)
            pick = numpy_rng(seed, "other neurons", concept)
            layers, own = traces.layers[at], traces.neurons[at]
            fall, by_luck = np.zeros((2, len(named)))
            for _ in range(draws):
                with noisy_value_vectors(model, layers, own, scale, rng, sites):
                    fall += (before - heard()) / draws
                others = _control_neurons(sites, layers, own, pick)
                with noisy_value_vectors(model, layers, others, scale, rng, sites):
                    by_luck += (before - heard()) / draws
            mine = named == concept
            test = unpaired_max_test(
                fall[mine, None],
                fall[~mine, None],
                numpy_rng(seed, "confirm", concept),
                permutations,
            )
            table[at] = fall[mine].mean(), fall[~mine].mean(), by_luck[mine].mean()
            p_value[at] = test.p_value
            advance(1)
    own, others, random = table.T
    confirmed = (p_value < alpha) & (own > random)
    return TraceConfirmation(traces.concepts, own, others, random, p_value, confirmed)


def trace_survival(
    original: nn.Module,
    candidate: nn.Module,
    traces: KnowledgeTraces,
    *,
    top: int = 200,
) -> TraceSurvival:
    """What became of the original's traces in a candidate.

    Args:
        original: Where the traces were found; its unembedding is used for both.
        candidate: A model of the same shape.
        traces: What to follow.
        top: Top tokens compared; at most a quarter of the vocabulary, beyond which
            any two lists share much by luck.

    Raises:
        InputError: the models differ in shape.

    Source: ConceptVectors, arXiv 2406.11614.
    """
    old_sites, new_sites = find_sites(original), find_sites(candidate)
    unembedding = unembedding_matrix(old_sites)
    top = max(1, min(top, len(unembedding) // 4))
    shape = traces.layers.shape
    cosine, distance, jaccard, kept = (np.full(shape, np.nan) for _ in range(4))
    typical = np.ones(old_sites.n_layers)
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
        alike = torch.cosine_similarity(old, new, dim=1)
        typical[layer] = float(alike.mean())
        for at, rank in np.argwhere(traces.layers == layer):
            neuron = int(traces.neurons[at, rank])
            before, after = old[neuron], new[neuron]
            cosine[at, rank] = float(alike[neuron])
            distance[at, rank] = float((after - before).norm() / before.norm())
            first, second = (
                set((unembedding.cpu() @ each).topk(top).indices.tolist())
                for each in (before, after)
            )
            jaccard[at, rank] = len(first & second) / len(first | second)
            mine = first & set(traces.tokens[at])
            if mine:
                kept[at, rank] = len(mine & second) / len(mine)
    return TraceSurvival(traces, cosine, distance, jaccard, kept, top, typical)


def random_traces(
    traces: KnowledgeTraces, model: nn.Module, seed: int = 0
) -> KnowledgeTraces:
    """As many other neurons of the same blocks: the control of a survival."""
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
    out = np.zeros(len(layers), dtype=np.int64)
    for layer in np.unique(layers):
        here = layers == layer
        count = len(value_vectors(neuron_projection(sites, int(layer))))
        free = np.setdiff1d(np.arange(count), neurons[here])
        if len(free) < here.sum():
            raise InputError(
                f"block {layer} has too few other neurons to compare with",
                expected=str(int(here.sum())),
                got=str(len(free)),
                fix="Ask for fewer traces",
            )
        out[here] = rng.permutation(free)[: here.sum()]
    return out
