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
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache

import numpy as np
from scipy import stats
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attribution.circuits.circuit import select_circuit
from attribution.circuits.divergence import Divergence, divergence, retained_mass
from attribution.circuits.eap import EapMethod, score_edges
from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.graph import EdgeGraph
from attribution.circuits.prompt_pairs import PromptPairs, pair_entities, pair_items
from attribution.circuits.structure import Readout, find_structure
from attribution.patching.transplant import copy_parameters, last_block, temporarily_replaced
from audits.axes.base import Axis, Unmeasured
from audits.axes.circuit.judgement import (
    LAST_BLOCK,
    METRICS,
    MIN_FAITHFULNESS,
    NAME,
    NATIVE,
    SPEC,
    TRANSPLANTED,
    CircuitSearch,
    EdgeLoss,
    Measurement,
    ModelScores,
    SelectedCircuit,
    SuppressingHead,
    judge,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import TextSets, measured_entities
from audits.core.roles import Role
from audits.core.scores import Part
from capture.data.items import ItemSet
from evidence.errors import InputError
from evidence.seeds import numpy_rng
from evidence.typed_json import BoolArray, FloatArray

# Prompts per item that are paired; more cost time and hardly add entities.
MAX_WORDINGS = 2
# Number of edges that are listed by their loss.
N_LISTED = 20
# A head is listed where its direct effect against the answer is at least this share of the
# effect of corrupting the whole prompt in the original.
MIN_EFFECT_SHARE = 0.05

Pairs = Mapping[Part, PromptPairs]
Scores = Mapping[tuple[str, Part], EdgeScores]
"""Edge scores of one model by readout and part."""
Donor = tuple[Readout, Mapping[str, Tensor]]
"""Last layers of the original, which other models are read with."""

# Steps of EAP-IG, and passes of the bisection over sizes of a circuit, at most.
ATTRIBUTION_STEPS, MAX_SEARCH_PASSES = EapMethod().steps, 20


@dataclass(frozen=True, eq=False)
class OriginalCircuits:
    """The original's circuits, against which every model is compared.

    Attributes:
        in_second: (couple,) whether a couple of forgotten entities is in the second half.
        edge_masks: (half, edge) one circuit a half, selected on that half.
        means: (half, edge) mean edge scores of each half.
        mean: (edge,) mean edge scores of all couples.
        drop: Fall of the metric when the whole prompt is corrupted.
        own: The original's own scores.
        notes: Limitations, in sentences.
    """

    in_second: BoolArray
    edge_masks: BoolArray
    means: FloatArray
    mean: FloatArray
    drop: float
    search: CircuitSearch
    own: ModelScores
    notes: tuple[str, ...]

    def compare(self, role: Role, scores: Scores) -> ModelScores:
        """Circuit mass and CAD figures of one model."""
        mass: dict[str, dict[Part, FloatArray]] = {}
        cad: dict[str, Divergence] = {}
        for (readout, part), each in scores.items():
            table = each.by_entity()
            mass.setdefault(METRICS[readout].id, {})[part] = self.mass_kept(table, part)
            cad[f"{role}, {part}, {readout}"] = self.divergence(table, part)
        native = scores.get((NATIVE, Part.FORGET))
        if native is None:
            return ModelScores(mass, cad)
        table = native.by_entity()
        heads = copy_suppression(native.graph, table, self.drop)
        return ModelScores(mass, cad, self.most_lost(native.graph, table.mean(0)), heads)

    def mass_kept(self, table: FloatArray, part: Part) -> FloatArray:
        """(couple,) circuit mass kept; forgotten couples by the circuit of the other half."""
        first, second = (
            retained_mass(table, mean, mask)
            for mean, mask in zip(self.means, self.edge_masks, strict=True)
        )
        if part is Part.FORGET:
            return np.where(self.in_second, first, second)
        return np.stack([first, second]).mean(0)

    def divergence(self, table: FloatArray, part: Part) -> Divergence:
        """CAD figures, the mean over halves."""
        figures = []
        for rows, mean, mask in zip(
            (self.in_second, ~self.in_second), self.means, self.edge_masks, strict=True
        ):
            used = table[rows] if part is Part.FORGET else table
            figures.append(astuple(divergence(used, mean, mask)))
        return Divergence(*np.mean(figures, axis=0).tolist())

    def most_lost(self, graph: EdgeGraph, after: FloatArray) -> tuple[EdgeLoss, ...]:
        """Edges of either circuit with the largest loss.

        Args:
            after: (edge,) mean scores of another model.
        """
        before, chosen = self.mean, self.edge_masks[0] | self.edge_masks[1]
        loss = np.where(chosen, np.abs(before) - np.sign(before) * after, -np.inf)
        worst = [edge for edge in np.argsort(-loss)[:N_LISTED].tolist() if chosen[edge]]
        return tuple(EdgeLoss(graph.edges[i], float(before[i]), float(after[i])) for i in worst)


def measure_text(ctx: AuditContext[TextSets]) -> Measurement | Unmeasured:
    """Select the original's circuits, and score the edges of every other model."""
    forget, never_taught = measured_entities(ctx.sets.forget, ctx.sets.never_taught)
    sets = ((Part.FORGET, forget, "forget"), (Part.NEVER_TAUGHT, never_taught, "never taught"))
    try:
        pairs = {
            part: pair_couples(ctx.tokenizer, items, ctx.config, stream)
            for part, items, stream in sets
        }
        original = ctx.stage(
            f"{NAME}-original", OriginalCircuits, lambda: select_circuits(ctx, pairs)
        )
    except InputError as error:
        return Unmeasured((str(error),))
    donor, models = cache(lambda: copy_donor(ctx)), {Role.ORIGINAL: original.own}
    for role in ctx.models:
        if role == Role.ORIGINAL:
            continue
        try:
            models[role] = ctx.stage(
                f"{NAME}-{role}",
                ModelScores,
                lambda role=role: score_model(ctx, role, original, donor(), pairs),
            )
        except InputError as error:
            # For example, a model with non-finite logits.
            return Unmeasured((f"{role}: {error}",), "error")
    return Measurement(models, original.search, original.notes)


def copy_donor(ctx: AuditContext[TextSets]) -> Donor:
    """Copies of the original's final norm and head, and of its last block's weights."""
    with ctx.reading(Role.ORIGINAL) as model:
        structure = find_structure(model)
        readout = structure.readout
        copied = Readout(copy.deepcopy(readout.norm), copy.deepcopy(readout.head))
        return copied, copy_parameters(last_block(structure))


def pair_couples(
    tokenizer: PreTrainedTokenizerBase, items: ItemSet, config: AuditConfig, stream: str
) -> PromptPairs:
    """Prompt pairs within one set, so that both entities of a pair have the same status.

    A pair is about both entities, so the couple is the statistical unit from here on.

    Args:
        stream: Name of the random stream of the matching.
    """
    spare = min((len(item.paraphrases) for item in items), default=0)
    more = min(spare, MAX_WORDINGS - 1, config.budget.prompts_per_item - 1)
    rng = numpy_rng(config.seed, NAME, "pairs", stream)
    partners = pair_entities(tokenizer, items, rng)
    pairs = pair_items(
        tokenizer, items, rng, prompt_indices=(None, *range(more)), partners=partners
    )
    names = (" and ".join(sorted((e, partners[e]))) for e in pairs.entities)
    return replace(pairs, entities=tuple(names))


def select_circuits(ctx: AuditContext[TextSets], pairs: Pairs) -> OriginalCircuits:
    """Select one circuit of the original on each half of the couples.

    Raises:
        InputError: there are fewer than four couples, or as ``score_edges`` and
            ``select_circuit``.
    """
    forget = pairs[Part.FORGET]
    with ctx.reading(Role.ORIGINAL) as model:
        structure = find_structure(model)
        names = list(dict.fromkeys(forget.entities))
        if len(names) < 4:
            raise InputError(
                "too few forgotten entities could be paired two by two",
                expected="4 couples or more",
                got=str(len(names)),
            )
        in_second = np.zeros(len(names), dtype=bool)
        order = numpy_rng(ctx.config.seed, NAME, "halves").permutation(len(names))
        in_second[order[len(names) // 2 :]] = True
        number = {entity: position for position, entity in enumerate(names)}
        half_of_pair = in_second[[number[entity] for entity in forget.entities]]
        scores = score_edges(model, forget, structure=structure, progress=ctx.progress)
        circuits = []
        for second in (False, True):
            rows = np.flatnonzero(half_of_pair == second).tolist()
            part = replace(
                scores,
                values=scores.values[rows],
                clean=scores.clean[rows],
                corrupt=scores.corrupt[rows],
                entities=forget[rows].entities,
                ids=forget[rows].ids,
            )
            circuits.append(
                select_circuit(
                    model, forget[rows], part, target=MIN_FAITHFULNESS, structure=structure
                )
            )
        invented = score_edges(
            model, pairs[Part.NEVER_TAUGHT], structure=structure, progress=ctx.progress
        )
    table, left, note = scores.by_entity(), len(forget.skipped), scores.graph.note
    unpaired = f"{left} prompts of forgotten items could not be paired." if left else ""
    found = OriginalCircuits(
        in_second,
        np.stack([circuit.edge_mask for circuit in circuits]),
        np.stack([table[in_second == second].mean(0) for second in (False, True)]),
        scores.mean,
        float(scores.clean.mean() - scores.corrupt.mean()),
        CircuitSearch(
            scores.method,
            scores.metric,
            {part: len(each) for part, each in pairs.items()},
            scores.graph.n_edges,
            tuple(
                SelectedCircuit(**asdict(circuit.measured), edges=int(circuit.edge_mask.sum()))
                for circuit in circuits
            ),
        ),
        ModelScores({}, {}),
        tuple(text for text in (unpaired, note) if text),
    )
    own = {(NATIVE, Part.FORGET): scores, (NATIVE, Part.NEVER_TAUGHT): invented}
    return replace(found, own=found.compare(Role.ORIGINAL, own))


def score_model(
    ctx: AuditContext[TextSets], role: Role, original: OriginalCircuits, donor: Donor, pairs: Pairs
) -> ModelScores:
    """Score the edges of another model with every readout.

    Raises:
        InputError: as ``score_edges`` and ``temporarily_replaced``.
    """
    readout, block_weights = donor
    parts = (Part.FORGET,) if role.is_reference else (Part.FORGET, Part.NEVER_TAUGHT)
    # The suppression is planted in the last block, so it is a control of one reading only:
    # with the original's last block nothing would be left to find.
    readouts = (TRANSPLANTED,) if role == Role.PLANTED else tuple(METRICS)
    scores = {}
    with ctx.fresh(role) as model:  # its last block is replaced for a moment
        structure = find_structure(model)
        block = last_block(structure)
        for name in readouts:
            replaced = name == LAST_BLOCK
            with temporarily_replaced(block, block_weights) if replaced else nullcontext():
                for part in parts:
                    scores[name, part] = score_edges(
                        model,
                        pairs[part],
                        readout=None if name == NATIVE else readout,
                        structure=structure,
                        progress=ctx.progress,
                    )
    return original.compare(role, scores)


def copy_suppression(
    graph: EdgeGraph, scores: FloatArray, drop: float
) -> tuple[SuppressingHead, ...]:
    """Heads whose direct effect on the logits works against the answer.

    A head is listed where corrupting its edge into the logits *raises* the metric by at least
    ``MIN_EFFECT_SHARE`` times ``drop``, significantly over couples (one-sided t, Bonferroni over
    heads). Named after copy suppression (McDougall et al., arXiv 2310.04625).

    Args:
        scores: (couple, edge).
        drop: Fall of the original's metric when the whole prompt is corrupted.
    """
    direct = scores[:, graph.edges_into(len(graph.readers) - 1)]
    heads = [p for p, name in enumerate(graph.writers) if name.startswith("head.")]
    suppressors = []
    for head in heads:
        values = direct[:, head]
        mean = float(values.mean())
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        level = stats.t.ppf(1 - 0.05 / len(heads), len(values) - 1)
        if mean >= MIN_EFFECT_SHARE * drop and mean > level * error:
            suppressors.append(SuppressingHead(graph.writers[head], mean, mean / drop))
    return tuple(sorted(suppressors, key=lambda each: -each.effect))


def cost(plan: PlanInputs) -> Cost:
    """Attribution of every model with three readouts, and the search for the circuits.

    Each attribution step is a forward and a backward pass over both prompts of a pair; the search
    ablates the edges of two circuits at a handful of sizes.
    """
    prompts = min(MAX_WORDINGS, plan.config.budget.prompts_per_item)
    pairs = (
        2
        * prompts
        * (plan.main_prompts[Part.FORGET].units + plan.main_prompts[Part.NEVER_TAUGHT].units)
    )
    passes = 3 * (plan.n_models + 1)
    return Cost(
        forward=2 * MAX_SEARCH_PASSES * pairs, trained=passes * ATTRIBUTION_STEPS * pairs, copies=2
    )


AXIS = Axis(SPEC, Measurement, {"text": measure_text}, judge, cost)
