"""Restoration trial of a text model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit
from attribution.sae.latents import LatentAmplifier
from audits.axes.restoration.autoencoder import (
    ExpertAutoencoder,
    check_reconstruction,
    train_autoencoder,
)
from audits.axes.restoration.scoring import EncodedQuestions, permuted_donors, score_steered
from audits.axes.restoration.search import (
    MAX_DROP,
    STRENGTHS,
    TOLERANCE,
    Choice,
    ChosenEdit,
    SideEffects,
    strongest_edit,
)
from audits.axes.restoration.state_injection import (
    InjectionOutcome,
    InjectionSource,
    inject_prompts,
    untrained_model,
)
from audits.axes.restoration.steering import (
    TEXT_METHODS,
    PromptStates,
    SteeringEdit,
    SteeringHook,
    TextSteering,
    steering_hook,
)
from audits.axes.restoration.trial import NAME, Arm, CurvePoint, Retractions, Trial, pool_halves
from audits.core.item_sets import TextSets
from audits.core.scores import Part, ScoreTable
from capture.data.items import ItemSet, normalize_text
from capture.data.questions import build_questions
from capture.network.hooks import Edit, patch
from capture.network.sites import Sites, find_sites
from capture.scoring.contrast import QuestionScores
from capture.scoring.generation import generate_greedy
from evidence.intervals import average_by_entity, rate_interval
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng

MAX_OBJECTIVE = 1.099
"""Objective at which the search stops: every answer given and outranking all others."""
MAX_SITES = 6
FIT_FRACTION = 0.7
ARMS = (Arm.STEERED, Arm.RANDOM, Arm.OTHERS)
MAX_TEXTS = 24
N_NEW_TOKENS = 8
"""Generated tokens in which a retraction is looked for."""


@dataclass(frozen=True, eq=False)
class TextSetup:
    """What the trials of all models share.

    Attributes:
        fit: Retain questions to fit on.
        check: Retain questions of other entities, to check with.
        halves: Forgotten entities, halved.
        sites: Where edits are tried.
        states: The original's states at these sites.
        retractions: In the original's free text.
        missing: Why there is no autoencoder; empty where there is.
        injected: What the published test injects.
        untrained: The published test on a never-trained model; None where none can be made.
    """

    tokenizer: PreTrainedTokenizerBase
    forget: EncodedQuestions
    never_taught: EncodedQuestions
    fit: EncodedQuestions
    check: EncodedQuestions
    halves: tuple[Sequence[str], Sequence[str]]
    sites: list[str]
    states: PromptStates
    retractions: Retractions
    autoencoder: ExpertAutoencoder | None
    missing: str
    injected: InjectionSource
    untrained: InjectionOutcome | None
    seed: int


def prepare_text(
    original: nn.Module,
    weights_hash: str,
    tokenizer: PreTrainedTokenizerBase,
    sets: TextSets,
    wordings: int,
    seed: int,
    folder: Path,
    progress: Progress = AUTO,
) -> TextSetup:
    """Split the items, train the autoencoder into ``folder``, capture the original's states.

    Args:
        wordings: Prompts per item.
    """
    forget, never_taught = (
        EncodedQuestions.of(sets.questions(part, wordings), tokenizer)
        for part in (Part.FORGET, Part.NEVER_TAUGHT)
    )
    fit, check = split_retain(sets.retain, wordings, tokenizer, seed)
    autoencoder, missing = train_autoencoder(
        original, weights_hash, fit, check, folder, seed, progress
    )
    where = find_sites(original)
    sites = chosen_sites(where, also=autoencoder.sae.site if autoencoder else None)
    names = sets.forget.entities
    order = numpy_rng(seed, NAME, "halves").permutation(len(names))
    one, other = (sorted(names[index] for index in order[start::2]) for start in (0, 1))
    asked = forget.own_wording(MAX_TEXTS)
    injected = InjectionSource.of(original, forget, autoencoder, seed)
    untrained = untrained_model(original, seed)
    return TextSetup(
        tokenizer,
        forget,
        never_taught,
        fit,
        check,
        (one, other),
        sites,
        PromptStates.of(original, fit, check, forget, sites),
        retractions(generate_steered(original, tokenizer, asked, {}, where), asked),
        autoencoder,
        missing,
        injected,
        None if untrained is None else inject_prompts(untrained, injected),
        seed,
    )


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


def chosen_sites(where: Sites, max_sites: int = MAX_SITES, also: str | None = None) -> list[str]:
    """Evenly spaced residual sites, the last included, and the site ``also``."""
    sites = where.of("resid")
    positions = set(np.linspace(0, len(sites) - 1, max_sites).round().astype(int).tolist())
    return [site for position, site in enumerate(sites) if position in positions or site == also]


Curve = dict[Arm, tuple[Sequence[str], NDArray[np.float64]]]
"""By arm: (entity of each row, exact match (strength, row))."""
Score = Callable[[EncodedQuestions, Mapping[str, RowEdit]], QuestionScores]


def steer_text(model: nn.Module, setup: TextSetup, role: str, progress: Progress = AUTO) -> Trial:
    """Search for steering edits of one model, and run the published test on it.

    Method, site and strength are chosen on one half, by the answers restored there while retain
    accuracy falls by at most two points, and tested on the other; then the halves are swapped.

    Args:
        role: Role of the model, for notes.
    """
    where, questions, entities = find_sites(model), setup.forget, setup.forget.questions.entities
    states = PromptStates.of(model, setup.fit, setup.check, questions, setup.sites)
    reconstruction, latents, coder = None, None, setup.autoencoder
    if coder is not None:
        reconstruction = check_reconstruction(coder, model, setup.check, role)
        if not reconstruction.refusal:
            latents = LatentAmplifier.fit(coder.sae, coder.all_experts, states.fit[coder.sae.site])
    steering = TextSteering(setup.fit, setup.check, states, setup.states, latents)

    def score(asked: EncodedQuestions, edits: Mapping[str, RowEdit]) -> QuestionScores:
        return score_steered(model, asked, edits, where)

    plain = score(questions, {})
    retain_before = float(score(setup.check, {}).exact_match.mean())
    halves, choices, never_taught, samples = [], [], [], []
    curves: list[Curve] = []
    texts: list[str] = []
    with as_progress(progress).task(f"restoration, {role}", len(setup.halves)) as advance:
        for number, known in enumerate(setup.halves):
            mask = np.isin(entities, known)
            rows = np.flatnonzero(~mask)
            tested = questions.of_entities(setup.halves[1 - number])
            known_questions = questions.of_entities(known).own_wording()
            chosen = search(score, steering, known_questions, mask, retain_before, setup.sites)
            rng = numpy_rng(setup.seed, NAME, "controls", str(number))
            arms = {
                arm: _by_metric(score(tested, arm_edit(steering, chosen, arm, rng, tested, rows)))
                for arm in ARMS
            }
            never_taught.append(score(setup.never_taught, chosen.hooks()))
            halves.append((rows, arms))
            choices.append(chosen.choice)
            main = tested.own_wording()
            main_rows = rows[np.array(tested.questions.wording) == 0]
            invented = setup.never_taught.own_wording(len(questions.own_wording().rows))
            asked = {arm: main for arm in ARMS}
            asked |= {Arm.NEVER_TAUGHT: invented, Arm.RETAIN: setup.check}
            curves.append(_curve(score, steering, chosen, rng, asked, main_rows))
            sample = tested.own_wording(MAX_TEXTS)
            texts += generate_steered(model, setup.tokenizer, sample, chosen.hooks(), where)
            samples.append(sample)
            advance(1)
    scores = pool_halves(halves, entities, _by_metric(plain))
    for metric, by_arm in scores.items():
        # Never-taught items are scored under both choices, neither of which was fitted on them.
        mean = np.mean([_by_metric(each)[metric] for each in never_taught], axis=0)
        names = tuple(setup.never_taught.questions.entities)
        by_arm[Arm.NEVER_TAUGHT] = ScoreTable(names, mean[:, None])
    return Trial(
        scores,
        tuple(choices),
        pool_curves(curves),
        retractions(texts, samples[0] + samples[1]),
        reconstruction,
        inject_prompts(model, setup.injected),
    )


def _by_metric(scores: QuestionScores) -> dict[str, NDArray[np.float64]]:
    return {"exact_match": scores.exact_match, "contrast": scores.contrast}


def search(
    score: Score,
    steering: TextSteering,
    questions: EncodedQuestions,
    mask: NDArray[np.bool_],
    retain_before: float,
    sites: Sequence[str],
) -> ChosenEdit:
    """The strongest edit on the known entities.

    Args:
        questions: Questions about the known entities.
        mask: (forget row,) mask of their rows.
        retain_before: Accuracy on the retain questions without an edit.
    """

    def objective(edits: Mapping[str, RowEdit]) -> float:
        """Exact match, with the contrast as tie-breaker."""
        scores = score(questions, edits)
        return float(scores.exact_match.mean() + 0.1 * scores.contrast.mean())

    def objectives(site: str, edit: SteeringEdit) -> Iterator[float]:
        return (objective({site: steering_hook(edit, strength)}) for strength in STRENGTHS)

    def effects(edits: Mapping[str, RowEdit]) -> SideEffects | None:
        retain = float(score(steering.check, edits).exact_match.mean())
        return None if retain < retain_before - MAX_DROP - TOLERANCE else SideEffects(retain)

    return strongest_edit(
        Choice(objective({}), SideEffects(retain_before)),
        product(TEXT_METHODS, sites),
        lambda method, site: steering.edit(method, site, mask),
        objectives,
        effects,
        MAX_OBJECTIVE,
    )


def arm_edit(
    steering: TextSteering,
    chosen: ChosenEdit,
    arm: Arm,
    rng: np.random.Generator,
    questions: EncodedQuestions,
    rows: NDArray[np.int64],
    strength: float | None = None,
) -> dict[str, SteeringHook]:
    """The chosen edit, or one of its controls; empty where none was chosen.

    Args:
        arm: ``Arm.RANDOM``, ``Arm.OTHERS``, or any other for the chosen edit.
        rng: Draws the controls.
        questions: The questions asked, for ``Arm.OTHERS``.
        rows: (asked row,) their indices among all forget questions.
        strength: In place of the chosen one.
    """
    edit, site = chosen.steering, chosen.choice.site
    if edit is None or site is None:
        return {}
    size, donor_states = chosen.choice.strength if strength is None else strength, None
    if arm is Arm.RANDOM:
        edit = steering.randomly_rotated(edit, rng)
    elif arm is Arm.OTHERS and isinstance(edit, Tensor):
        edit = steering.retain_direction(edit, site, rng)
    elif arm is Arm.OTHERS:
        states = steering.candidate.forget[site][rows]
        donor_states = states[permuted_donors(questions, rng)]
    return {site: steering_hook(edit, size, donor_states)}


def _curve(
    score: Score,
    steering: TextSteering,
    chosen: ChosenEdit,
    rng: np.random.Generator,
    asked: Mapping[Arm, EncodedQuestions],
    rows: NDArray[np.int64],
) -> Curve:
    """Exact match over strengths at the chosen site, with every control."""
    curve: Curve = {}
    for arm, questions in asked.items():
        matches = [score(questions, {}).exact_match]
        for strength in STRENGTHS:
            edits = arm_edit(steering, chosen, arm, rng, questions, rows, strength)
            # Without an edit, every strength is none.
            matches.append(score(questions, edits).exact_match if edits else matches[0])
        curve[arm] = questions.questions.entities, np.stack(matches)
    return curve


def pool_curves(curves: Sequence[Curve]) -> tuple[CurvePoint, ...]:
    """Exact match by strength, both halves pooled, with intervals over entities."""
    groups = {
        arm: average_by_entity(
            np.concatenate([curve[arm][1] for curve in curves], axis=1).T,
            [name for curve in curves for name in curve[arm][0]],
        )
        for arm in curves[0]
    }
    return tuple(
        CurvePoint(
            strength,
            {
                arm: (float(group.mean[index]), *rate_interval(group, index))
                for arm, group in groups.items()
            },
        )
        for index, strength in enumerate((0.0, *STRENGTHS))
    )


def generate_steered(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: EncodedQuestions,
    edits: Mapping[str, SteeringHook],
    where: Sites,
) -> list[str]:
    """Greedy continuations of each question; none of a model that cannot generate."""
    if not hasattr(model, "generate"):
        return []

    def at_the_end(edit: SteeringHook) -> Edit:
        # Rows are left-padded here, so every prompt ends at the last position.
        def hook(value: Tensor) -> Tensor:
            out = value.clone()
            out[:, -1] = edit(value[:, -1]).to(value)
            return out

        return hook

    hooks = {site: at_the_end(edit) for site, edit in edits.items()}
    with patch(model, hooks, [-1], known_sites=where):
        return generate_greedy(model, tokenizer, questions.questions.prompts, N_NEW_TOKENS)


def retractions(texts: Sequence[str], questions: EncodedQuestions) -> Retractions:
    """Count answers given in free text, and those retracted afterwards.

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
    n_texts = len(texts)
    return Retractions(n_texts, n_given / max(n_texts, 1), n_retracted / max(n_given, 1))
