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
from audits.axes.restoration.text_steering import (
    STEERING_METHODS,
    EncodedQuestions,
    SteeringFit,
    permuted_donors,
    prompt_end_states,
    score_steered,
    steering_hook,
)
from audits.core.context import AuditedModel
from capture.data.items import ItemSet, normalize_text
from capture.data.questions import build_questions
from capture.network.hooks import patch
from capture.network.sites import Sites, find_sites
from capture.scoring.contrast import QuestionScores
from capture.scoring.generation import generate_greedy
from evidence.intervals import average_by_entity, rate_interval
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


STRENGTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
Curve = dict[str, tuple[list[str], np.ndarray]]
"""By arm: (entity of each row, exact match (strength, row))."""


def pool_curves(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Exact match by strength, both halves pooled, with intervals over entities.

    Returns:
        One dict a strength: ``strength``, and [share, low, high] of the edit, each control,
        never-taught and retain questions.
    """
    table: list[dict[str, Any]] = [{"strength": strength} for strength in (0.0, *STRENGTHS)]
    for arm in curves[0]:
        names = [name for curve in curves for name in curve[arm][0]]
        matches = np.concatenate([curve[arm][1] for curve in curves], axis=1)
        group = average_by_entity(matches.T, names)
        for index, row in enumerate(table):
            low, high = rate_interval(group, index)
            row[arm] = [float(group.mean[index]), low, high]
    return table


def chosen_sites(where: Sites, max_sites: int = MAX_SITES, also: str | None = None) -> list[str]:
    """Evenly spaced residual sites, the last included, and the site ``also``."""
    sites = where.of("resid")
    positions = set(np.linspace(0, len(sites) - 1, max_sites).round().astype(int).tolist())
    return [site for position, site in enumerate(sites) if position in positions or site == also]


def split_retain(
    retain: ItemSet, wordings: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[EncodedQuestions, EncodedQuestions]:
    """Retain questions to fit on, and questions of other entities to check with."""
    names = retain.entities
    order = numpy_rng(seed, NAME, "retain").permutation(len(names))
    cut = max(1, int(FIT_FRACTION * len(names)))
    parts = ([names[index] for index in order[:cut]], [names[index] for index in order[cut:]])
    fit, check = (
        EncodedQuestions.of(build_questions(retain.of_entities(part), count), tokenizer)
        for part, count in zip(parts, (wordings, 1), strict=True)
    )
    return fit, check


def restore(
    original: AuditedModel,
    audited: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    wordings: int,
    seed: int,
    *,
    autoencoder: AnswerAutoencoder | None = None,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Search for steering edits of ``audited``, every forgotten entity tested once; JSON-ready.

    The forgotten entities are halved. Method, site and strength are chosen on one half, by the
    answers restored there while retain accuracy falls by at most two points, and tested on the
    other; then the halves are swapped.

    Args:
        audited: The model to steer.
        wordings: Prompts per item.
        seed: Of halves and controls.
        autoencoder: Autoencoder of the original, for the method that amplifies its latents; refused
            where it does not reconstruct this model's states.

    Returns:
        ``entities`` and ``never_entities`` (row,); ``plain``, ``steered``, ``random`` and
        ``others``: ``said`` and ``contrast`` (row,) of the forgotten; ``never``: the same of
        never-taught items, steered; ``choices``, one a half; ``curve``: as ``pool_curves``, for
        items' main prompts; ``generation``: retractions when steered, and of the unsteered
        original; ``autoencoder``: its ``site``, ``fvu`` and why it was ``refused``, if it was.
    """
    questions = EncodedQuestions.of(build_questions(forget, wordings), tokenizer)
    never_questions = EncodedQuestions.of(build_questions(never_taught, wordings), tokenizer)
    fit, check = split_retain(retain, wordings, tokenizer, seed)
    with original.loaded(device) as model:
        sites = chosen_sites(find_sites(model), also=autoencoder and autoencoder.sae.site)
        original_fit, original_check, original_forget = (
            prompt_end_states(model, part, sites) for part in (fit, check, questions)
        )
        original_texts = _generate(
            model, tokenizer, None, questions.own_wording(MAX_TEXTS), find_sites(model)
        )
    names = forget.entities
    order = numpy_rng(seed, NAME, "halves").permutation(len(names))
    halves = [sorted(names[index] for index in order[start::2]) for start in (0, 1)]
    entities = np.array(questions.questions.entities)
    tables = {arm: np.zeros((2, len(entities))) for arm in ARMS}
    result: dict[str, Any] = {
        "entities": questions.questions.entities,
        "never_entities": never_questions.questions.entities,
        "choices": [],
    }
    never_taught_scores, texts, generated_for = [], [], []
    curves: list[Curve] = []
    with (
        audited.loaded(device) as model,
        progress.task(f"restoration, {audited.role}", len(halves)) as advance,
    ):
        where = find_sites(model)
        fit_states, check_states, forget_states = (
            prompt_end_states(model, part, sites) for part in (fit, check, questions)
        )
        fitted = SteeringFit(
            fit,
            check,
            candidate_states=_by_site(fit_states, check_states),
            original_states=_by_site(original_fit, original_check),
            forget_states=_by_site(forget_states, original_forget),
        )
        result["autoencoder"] = {}
        if autoencoder is not None:
            fvu, refused = check_reconstruction(autoencoder, model, check, audited.role)
            result["autoencoder"] = {
                "site": autoencoder.sae.site,
                "fvu": fvu if np.isfinite(fvu) else None,
                "refused": refused,
            }
            if not refused:
                fitted.latents = LatentAmplifier.fit(
                    autoencoder.sae, autoencoder.all_experts, fit_states[autoencoder.sae.site]
                )
        plain = score_steered(model, questions, {}, where)
        result["plain"] = _as_lists(plain.exact_match, plain.contrast)
        base = float(score_steered(model, check, {}, where).exact_match.mean())
        result["retain_before"] = base
        for number, half in enumerate(halves):
            mask = np.isin(entities, half)
            rows = np.flatnonzero(~mask)
            tested = questions.of_entities(halves[1 - number])
            asked_first = questions.of_entities(half).own_wording()
            choice = _search(model, fitted, asked_first, mask, base, where, sites)
            rng = numpy_rng(seed, NAME, "controls", str(number))
            chosen = ChosenEdit(fitted, choice, mask, rng)
            by_arm = _try(model, chosen, tested, rows, never_questions, where)
            for arm, table in tables.items():
                table[:, rows] = by_arm[arm].exact_match, by_arm[arm].contrast
            never_taught_scores.append(by_arm["never"])
            result["choices"].append(choice)
            is_main = np.array(tested.questions.wording) == 0
            curves.append(
                _curve(
                    model,
                    chosen,
                    tested.own_wording(),
                    rows[is_main],
                    never_questions.own_wording(len(questions.own_wording().rows)),
                    where,
                )
            )
            sample = tested.own_wording(MAX_TEXTS)
            texts += _generate(model, tokenizer, chosen, sample, where)
            generated_for.append(sample)
            advance(1)
    for arm, (match, contrast) in tables.items():
        result[arm] = _as_lists(match, contrast)
    result["curve"] = pool_curves(curves)
    # Never-taught items are scored under both choices, neither of which was fitted on them.
    result["never"] = _as_lists(
        np.mean([scores.exact_match for scores in never_taught_scores], axis=0),
        np.mean([scores.contrast for scores in never_taught_scores], axis=0),
    )
    result["generation"] = {
        "steered": retractions(texts, generated_for[0] + generated_for[1]),
        "original": retractions(original_texts, questions.own_wording(MAX_TEXTS)),
    }
    return result


def _by_site(first: dict, second: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {site: (first[site], second[site]) for site in first}


def _as_lists(match: np.ndarray, contrast: np.ndarray) -> dict[str, list[float]]:
    return {"said": match.tolist(), "contrast": contrast.tolist()}


def _objective(scores: QuestionScores) -> float:
    """The search objective: exact match, with the contrast as tie-breaker."""
    return float(scores.exact_match.mean() + 0.1 * scores.contrast.mean())


def _search(
    model: nn.Module,
    fitted: SteeringFit,
    questions: EncodedQuestions,
    mask: np.ndarray,
    base: float,
    where: Sites,
    sites: Sequence[str],
) -> dict[str, Any]:
    """The method, site and strength with the highest objective on the known entities."""
    unsteered = score_steered(model, questions, {}, where)
    best: dict[str, Any] = {"route": None, "site": None, "strength": 0.0}
    best |= {"retain": float(base), "worth": _objective(unsteered)}
    for method in STEERING_METHODS:
        for site in sites:
            steering = fitted.steering_edit(method, site, mask)
            if steering is None or best["worth"] >= MAX_OBJECTIVE:
                continue
            for strength in STRENGTHS:
                edits = {site: steering_hook(steering, strength)}
                worth = _objective(score_steered(model, questions, edits, where))
                if worth <= best["worth"] + 1e-9:
                    continue
                retain = score_steered(model, fitted.check, edits, where)
                retain_match = float(retain.exact_match.mean())
                if retain_match < base - MAX_RETAIN_DROP - 1e-9:
                    break  # stronger steering costs more
                best = {"route": method, "site": site, "strength": strength}
                best |= {"retain": retain_match, "worth": worth}
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
        method, site = self.choice["route"], self.choice["site"]
        steering = None if method is None else self.fitted.steering_edit(method, site, self.known)
        if steering is None:
            return {}
        size = self.choice["strength"] if strength is None else strength
        if arm == "random":
            return {site: steering_hook(self.fitted.randomly_rotated(steering, self.rng), size)}
        if arm == "others" and isinstance(steering, Tensor):
            return {
                site: steering_hook(self.fitted.retain_direction(steering, site, self.rng), size)
            }
        if arm == "others":
            assert questions is not None and rows is not None
            states = self.fitted.forget_states[site][0][rows]
            return {
                site: steering_hook(steering, size, states[permuted_donors(questions, self.rng)])
            }
        return {site: steering_hook(steering, size)}


def _try(
    model: nn.Module,
    chosen: ChosenEdit,
    questions: EncodedQuestions,
    rows: np.ndarray,
    never_taught: EncodedQuestions,
    where: Sites,
) -> dict[str, QuestionScores]:
    """The edit and its controls on forgotten, and the edit on never-taught, questions."""
    scores = {
        arm: score_steered(model, questions, chosen.edits(arm, questions, rows), where)
        for arm in ARMS
    }
    return scores | {"never": score_steered(model, never_taught, chosen.edits(), where)}


def _curve(
    model: nn.Module,
    chosen: ChosenEdit,
    questions: EncodedQuestions,
    rows: np.ndarray,
    never_taught: EncodedQuestions,
    where: Sites,
) -> Curve:
    """Exact match over strengths at the chosen site, with every control."""
    asks = dict.fromkeys(ARMS, questions)
    asks |= {"never": never_taught, "retain": chosen.fitted.check}
    curve: Curve = {}
    for part, part_questions in asks.items():
        arm = part if part in ARMS else "steered"
        matches: list[np.ndarray] = []
        for strength in (0.0, *STRENGTHS):
            if matches and chosen.choice["route"] is None:
                matches.append(matches[0])  # no edit at any strength
                continue
            edits = chosen.edits(arm, questions, rows, strength) if strength else {}
            matches.append(score_steered(model, part_questions, edits, where).exact_match)
        curve[part] = part_questions.questions.entities, np.stack(matches)
    return curve


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chosen: ChosenEdit | None,
    questions: EncodedQuestions,
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
        return generate_greedy(model, tokenizer, questions.questions.prompts, N_NEW_TOKENS)


def retractions(texts: Sequence[str], questions: EncodedQuestions) -> dict[str, float]:
    """Rate of answers given in free text, and of those retracted afterwards.

    An answer is retracted when another answer of the same relation follows within a few tokens.
    """
    items = [questions.questions.items[index] for index in questions.questions.item_index]
    offered: dict[str, set[str]] = {}
    for item in items:
        offered.setdefault(item.relation, set()).add(normalize_text(item.answer))
    n_given, n_retracted = 0, 0
    for text, item in zip(texts, items, strict=False):
        words, answer = normalize_text(text), normalize_text(item.answer)
        if words.startswith(answer):
            n_given += 1
            remainder = words[len(answer) :]
            n_retracted += any(other in remainder for other in offered[item.relation] - {answer})
    return {
        "prompts": len(texts),
        "said": n_given / max(len(texts), 1),
        "taken_back": n_retracted / max(n_given, 1),
    }
