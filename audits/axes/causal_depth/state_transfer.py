"""Patching prompts, and cross-model activation patching of answer states.

Donor states at the last prompt token are patched into a receiver that reads the same question
about an invented entity. An answer about the first entity can only come from the donor states,
because the receiver prompt names another one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.cross_model import DonorStates, read_states, score_patched
from audits.axes.decodability.state_readers import evenly_spaced
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets, measured_entities
from audits.core.roles import Role
from audits.core.scores import Part
from capture.data.questions import Questions, build_questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, skip_joining_space
from capture.network.sites import find_sites
from capture.scoring.answers import AnswerScores
from capture.scoring.contrast import entity_contrast, first_tokens
from evidence import moved
from evidence.progress import Progress
from evidence.seeds import numpy_rng

OWN, UNRELATED, OTHER_FACT = "own", "unrelated", "other"
"""Further parts: the question itself as the receiver, an invented entity as the donor, and another
fact of the entity as the donor."""
MAX_NORM_RATIO = 2.0
"""Donor states whose norms are off by more than this factor are rescaled."""


@dataclass(frozen=True)
class PatchingPrompts:
    """Questions with their donor and receiver prompts.

    Attributes:
        questions: The questions; the answer of each row is scored.
        donors: (row,) prompt at whose end states are read.
        receivers: (row,) prompt that the receiver reads while they are patched in.
    """

    questions: Questions
    donors: tuple[str, ...]
    receivers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.donors)

    def encoded(self, tokenizer: PreTrainedTokenizerBase, side: str) -> Sequences:
        """The "donors" or the "receivers" prompts with the answers, as token rows."""
        texts = getattr(self, side)
        return skip_joining_space(tokenizer, encode(tokenizer, texts, self.questions.answers))


def with_unrelated_receiver(questions: Questions, never_taught: Questions) -> PatchingPrompts:
    """Pair each question with the same question about an invented entity as receiver.

    The receiver has the same relation, the same paraphrase where there is one, and another
    entity. Questions whose relation no invented entity has are dropped.
    """
    by_form: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    # (form, entity) to the places of its rows in that form's list.
    own_places: dict[tuple[tuple[str, int | None], str], list[int]] = defaultdict(list)
    for row, (index, wording) in enumerate(
        zip(never_taught.item_index, never_taught.wording, strict=True)
    ):
        item = never_taught.items[index]
        for form in ((item.relation, wording), (item.relation, None)):
            own_places[form, item.entity].append(len(by_form[form]))
            by_form[form].append(row)
    turns: dict[tuple[str, int | None], int] = defaultdict(int)
    receivers: list[str | None] = []
    for index, wording in zip(questions.item_index, questions.wording, strict=True):
        item = questions.items[index]
        form = (item.relation, wording)
        form = form if form in by_form else (item.relation, None)
        every, own = by_form.get(form, ()), own_places.get((form, item.entity), ())
        # Receivers take turns, so that no single invented entity biases many questions. They
        # are in the order of the items they mirror, so one step further is another entity.
        turns[form] += 1
        if len(every) == len(own):
            receivers.append(None)
            continue
        turn = turns[form] % (len(every) - len(own))
        for place in own:  # ascending: step over the entity's own rows
            turn += place <= turn
        receivers.append(never_taught.prompts[every[turn]])
    selected = questions.select([prompt is not None for prompt in receivers])
    return PatchingPrompts(
        selected, selected.prompts, tuple(prompt for prompt in receivers if prompt is not None)
    )


def with_other_fact_donor(same_fact: PatchingPrompts) -> PatchingPrompts:
    """The same questions with donor prompts that ask for another fact of the entity.

    Such states identify the entity and carry another answer. Where the original still gives the
    scored answer, it recalled the answer after that layer.
    """
    questions = same_fact.questions
    prompts = {
        (questions.items[index].entity, questions.items[index].relation, wording): text
        for index, wording, text in zip(
            questions.item_index, questions.wording, questions.prompts, strict=True
        )
    }
    relations: dict[tuple[str, int], list[str]] = defaultdict(list)
    for entity, relation, wording in prompts:
        relations[entity, wording].append(relation)
    donors: list[str | None] = []
    for index, wording in zip(questions.item_index, questions.wording, strict=True):
        item = questions.items[index]
        others = relations[item.entity, wording]
        relation_asked = others[(others.index(item.relation) + 1) % len(others)]
        single = len(others) < 2
        donors.append(None if single else prompts[item.entity, relation_asked, wording])
    mask = [prompt is not None for prompt in donors]
    return PatchingPrompts(
        questions.select(mask),
        tuple(prompt for prompt in donors if prompt is not None),
        tuple(text for text, selected in zip(same_fact.receivers, mask, strict=True) if selected),
    )


@dataclass(frozen=True, eq=False)
class PatchedScores:
    """Answer scores of a receiver with the states of one donor.

    Attributes:
        exact_match: (row, site).
        contrast: (row, site) as ``entity_contrast``.
        logprob: (row, site) log-probability of the whole answer, in nats.
        unmatched: (row, site) contrast before states were rescaled to the original's norms; None
            where they were not.
    """

    exact_match: np.ndarray
    contrast: np.ndarray
    logprob: np.ndarray
    unmatched: np.ndarray | None


def patching_prompts(
    sets: TextSets, known: np.ndarray, n_prompts: int, seed: int
) -> dict[str, PatchingPrompts]:
    """The patching prompts by part: those of ``Part``, and the further ones.

    Of very many entities, a sample is measured.

    Args:
        known: (row,) forget questions that the original answers.
        n_prompts: Prompts per item.
        seed: Seed of the sample of retain items.
    """
    gone, never_taught = measured_entities(sets.forget, sets.never_taught)
    invented = sets.questions(Part.NEVER_TAUGHT, n_prompts)
    if never_taught is not sets.never_taught:
        invented = build_questions(never_taught, n_prompts)
    names = sets.retain.entities
    order = numpy_rng(seed, "causal_depth", "retain").permutation(len(names))
    sample = sets.retain.of_entities([names[i] for i in order[: len(gone.entities)]])
    asked, measured = sets.questions(Part.FORGET, n_prompts), set(gone.entities)
    known = known & np.array([entity in measured for entity in asked.entities])
    forget = with_unrelated_receiver(asked.select(known), invented)
    first = [wording == 0 for wording in forget.questions.wording]
    main = forget.questions.select(first)
    unrelated = tuple(
        prompt for prompt, is_main in zip(forget.receivers, first, strict=True) if is_main
    )
    other_fact = with_other_fact_donor(PatchingPrompts(main, main.prompts, unrelated))
    return {
        Part.FORGET: forget,
        Part.NEVER_TAUGHT: with_unrelated_receiver(invented, invented),
        Part.RETAIN: with_unrelated_receiver(build_questions(sample, 1), invented),
        OWN: PatchingPrompts(main, main.prompts, main.prompts),
        UNRELATED: PatchingPrompts(main, unrelated, main.prompts),
        **({OTHER_FACT: other_fact} if len(other_fact) else {}),
    }


def read_donors(
    ctx: AuditContext[TextSets],
    prompts: Mapping[str, PatchingPrompts],
    roles: Mapping[str, Sequence[Role]],
) -> dict[str, dict[Role, DonorStates]]:
    """Answer states of every model, by part and role, at evenly spaced layers.

    Args:
        roles: Roles whose states are read, by part.
    """
    rows = {part: each.encoded(ctx.tokenizer, "donors") for part, each in prompts.items()}
    states: dict[str, dict[Role, DonorStates]] = {part: {} for part in prompts}
    for role in ctx.models:
        with ctx.reading(role) as model:
            sites = evenly_spaced(find_sites(model).of("resid"), ctx.config.budget.depth_sites)
            for part in prompts:
                if role in roles[part]:
                    states[part][role] = read_states(model, rows[part], sites)
    return states


def norm_ratios(donors: Mapping[Role, DonorStates]) -> dict[str, tuple[float, ...]]:
    """Role to (site,) median ratio of state norms to the original's."""
    original = donors[Role.ORIGINAL]
    return {
        role: tuple(
            float(np.median((donor.norms(site) / original.norms(site))[donor.mask]))
            for site in donor.sites
        )
        for role, donor in donors.items()
    }


