"""The published state-injection test, with the controls it lacks.

Wherever the true answer is a forgotten one, states of the original, for the same input, replace
the candidate's: a whole state at one place, and at the other places its coordinates along the
expert latents of that answer. The place of the whole state is the class token of an image, and
the last token of a prompt; the others are the patches, and the earlier tokens. The knowledge is
supplied from outside and selected by the true answer, so a restoration shows that the candidate's
later layers still read the original's representation, not that the candidate holds anything. The
test is reported and never votes; its arms show the contribution of each part.

The published encoding is linear, without bias or TopK. The decoding is not described; here the
change of the expert coordinates is decoded and added, so that the autoencoder's reconstruction
error is left in place.

Source: "Suppression or Deletion" (arXiv 2602.18505) and its public evaluation code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.patching.steering import RowEdit, score_edited
from attribution.sae.autoencoder import Sae
from attribution.sae.latents import decode_difference, draw_control_latents, match_norms
from audits.axes.restoration.autoencoder import (
    ExpertAutoencoder,
    autoencoder_site,
    first_patch,
    states_by_prompt,
)
from audits.axes.restoration.scoring import EncodedQuestions, named_as_class, permuted_donors
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import as_positions, find_image_sites, find_sites, restore_shape
from capture.network.structure import model_device
from capture.scoring.class_logits import image_states
from evidence.intervals import average_by_entity, rate_interval
from evidence.seeds import numpy_rng

ALPHAS = (1.0, 5.0, 10.0)
MIN_LOST = 0.1
"""Minimum share of answers lost for a restoration rate to be defined."""


@dataclass(frozen=True)
class ArmOutcome:
    """One arm of the test on one model.

    Attributes:
        share: (alpha,) share of the forgotten items answered.
        rate: (alpha,) share of the lost answers restored; None where too few were lost.
        best: The largest rate.
        interval: 95 % interval of the share at the best alpha.
    """

    share: tuple[float, ...]
    rate: tuple[float, ...] | None
    best: float | None
    interval: tuple[float, float]


@dataclass(frozen=True)
class InjectionOutcome:
    """The test on one model.

    Attributes:
        before: Share of the forgotten items answered without an injection.
    """

    before: float
    arms: dict[str, ArmOutcome]

    @property
    def main(self) -> ArmOutcome:
        """The published arm, or that of whole states where there is no autoencoder."""
        return self.arms.get(PUBLISHED) or self.arms[STATE]


def run_arms(
    arms: Mapping[str, Callable[[float], NDArray[np.float64]]],
    entities: Sequence[str],
    original: float,
    before: NDArray[np.float64],
) -> InjectionOutcome:
    """Every arm at all strengths.

    Args:
        arms: From an alpha to (row,) 1.0 where the forgotten answer is given.
        entities: (row,) entity of each.
        original: Share that the original answers.
        before: (row,) scores without an injection.
    """
    share = float(before.mean())
    lost = float(original - before.mean())
    outcomes: dict[str, ArmOutcome] = {}
    for arm, score in arms.items():
        hits = [score(alpha) for alpha in ALPHAS]
        said = tuple(float(each.mean()) for each in hits)
        rates = None if lost < MIN_LOST else tuple((each - share) / lost for each in said)
        interval = rate_interval(average_by_entity(hits[int(np.argmax(said))], list(entities)))
        outcomes[arm] = ArmOutcome(said, rates, None if rates is None else max(rates), interval)
    return InjectionOutcome(share, outcomes)


def inject(
    states: Tensor,
    donor: Tensor,
    sae: Sae | None,
    latents: NDArray[np.int64] | None,
    alpha: float,
    places: slice,
    whole: int | None,
    norm_of: NDArray[np.int64] | None = None,
) -> Tensor:
    """States (..., place, d) with another model's states injected.

    Args:
        donor: The other model's states, of the same shape.
        latents: Latents whose coordinates are injected; None for none.
        alpha: Strength; 1 replaces what is injected entirely.
        places: Where latents are injected.
        whole: The place where the whole state is injected; None for nowhere.
        norm_of: Latents whose change sets the norm of the change, place by place.
    """
    change = torch.zeros_like(states)
    if sae is not None and latents is not None:
        difference = donor[..., places, :] - states[..., places, :]
        step = decode_difference(sae, difference, latents)
        if norm_of is not None:
            step = match_norms(step, decode_difference(sae, difference, norm_of))
        change[..., places, :] = step
    if whole is not None:
        # The published test copies this state without decoding.
        change[..., whole, :] = donor[..., whole, :] - states[..., whole, :]
    return states + alpha * change


# Text

PUBLISHED, STATE = "as published", "state only"
RANDOM_LATENTS, OTHER_LATENTS = "random latents", "other answers' latents"
OTHER_STATES = "other items' states"
CONTROLS = (RANDOM_LATENTS, OTHER_LATENTS, OTHER_STATES)
"""Arms without information about the item: as many random latents, another answer's latents,
another item's states."""
ARMS = (PUBLISHED, STATE, "latents only", *CONTROLS)
UNTRAINED = "never-trained"


