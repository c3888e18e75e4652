"""Restoration trial of one model: choose an edit on half of the entities, test on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit
from attribution.sae.latents import LatentAmplifier
from audits.axes.restoration.autoencoder import AnswerAutoencoder, check_reconstruction
from audits.axes.restoration.curve import STRENGTHS, Curve, pool_curves
from audits.axes.restoration.text_steering import (
    STEERING_METHODS,
    EncodedQuestions,
    Heard,
    SteeringFit,
    permuted_donors,
    prompt_end_states,
    score_steered,
    steering_hook,
)
from audits.core.subjects import AuditedModel
from capture.data.items import ItemSet, normalize_text
from capture.data.questions import build_questions
from capture.network.hooks import patch
from capture.network.sites import Sites, find_sites
from capture.scoring.answers import generate_greedy
from evidence.progress import Progress
from evidence.seeds import numpy_rng

NAME = "restoration"
MAX_OBJECTIVE = 1.099
"""Objective at which the search stops: every answer given and outranking all others."""
MAX_RETAIN_DROP = 0.02
"""Maximum fall of retain accuracy under the edit."""
MAX_SITES = 6
FIT_FRACTION = 0.7
ARMS = ("steered", "random", "others")
"""The edit; a random edit of equal size; one from other items' states or entities."""
MAX_TEXTS = 24
N_NEW_TOKENS = 8
"""Generated tokens in which a retraction is looked for."""


def chosen_sites(
    where: Sites, max_sites: int = MAX_SITES, also: str | None = None
) -> list[str]:
    """Evenly spaced residual sites, the last included, and the site ``also``."""
    sites = where.of("resid")
    places = set(np.linspace(0, len(sites) - 1, max_sites).round().astype(int).tolist())
    return [site for place, site in enumerate(sites) if place in places or site == also]


