"""Circuit axis: do the edges that computed the forgotten answers still carry them?

Edges are scored by EAP-IG on prompt pairs of two forgotten entities each. The original's
circuit is selected on one half of the pairs by real ablation and read on the other half; then
the halves are swapped. The candidate is read three times: with its own final norm and head;
with the original's, which undoes an edit of the unembedding; and with the original's last block
as well, which undoes an edit of that block. The third is needed because every gradient runs
through the last block: an edit there lowers the scores of edges far below it that were never
changed.

The measure is CAD, our definition (``attribution.circuits.divergence``). The axis informs and
can block deletion. It never decides a verdict alone: circuits of equal function differ, and
where a fact is computed is not where it can be recovered.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attribution.circuits.circuit import Circuit, select_circuit
from attribution.circuits.divergence import divergence, retained_mass
from attribution.circuits.eap import score_edges
from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.prompt_pairs import PromptPairs, pair_entities, pair_items
from attribution.circuits.structure import Readout, find_structure
from attribution.patching.transplant import copy_parameters, last_block, temporarily_replaced
from audits.axes.circuit.judgement import (
    LAST_BLOCK,
    TITLES,
    TRANSPLANTED,
    CircuitMass,
    copy_suppression,
    judge,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel
from capture.data.items import ItemSet
from evidence.errors import InputError
from evidence.progress import Progress
from evidence.results import AxisResult
from evidence.seeds import numpy_rng

NAME = "circuit"
QUESTION = "Do the edges that computed the forgotten answers still carry them?"
# Minimum share of the metric that a circuit keeps under real ablation of all other edges.
MIN_FAITHFULNESS = 0.85
# Prompts per item that are paired; more cost time and hardly add entities.
MAX_WORDINGS = 2


@dataclass(frozen=True)
class OriginalCircuits:
    """The original's circuits and edge scores, against which every model is compared.

    Attributes:
        scores: Edge scores of the forget pairs.
        half: (couple,) half, 0 or 1, of each pair of forgotten entities.
        means: (half, edge) mean edge scores of each half.
        circuits: One circuit a half, selected on that half.
        readout: Copy of its final norm and head.
        last_block: Copy of its last block's weights.
        note: Why whole attention outputs replace heads; empty where heads are used.
    """

    scores: EdgeScores
    half: np.ndarray
    means: np.ndarray
    circuits: tuple[Circuit, Circuit]
    readout: Readout
    last_block: Mapping[str, Tensor]
    note: str

    def mass_kept(self, table: np.ndarray, forgotten: bool) -> np.ndarray:
        """(couple,) circuit mass kept; forgotten pairs by the circuit of the other half."""
        by_circuit = np.stack(
            [
                retained_mass(table, mean, circuit.edge_mask)
                for mean, circuit in zip(self.means, self.circuits, strict=True)
            ]
        )
        if not forgotten:
            return by_circuit.mean(0)
        return by_circuit[1 - self.half, np.arange(len(self.half))]

    def divergence(self, table: np.ndarray, forgotten: bool) -> dict[str, float]:
        """CAD figures, the mean over halves."""
        figures = []
        for number, (mean, circuit) in enumerate(zip(self.means, self.circuits, strict=True)):
            rows = self.half != number if forgotten else np.ones(len(table), bool)
            figures.append(asdict(divergence(table[rows], mean, circuit.edge_mask)))
        return {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}


def run_circuit(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    never_taught: ItemSet,
    config: AuditConfig,
    *,
    device: str,
    notes: Sequence[str],
    progress: Progress,
) -> AxisResult:
    """Run the axis on items.

    Args:
        models: Models by role: "original", "unlearned", and where available "planted" and
            "reference-N".
        forget: Forgotten items that the original knows.
        never_taught: Items about invented entities.
    """
    try:
        pairs = {
            "forget": _pairs(tokenizer, forget, config, "forget"),
            "never_taught": _pairs(tokenizer, never_taught, config, "never taught"),
        }
        with models["original"].loaded(device) as model:
            base, mass, figures = _base(model, pairs, config, progress)
    except InputError as error:
        return AxisResult(NAME, QUESTION, "no_power", notes=(str(error), *notes))
    others = {role: audited for role, audited in models.items() if role != "original"}
    tables: dict[str, np.ndarray] = {}
    for role, audited in others.items():
        try:
            with audited.loaded(device) as model:
                scores_by_part = _scores(model, role, base, pairs, progress)
        except InputError as error:
            # For example, a model with non-finite logits.
            text = f"{role}: {error}"
            return AxisResult(NAME, QUESTION, "error", notes=(text, *notes))
        for (part, readout), scores in scores_by_part.items():
            table = scores.by_entity()
            forgotten = part == "forget"
            mass[role, part, readout] = base.mass_kept(table, forgotten)
            figures[f"{role}, {part}, {readout}"] = base.divergence(table, forgotten)
            if (role, part, readout) == ("unlearned", "forget", "native"):
                tables[role] = table
    details = _details(base, pairs, figures, tables["unlearned"])
    left = len(pairs["forget"].skipped)
    extra = [f"{left} prompts of forgotten items could not be paired."] * (left > 0)
    result = judge(
        CircuitMass(mass, [c.measured.faithfulness for c in base.circuits]),
        config,
        MIN_FAITHFULNESS,
    )
    return AxisResult(
        NAME,
        QUESTION,
        result.status,
        "share of the circuit's mass kept (1 - CAD, our definition)",
        readings=result.readings,
        controls=result.controls,
        n_entities=2 * len(base.half),
        details=result.details | details,
        notes=(
            *result.notes,
            *_heads_in_words(details["copy_suppression"]),
            *extra,
            *([base.note] if base.note else []),
            *notes,
        ),
    )


def _pairs(
    tokenizer: PreTrainedTokenizerBase, items: ItemSet, config: AuditConfig, name: str
) -> PromptPairs:
    """Prompt pairs within one set, so that both entities of a pair have the same status.

    A pair is about both entities, so the couple is the statistical unit from here on.
    """
    spare = min((len(item.paraphrases) for item in items), default=0)
    more = min(spare, MAX_WORDINGS - 1, config.budget.prompts_per_item - 1)
    rng = numpy_rng(config.seed, NAME, "pairs", name)
    partners = pair_entities(tokenizer, items, rng)
    pairs = pair_items(
        tokenizer, items, rng, prompt_indices=(None, *range(more)), partners=partners
    )
    names = (" and ".join(sorted((e, partners[e]))) for e in pairs.entities)
    return replace(pairs, entities=tuple(names))


def _base(
    model: nn.Module, pairs: Mapping[str, PromptPairs], config: AuditConfig, progress: Progress
) -> tuple[OriginalCircuits, dict[tuple[str, str, str], np.ndarray], dict[str, dict[str, float]]]:
    """The original's circuits, with its own circuit mass and CAD figures."""
    anatomy = find_structure(model)
    forget = pairs["forget"]
    names = list(dict.fromkeys(forget.entities))
    if len(names) < 4:
        raise InputError(
            "too few forgotten entities could be paired two by two",
            expected="4 couples or more",
            got=str(len(names)),
        )
    half = np.zeros(len(names), dtype=int)
    order = numpy_rng(config.seed, NAME, "halves").permutation(len(names))
    half[order[len(names) // 2 :]] = 1
    of_pair = half[[names.index(entity) for entity in forget.entities]]
    scores = score_edges(model, forget, structure=anatomy, progress=progress)
    table = scores.by_entity()
    circuits = []
    for number in (0, 1):
        rows = np.flatnonzero(of_pair == number).tolist()
        part = replace(
            scores,
            values=scores.values[rows],
            clean=scores.clean[rows],
            corrupt=scores.corrupt[rows],
            entities=forget[rows].entities,
            ids=forget[rows].ids,
        )
        circuits.append(
            select_circuit(model, forget[rows], part, target=MIN_FAITHFULNESS, structure=anatomy)
        )
    readout = Readout(copy.deepcopy(anatomy.readout.norm), copy.deepcopy(anatomy.readout.head))
    base = OriginalCircuits(
        scores,
        half,
        np.stack([table[half == number].mean(0) for number in (0, 1)]),
        (circuits[0], circuits[1]),
        readout,
        copy_parameters(last_block(anatomy)),
        scores.graph.note,
    )
    invented = score_edges(
        model, pairs["never_taught"], structure=anatomy, progress=progress
    ).by_entity()
    mass = {
        ("original", "forget", "native"): base.mass_kept(table, True),
        ("original", "never_taught", "native"): base.mass_kept(invented, False),
    }
    figures = {
        "original, forget, native": base.divergence(table, True),
        "original, never_taught, native": base.divergence(invented, False),
    }
    return base, mass, figures


def _scores(
    model: nn.Module,
    role: str,
    base: OriginalCircuits,
    pairs: Mapping[str, PromptPairs],
    progress: Progress,
) -> dict[tuple[str, str], EdgeScores]:
    """Edge scores of one model by part and readout."""
    anatomy = find_structure(model)
    block = last_block(anatomy)
    parts = ["forget"] if role.startswith("reference") else ["forget", "never_taught"]
    # The suppression is planted in the last block, so it is a control of one reading only:
    # with the original's last block nothing would be left to find.
    readouts = (TRANSPLANTED,) if role == "planted" else tuple(TITLES)
    scores = {}
    for readout in readouts:
        with_block = readout == LAST_BLOCK
        with temporarily_replaced(block, base.last_block) if with_block else nullcontext():
            for part in parts:
                scores[part, readout] = score_edges(
                    model,
                    pairs[part],
                    readout=None if readout == "native" else base.readout,
                    structure=anatomy,
                    progress=progress,
                )
    return scores


def _heads_in_words(heads_by_role: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A note on heads whose direct effect against the answer appeared or disappeared."""
    before, after = (
        {head["head"] for head in heads_by_role[role]} for role in ("original", "unlearned")
    )
    parts = [
        f"{', '.join(sorted(heads))} ({words})"
        for heads, words in (
            (after - before, "only in the candidate"),
            (after & before, "in both models"),
            (before - after, "only in the original"),
        )
        if heads
    ]
    if not parts:
        return []
    return [f"Heads that work against the answer: {'; '.join(parts)}."]


def _details(
    base: OriginalCircuits,
    pairs: Mapping[str, PromptPairs],
    figures: dict[str, dict[str, float]],
    candidate: np.ndarray,
) -> dict[str, Any]:
    """JSON-ready: circuits, CAD figures, edges with the largest loss, heads."""
    graph = base.scores.graph
    before, after = base.scores.mean, candidate.mean(0)
    chosen = base.circuits[0].edge_mask | base.circuits[1].edge_mask
    loss = np.where(chosen, np.abs(before) - np.sign(before) * after, -np.inf)
    worst = [edge for edge in np.argsort(-loss)[:20].tolist() if chosen[edge]]
    drop = float(base.scores.clean.mean() - base.scores.corrupt.mean())
    return {
        "method": base.scores.method,
        "metric": base.scores.metric,
        "pairs": {name: len(part_pairs) for name, part_pairs in pairs.items()},
        "edges": graph.n_edges,
        "circuits": [
            {"edges": int(c.edge_mask.sum()), **asdict(c.measured)} for c in base.circuits
        ],
        "cad": figures,
        "edges_that_lost_most": [
            {
                "edge": graph.edges[edge],
                "original": float(before[edge]),
                "unlearned": float(after[edge]),
            }
            for edge in worst
        ],
        "copy_suppression": {
            "original": copy_suppression(graph, base.scores.by_entity(), drop),
            "unlearned": copy_suppression(graph, candidate, drop),
        },
    }