def untrained_model(original: nn.Module, seed: int) -> nn.Module | None:
    """A model of the same architecture with random, untrained weights.

    Returns:
        None where the model class cannot be made from a configuration.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = type(original)(original.config)
    except (TypeError, ValueError, AttributeError):
        return None
    return made.to(model_device(original)).eval()


@dataclass(frozen=True, eq=False)
class InjectionSource:
    """What is injected into every model.

    Attributes:
        questions: The forget questions; their true answers select the injection.
        site: Where it is injected.
        states: (row,) the original's states (position, d) of each prompt.
        original_share: Share of the questions that the original answers.
        autoencoder: Autoencoder of the original; without one, only whole states are injected. As
            published, its fit to the other models is not checked here.
        seed: Of random latents and permuted items.
    """

    questions: EncodedQuestions
    site: str
    states: list[NDArray[np.float32]]
    original_share: float
    autoencoder: ExpertAutoencoder | None
    seed: int

    @classmethod
    def of(
        cls,
        original: nn.Module,
        questions: EncodedQuestions,
        autoencoder: ExpertAutoencoder | None,
        seed: int,
    ) -> "InjectionSource":
        """Capture the original's states."""
        site = autoencoder_site(find_sites(original))
        states = states_by_prompt(original, questions.rows, site)
        said = _answered(original, questions, {}).mean()
        return cls(questions, site, states, said, autoencoder, seed)

    @property
    def mean_latents(self) -> float | None:
        """Mean number of latents per answer; None without an autoencoder."""
        if self.autoencoder is None:
            return None
        return float(np.mean([len(each) for each in self.autoencoder.experts.values()]))


def inject_prompts(model: nn.Module, source: InjectionSource) -> InjectionOutcome:
    """Run the test on one model."""

    def score(arm: str, alpha: float) -> NDArray[np.float64]:
        edits = {source.site: prompt_injection(arm, source, alpha)}
        return _answered(model, source.questions, edits)

    names = ARMS if source.autoencoder is not None else (STATE, OTHER_STATES)
    arms = {arm: partial(score, arm) for arm in names}
    before = _answered(model, source.questions, {})
    return run_arms(arms, source.questions.questions.entities, source.original_share, before)


def prompt_injection(arm: str, source: InjectionSource, alpha: float) -> RowEdit:
    """The edit of whole prompts (row, position, d) of one arm."""
    rng = numpy_rng(source.seed, "readout", arm)
    autoencoder = source.autoencoder
    classes = [str(name) for name in source.questions.classes]
    donors = list(range(len(classes)))
    if arm == OTHER_STATES:
        donors = permuted_donors(source.questions, rng).tolist()
    latents = _latents_of(arm, autoencoder, rng)
    sae = None if autoencoder is None else autoencoder.sae
    matched = arm in (RANDOM_LATENTS, OTHER_LATENTS)
    norms = autoencoder.experts if autoencoder is not None and matched else {}
    whole = -1 if arm in (PUBLISHED, STATE, OTHER_STATES) else None

    def edit(states: Tensor, rows: NDArray[np.int64]) -> Tensor:
        injected = []
        for state, row in zip(states, rows, strict=True):
            donor, name = _aligned(source.states[donors[row]], state), classes[row]
            own, norm_of = latents.get(name), norms.get(name)
            injected.append(inject(state, donor, sae, own, alpha, slice(None), whole, norm_of))
        return torch.stack(injected)

    return edit


def _latents_of(
    arm: str, autoencoder: ExpertAutoencoder | None, rng: np.random.Generator
) -> Mapping[str, NDArray[np.int64]]:
    """Class to the latents that an arm injects."""
    if autoencoder is None or arm == STATE:
        return {}
    experts = autoencoder.experts
    if arm == RANDOM_LATENTS:
        return {name: draw_control_latents(autoencoder.sae, e, rng) for name, e in experts.items()}
    if arm != OTHER_LATENTS:
        return experts
    permuted = {}
    for name in experts:
        # Class names are relation, separator, answer.
        relation = name.split("\x1f")[0] + "\x1f"
        same = [e for e in experts if e != name and e.startswith(relation)]
        if same:
            permuted[name] = experts[same[rng.integers(len(same))]]
    return permuted


def _aligned(donor_states: NDArray[np.float32], states: Tensor) -> Tensor:
    """Another prompt's states, aligned at the end; the prompt's own where it has none."""
    out = states.clone()
    length = min(len(donor_states), len(states))
    out[len(states) - length :] = torch.from_numpy(donor_states[len(donor_states) - length :]).to(
        states
    )
    return out