def split_retain(
    retain: ItemSet, wordings: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[EncodedQuestions, EncodedQuestions]:
    """Retain questions to fit on, and questions of other entities to check with."""
    names = retain.entities
    order = numpy_rng(seed, NAME, "retain").permutation(len(names))
    cut = max(1, int(FIT_FRACTION * len(names)))
    parts = ([names[at] for at in order[:cut]], [names[at] for at in order[cut:]])
    fit, check = (
        EncodedQuestions.of(build_questions(retain.of_entities(part), count), tokenizer)
        for part, count in zip(parts, (wordings, 1), strict=True)
    )
    return fit, check


def restore(
    original: AuditedModel,
    subject: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    wordings: int,
    seed: int,
    *,
    autoencoder: AnswerAutoencoder | None = None,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Search for steering edits of ``subject``, every forgotten entity tested once; JSON-ready.

    The forgotten entities are halved. Method, site and strength are chosen on one half, by the
    answers restored there while retain accuracy falls by at most two points, and tested on the
    other; then the halves are swapped.

    Args:
        subject: The model to steer.
        wordings: Prompts per item.
        seed: Of halves and controls.
        autoencoder: Autoencoder of the original, for the method that amplifies its latents; refused
            where it does not reconstruct this model's states.

    Returns:
        ``entities`` and ``never_entities`` (row,); ``plain``, ``steered``, ``random`` and
        ``others``: ``said`` and ``contrast`` (row,) of the forgotten; ``never``: the same of
        never-taught items, steered; ``choices``, one a half; ``curve``: as ``pooled``, for
        items' main prompts; ``generation``: retractions when steered, and of the unsteered
        original; ``autoencoder``: its ``site``, ``fvu`` and why it was ``refused``, if it was.
    """
    asked = EncodedQuestions.of(build_questions(forget, wordings), tokenizer)
    unknown = EncodedQuestions.of(build_questions(never, wordings), tokenizer)
    fit, check = split_retain(retain, wordings, tokenizer, seed)
    with original.loaded(device) as model:
        sites = chosen_sites(
            find_sites(model), also=autoencoder and autoencoder.sae.site
        )
        first = [prompt_end_states(model, each, sites) for each in (fit, check, asked)]
        before = _generate(
            model, tokenizer, None, asked.own_wording(MAX_TEXTS), find_sites(model)
        )
    names = forget.entities
    order = numpy_rng(seed, NAME, "halves").permutation(len(names))
    halves = [sorted(names[at] for at in order[start::2]) for start in (0, 1)]
    entities = np.array(asked.questions.entities)
    tables = {what: np.zeros((2, len(entities))) for what in ARMS}
    result: dict[str, Any] = {
        "entities": asked.questions.entities,
        "never_entities": unknown.questions.entities,
        "choices": [],
    }
    never_heard, texts, spoken = [], [], []
    curves: list[Curve] = []
    with (
        subject.loaded(device) as model,
        progress.task(f"restoration, {subject.role}", len(halves)) as advance,
    ):
        where = find_sites(model)
        own = [prompt_end_states(model, each, sites) for each in (fit, check, asked)]
        fitted = SteeringFit(
            fit,
            check,
            {site: (own[0][site], own[1][site]) for site in sites},
            {site: (first[0][site], first[1][site]) for site in sites},
            {site: (own[2][site], first[2][site]) for site in sites},
        )
        result["autoencoder"] = {}
        if autoencoder is not None:
            fvu, refused = check_reconstruction(autoencoder, model, check, subject.role)
            result["autoencoder"] = {
                "site": autoencoder.sae.site,
                "fvu": fvu if np.isfinite(fvu) else None,
                "refused": refused,
            }
            if not refused:
                fitted.latents = LatentAmplifier.fit(
                    autoencoder.sae,
                    autoencoder.all_experts,
                    own[0][autoencoder.sae.site],
                )
        result["plain"] = _plain(score_steered(model, asked, {}, where))
        base = float(score_steered(model, check, {}, where).said.mean())
        result["retain_before"] = base
        for number, half in enumerate(halves):
            known = np.isin(entities, half)
            rows = np.flatnonzero(~known)
            tested = asked.of_entities(halves[1 - number])
            asked_first = asked.of_entities(half).own_wording()
            choice = _search(model, fitted, asked_first, known, base, where, sites)
            rng = numpy_rng(seed, NAME, "controls", str(number))
            chosen = ChosenEdit(fitted, choice, known, rng)
            tried = _try(model, chosen, tested, rows, unknown, where)
            for what, table in tables.items():
                table[:, rows] = tried[what].said, tried[what].contrast
            never_heard.append(tried["never"])
            result["choices"].append(choice)
            mine = np.array(tested.questions.wording) == 0
            curves.append(
                _curve(
                    model,
                    chosen,
                    tested.own_wording(),
                    rows[mine],
                    unknown.own_wording(len(asked.own_wording().rows)),
                    where,
                )
            )
            some = tested.own_wording(MAX_TEXTS)
            texts += _generate(model, tokenizer, chosen, some, where)
            spoken.append(some)
            advance(1)
    for what, (said, contrast) in tables.items():
        result[what] = _plain(Heard(said, contrast))
    result["curve"] = pool_curves(curves)
    # Never-taught items are scored under both choices, neither of which was fitted on them.
    result["never"] = _plain(
        Heard(
            np.mean([each.said for each in never_heard], axis=0),
            np.mean([each.contrast for each in never_heard], axis=0),
        )
    )
    result["generation"] = {
        "steered": retractions(texts, spoken[0] + spoken[1]),
        "original": retractions(before, asked.own_wording(MAX_TEXTS)),
    }
    return result


def _plain(heard: Heard) -> dict[str, list[float]]:
    return {"said": heard.said.tolist(), "contrast": heard.contrast.tolist()}


def _objective(heard: Heard) -> float:
    """The search objective: exact match, with the contrast as tie-breaker."""
    return float(heard.said.mean() + 0.1 * heard.contrast.mean())


def _search(
    model: nn.Module,
    fitted: SteeringFit,
    asked: EncodedQuestions,
    known: np.ndarray,
    base: float,
    where: Sites,
    sites: Sequence[str],
) -> dict[str, Any]:
    """The method, site and strength with the highest objective on the known entities."""
    none = score_steered(model, asked, {}, where)
    best: dict[str, Any] = {"route": None, "site": None, "strength": 0.0}
    best |= {"retain": float(base), "worth": _objective(none)}
    for route in STEERING_METHODS:
        for site in sites:
            push = fitted.steering_edit(route, site, known)
            if push is None or best["worth"] >= MAX_OBJECTIVE:
                continue
            for strength in STRENGTHS:
                edits = {site: steering_hook(push, strength)}
                worth = _objective(score_steered(model, asked, edits, where))
                if worth <= best["worth"] + 1e-9:
                    continue
                retain = score_steered(model, fitted.check, edits, where)
                kept = float(retain.said.mean())
                if kept < base - MAX_RETAIN_DROP - 1e-9:
                    break  # stronger steering costs more
                best = {"route": route, "site": site, "strength": strength}
                best |= {"retain": kept, "worth": worth}
    return best


@dataclass(frozen=True)
class ChosenEdit:
    """A choice made on one half, ready to be applied to any question.

    Attributes:
        fitted: Where it comes from.
        choice: Method, site and strength.
        known: (forget row,) mask of the half it was made on.
        rng: Draws the controls.
    """

    fitted: SteeringFit
    choice: dict[str, Any]
    known: np.ndarray
    rng: np.random.Generator

    def edits(
        self,
        arm: str = "steered",
        questions: EncodedQuestions | None = None,
        rows=None,
        strength: float | None = None,
    ) -> dict[str, RowEdit]:
        """The chosen edit or one of its controls; empty where none was chosen.

        Args:
            arm: One of ``ARMS``.
            questions: The forget questions, for "others".
            rows: (asked row,) their indices among all forget questions.
            strength: In place of the chosen one.
        """
        route, site = self.choice["route"], self.choice["site"]
        push = (
            None
            if route is None
            else self.fitted.steering_edit(route, site, self.known)
        )
        if push is None:
            return {}
        size = self.choice["strength"] if strength is None else strength
        if arm == "random":
            return {
                site: steering_hook(self.fitted.randomly_rotated(push, self.rng), size)
            }
        if arm == "others" and isinstance(push, Tensor):
            return {
                site: steering_hook(
                    self.fitted.retain_direction(push, site, self.rng), size
                )
            }
        if arm == "others":
            assert questions is not None and rows is not None
            states = self.fitted.forget_states[site][0][rows]
            return {
                site: steering_hook(
                    push, size, states[permuted_donors(questions, self.rng)]
                )
            }
        return {site: steering_hook(push, size)}


def _try(
    model: nn.Module,
    chosen: ChosenEdit,
    asked: EncodedQuestions,
    rows: np.ndarray,
    unknown: EncodedQuestions,
    where: Sites,
) -> dict[str, Heard]:
    """The edit and its controls on forgotten, and the edit on never-taught, questions."""
    found = {
        what: score_steered(model, asked, chosen.edits(what, asked, rows), where)
        for what in ARMS
    }
    return found | {"never": score_steered(model, unknown, chosen.edits(), where)}


def _curve(
    model: nn.Module,
    chosen: ChosenEdit,
    asked: EncodedQuestions,
    rows: np.ndarray,
    unknown: EncodedQuestions,
    where: Sites,
) -> Curve:
    """Exact match over strengths at the chosen site, with every control."""
    asks = dict.fromkeys(ARMS, asked)
    asks |= {"never": unknown, "retain": chosen.fitted.check}
    found: Curve = {}
    for what, each in asks.items():
        of = what if what in ARMS else "steered"
        said: list[np.ndarray] = []
        for strength in (0.0, *STRENGTHS):
            if said and chosen.choice["route"] is None:
                said.append(said[0])  # no edit at any strength
                continue
            edits = chosen.edits(of, asked, rows, strength) if strength else {}
            said.append(score_steered(model, each, edits, where).said)
        found[what] = each.questions.entities, np.stack(said)
    return found


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chosen: ChosenEdit | None,
    asked: EncodedQuestions,
    where: Sites,
) -> list[str]:
    """Greedy continuations of each question, steered or not."""
    edits = chosen.edits() if chosen else {}
    if not hasattr(model, "generate"):
        return []

    def at_the_end(edit: RowEdit):
        # Rows are left-padded here, so every prompt ends at the last position.
        def hook(value: Tensor) -> Tensor:
            out = value.clone()
            out[:, -1] = edit(value[:, -1], np.arange(0)).to(value)
            return out

        return hook

    hooks = {site: at_the_end(edit) for site, edit in edits.items()}
    with patch(model, hooks, [-1], known_sites=where):
        return generate_greedy(model, tokenizer, asked.questions.prompts, N_NEW_TOKENS)


def retractions(texts: Sequence[str], questions: EncodedQuestions) -> dict[str, float]:
    """Rate of answers given in free text, and of those retracted afterwards.

    An answer is retracted when another answer of the same relation follows within a few tokens.
    """
    items = [questions.questions.items[at] for at in questions.questions.item_index]
    offered: dict[str, set[str]] = {}
    for item in items:
        offered.setdefault(item.relation, set()).add(normalize_text(item.answer))
    said, back = 0, 0
    for text, item in zip(texts, items, strict=False):
        words, answer = normalize_text(text), normalize_text(item.answer)
        if words.startswith(answer):
            said += 1
            rest = words[len(answer) :]
            back += any(other in rest for other in offered[item.relation] - {answer})
    return {
        "prompts": len(texts),
        "said": said / max(len(texts), 1),
        "taken_back": back / max(said, 1),
    }