def patched_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PatchingPrompts,
    donors: Mapping[Role, DonorStates],
    norms: Mapping[str, Sequence[float]],
    progress: Progress,
) -> dict[Role, PatchedScores]:
    """Patch the states of every donor into a model.

    Where the norm ratio of a donor exceeds ``MAX_NORM_RATIO`` at a site, its states are rescaled
    to the original's norms there.

    Args:
        donors: States by role; the original's first.
        norms: As ``norm_ratios``.
    """
    states: dict[str, DonorStates] = {**donors}
    for role, donor in donors.items():
        off = [
            site
            for site, norm in zip(donor.sites, norms[role], strict=True)
            if not 1 / MAX_NORM_RATIO <= norm <= MAX_NORM_RATIO
        ]
        if off and role != Role.ORIGINAL:
            mismatched = DonorStates({site: donor.values[site] for site in off}, donor.mask)
            states[f"{role}, matched"] = mismatched.with_norms_of(donors[Role.ORIGINAL])
    receivers = prompts.encoded(tokenizer, "receivers")
    own = first_tokens(receivers)
    watch = sorted(set(own))
    right = np.searchsorted(watch, own)
    patched = score_patched(model, receivers, states, watch=watch, progress=progress)

    def contrast(by_site: Sequence[AnswerScores]) -> np.ndarray:
        return _rows_by_site(
            [entity_contrast(prompts.questions, scores.watched, right) for scores in by_site]
        )

    result = {}
    for role in donors:
        matched = patched.get(f"{role}, matched", {})
        unscaled = list(patched[role].values())
        scores = list((patched[role] | matched).values())
        result[role] = PatchedScores(
            _rows_by_site([each.greedy for each in scores]),
            contrast(scores),
            np.maximum(_rows_by_site([each.logprob for each in scores]), -1e4),
            contrast(unscaled) if matched else None,
        )
    return result


def _rows_by_site(by_site: Sequence[ArrayLike]) -> np.ndarray:
    """(row, site) table of (row,) scores a site."""
    return np.ascontiguousarray(np.array(by_site, dtype=np.float64).T)


__getattr__ = moved.names_of("audits.axes.causal_depth.state_transfer")