def _answered(
    model: nn.Module, questions: EncodedQuestions, edits: Mapping[str, RowEdit]
) -> NDArray[np.float64]:
    """(row,) exact match."""
    where = find_sites(model)
    scores = score_edited(model, questions.rows, edits, span="prompt", known_sites=where)
    return scores.greedy.astype(float)


def describe(site: str, outcomes: Mapping[str, InjectionOutcome], role: str) -> str:
    """A note: the published rate of a candidate, its controls, other models."""
    arms, main = outcomes[role].arms, outcomes[role].main
    if main.best is None:
        return "Readout intact: not asked, too few answers were lost."
    beside = "; ".join(
        f"{name} {arms[name].best:.0%}"
        for name in ARMS[1:]
        if name in arms and arms[name] is not main
    )
    others = "; ".join(
        f"{name} {outcome.main.best:.0%}"
        for name, outcome in outcomes.items()
        if name != role and outcome.main.best is not None
    )
    return (
        f"State injection (published test, no vote): the original's states patched in at "
        f"{site} where the true answer was forgotten restore "
        f"{main.best:.0%} of the lost answers at the best of alpha "
        f"{', '.join(f'{a:g}' for a in ALPHAS)}. {beside}. "
        f"Other models: {others or 'none'}. The knowledge comes from outside, so this "
        "says nothing of what the candidate holds."
    )


# Images

IMAGE_ARMS = ("published", "cls", "latents", "random", "other_class", "other_images")
"""Latents at the patches and the class token; either alone; then, in place of the class's
latents, as many random ones, matched in norm; those of another class; and other images' states."""


def inject_images(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    autoencoder: ExpertAutoencoder,
    seed: int,
) -> InjectionOutcome | None:
    """Run the test on one image model.

    Args:
        original: Model before unlearning.
        forget: Test images of the forgotten class.
        retain: Test images of other classes, from which ``other_images`` are drawn.
        seed: Of the controls.

    Returns:
        The outcome, without "cls" for a network without a class token; None where the candidate
        lost less than a tenth.
    """
    where, site = find_image_sites(model), autoencoder.sae.site
    original_sites, label = find_image_sites(original), int(forget.labels[0])
    before = named_as_class(model, forget, {}, where)
    full = float(named_as_class(original, forget, {}, original_sites).mean())
    if full - float(before.mean()) < MIN_LOST:
        return None
    donor = image_states(original, forget, [site], original_sites)[site]
    rng = numpy_rng(seed, "published", "controls")
    picked = rng.choice(len(retain), len(forget), replace=len(retain) < len(forget))
    others = image_states(original, retain.select(picked), [site], original_sites)[site]
    sae, experts = autoencoder.sae, autoencoder.experts
    own = experts[str(label)]
    other_classes = sorted(int(name) for name in experts if int(name) != label)
    of_other_class = experts[str(int(rng.choice(other_classes)))]
    unused = np.setdiff1d(np.arange(sae.d_sae), own)
    random_latents = rng.choice(unused, min(len(own), len(unused)), replace=False)
    token = bool(first_patch(donor))
    edits: dict[str, tuple[Tensor, NDArray[np.int64] | None, bool]] = {
        "published": (donor, own, token),
        "cls": (donor, None, True),
        "latents": (donor, own, False),
        "random": (donor, random_latents, False),
        "other_class": (donor, of_other_class, False),
        "other_images": (others, own, token),
    }

    def score(arm: str, alpha: float) -> NDArray[np.float64]:
        source, latents, cls = edits[arm]
        norm_of = own if arm == "random" else None
        edit = image_injection(sae, source, latents, alpha, cls, norm_of)
        return named_as_class(model, forget, {site: edit}, where)

    arms = {arm: partial(score, arm) for arm in edits if token or arm != "cls"}
    return run_arms(arms, forget.ids, full, before)


def image_injection(
    sae: Sae,
    donor: Tensor,
    latents: NDArray[np.int64] | None,
    alpha: float,
    cls: bool,
    norm_of: NDArray[np.int64] | None = None,
) -> Edit:
    """The edit of one arm, for images in the donor's order.

    Args:
        donor: (image, ...) states.
        cls: Whether the class token is injected.
    """
    n_done = 0

    def edit(value: Tensor) -> Tensor:
        nonlocal n_done
        batch = as_positions(donor[n_done : n_done + len(value)].to(value))
        n_done += len(value)
        patches = slice(first_patch(value), None)
        positions = as_positions(value)
        whole = 0 if cls else None
        edited = inject(positions, batch, sae, latents, alpha, patches, whole, norm_of)
        return restore_shape(edited, value)

    return edit
