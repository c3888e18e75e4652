"""Patching prompts, and cross-model activation patching of answer states.

Donor states at the last prompt token are patched into a receiver that reads the same question
about an invented entity. An answer about the first entity can only come from the donor states,
because the receiver prompt names another one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from attribution.patching.cross_model import DonorStates, read_states, score_patched
from audits.core.context import AuditedModel
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, skip_joining_space
from capture.network.sites import find_sites
from capture.scoring.answers import AnswerScores
from capture.scoring.contrast import entity_contrast, first_tokens
from evidence.progress import Progress

# Donor states whose norms are off by more than this factor are rescaled.
MAX_NORM_RATIO = 2.0


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
    for row, (index, wording) in enumerate(
        zip(never_taught.item_index, never_taught.wording, strict=True)
    ):
        relation = never_taught.items[index].relation
        by_form[relation, wording].append(row)
        by_form[relation, None].append(row)
    turns: dict[Any, int] = defaultdict(int)
    receivers: list[str | None] = []
    for index, wording in zip(questions.item_index, questions.wording, strict=True):
        item = questions.items[index]
        form = (item.relation, wording)
        form = form if form in by_form else (item.relation, None)
        others = [
            row
            for row in by_form.get(form, ())
            if never_taught.items[never_taught.item_index[row]].entity != item.entity
        ]
        # Receivers take turns, so that no single invented entity biases many questions. They
        # are in the order of the items they mirror, so one step further is another entity.
        turns[form] += 1
        receivers.append(
            never_taught.prompts[others[turns[form] % len(others)]] if others else None
        )
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


def choose_sites(names: Sequence[str], max_sites: int) -> list[str]:
    """At most ``max_sites`` names, evenly spaced, the first and the last included."""
    positions = np.linspace(0, len(names) - 1, min(max_sites, len(names)))
    chosen: list[int] = positions.round().astype(int).tolist()
    return [names[position] for position in chosen]


def transfer_states(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, PatchingPrompts],
    roles: Mapping[str, Sequence[str]],
    max_sites: int,
    *,
    receiver: str = "original",
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Read the states of every model and patch them into one model; JSON-ready.

    Args:
        models: Models by role, "original" among them.
        prompts: Patching prompts by part.
        roles: Roles whose states are read, by part; "original" first where it is read.
        max_sites: Maximum number of layers patched.
        receiver: Role of the model that is patched.

    Returns:
        ``sites``; ``norms``: by role (site,) median ratio of state norms to the original's, on
        the first part; ``scores``: by part and role, (row, site) tables ``said`` (exact match),
        ``told`` (contrast) and ``logprob`` (nats, whole answer). Where the norm ratio of a role
        exceeds ``MAX_NORM_RATIO`` at a site, its states are rescaled to the original's norms
        there, and ``raw`` holds the tables without rescaling.
    """
    rows = {name: prompt_set.encoded(tokenizer, "donors") for name, prompt_set in prompts.items()}
    states: dict[str, dict[str, DonorStates]] = {name: {} for name in prompts}
    sites: list[str] = []
    for role, audited in models.items():
        parts = [name for name in prompts if role in roles[name]]
        if not parts:
            continue
        with audited.loaded(device) as model:
            sites = choose_sites(find_sites(model).of("resid"), max_sites)
            for name in parts:
                states[name][role] = read_states(model, rows[name], sites)
    lead = next(iter(prompts))
    norms = {
        role: [
            float(np.median((donor.norms(site) / original.norms(site))[donor.mask]))
            for site in sites
        ]
        for original in [states[lead]["original"]]
        for role, donor in states[lead].items()
    }
    scores: dict[str, dict[str, Any]] = {}
    with models[receiver].loaded(device) as model:
        for name, prompt_set in prompts.items():
            donors = dict(states[name])
            for role in [donor_role for donor_role in donors if donor_role != "original"]:
                off = _off(norms.get(role, ()), sites)
                if off and "original" in donors:
                    mismatched = DonorStates(
                        {site: donors[role].values[site] for site in off}, donors[role].mask
                    )
                    donors[f"{role}, matched"] = mismatched.with_norms_of(donors["original"])
            receivers = prompt_set.encoded(tokenizer, "receivers")
            own = first_tokens(receivers)
            watch = sorted(set(own))
            right = np.searchsorted(watch, own)
            patched = score_patched(model, receivers, donors, watch=watch, progress=progress)
            scores[name] = {
                role: _tables(prompt_set.questions, patched, role, sites, right)
                for role in states[name]
            }
    return {"sites": sites, "norms": norms, "scores": scores}


def _off(norms: Sequence[float], sites: Sequence[str]) -> list[str]:
    return [
        site
        for site, norm in zip(sites, norms, strict=False)
        if not 1 / MAX_NORM_RATIO <= norm <= MAX_NORM_RATIO
    ]


def _tables(
    questions: Questions,
    patched: Mapping[str, Mapping[str, AnswerScores]],
    role: str,
    sites: Sequence[str],
    right: np.ndarray,
) -> dict[str, Any]:
    """The tables of one role, rescaled where states were rescaled."""
    matched = patched.get(f"{role}, matched", {})

    def tables(chosen: Mapping[str, AnswerScores]) -> dict[str, Any]:
        site_scores = [chosen[site] for site in sites]
        contrast = [entity_contrast(questions, scores.watched, right) for scores in site_scores]
        logprob = np.maximum([scores.logprob for scores in site_scores], -1e4)
        return {
            "said": np.array([scores.greedy for scores in site_scores], float).T.tolist(),
            "told": np.array(contrast).T.tolist(),
            "logprob": logprob.T.tolist(),
        }

    result = tables({**patched[role], **matched})
    return result | ({"raw": tables(patched[role])} if matched else {})
