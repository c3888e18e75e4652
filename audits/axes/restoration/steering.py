"""Steering edits: one change of the states for every input, fitted on other items.

No edit sees the items it is tested on, and none is told which inputs concern the forgotten
knowledge. An edit adds a constant vector, or what a fixed map reads from the state itself, so that
any information about an input is the candidate's. Each method gives, at a site, the edit at
strength 1; control edits of equal size carry no information about the state or the set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.sae.latents import LatentAmplifier
from audits.axes.restoration.scoring import EncodedQuestions, prompt_end_states
from capture.data.images import ImageSet
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import Sites
from capture.network.structure import model_device
from capture.scoring.class_logits import class_logits
from evidence.errors import InputError
from probes.concepts.answer_map import AnswerMap, fit_answer_map


@dataclass(frozen=True, eq=False)
class LinearReading:
    """A direction that is added in proportion to one linear reading of the state.

    Attributes:
        probe: (coordinate,) weights over the flattened state.
        offset: (coordinate,) subtracted before the reading.
        direction: Added per unit of the reading; shape of one input's state.
    """

    probe: Tensor
    offset: Tensor
    direction: Tensor


StateMap = AnswerMap | LatentAmplifier
SteeringEdit = Tensor | LinearReading | StateMap
"""A constant vector, or what is read from the state and written back."""


class SteeringHook(Protocol):
    """An edit of states (row, ...), for text rows and for batches of images."""

    def __call__(self, states: Tensor, rows: NDArray[np.int64] | None = None, /) -> Tensor:
        """The new states."""
        ...


def steering_hook(
    steering: SteeringEdit,
    strength: float | Tensor,
    donor_states: NDArray[np.float64] | None = None,
) -> SteeringHook:
    """The edit that adds ``strength`` times a steering edit.

    Args:
        strength: Scalar, or (row,) of one batch to try several at once.
        donor_states: (row, d) states that a map reads in place of the row's own, as a control.

    Raises:
        InputError: the strength is not a finite number.
    """
    size = torch.as_tensor(strength)
    if not bool(torch.isfinite(size).all()):
        raise InputError("the steering strength is not a finite number", got=str(strength))

    def edit(states: Tensor, rows: NDArray[np.int64] | None = None, /) -> Tensor:
        by_row = (-1, *[1] * (states.dim() - 1))
        sizes = size.to(states).reshape(by_row)
        if isinstance(steering, Tensor):
            return states + sizes * steering.to(states)
        if isinstance(steering, LinearReading):
            centered = states.flatten(1) - steering.offset.to(states)
            # Readings below the mean of the other classes count as 0; nothing is subtracted.
            reading = (centered @ steering.probe.to(states)).clamp(min=0.0).reshape(by_row)
            return states + reading * (sizes * steering.direction.to(states))
        read = states
        if donor_states is not None:
            read = torch.from_numpy(donor_states[rows]).to(states)
        return states + sizes * steering.apply(read)

    return edit


# Text

TEXT_METHODS = (
    "its own answer directions, amplified",
    "the original's answer directions, amplified",
    "what the forgotten have in common, removed",
    "what the forgotten lost in common, put back",
    "latents of the answers, amplified",
)
OWN_ANSWERS, ORIGINAL_ANSWERS, COMMON_REMOVED, _, LATENTS = TEXT_METHODS


@dataclass(frozen=True, eq=False)
class PromptStates:
    """States of one model at the last prompt token: site to (row, d).

    Attributes:
        fit: Of retain questions to fit on.
        check: Of retain questions of other entities.
        forget: Of all forget questions.
    """

    fit: Mapping[str, NDArray[np.float64]]
    check: Mapping[str, NDArray[np.float64]]
    forget: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        fit: EncodedQuestions,
        check: EncodedQuestions,
        forget: EncodedQuestions,
        sites: list[str],
    ) -> "PromptStates":
        """Capture the states of a model."""
        return cls(*(prompt_end_states(model, part, sites) for part in (fit, check, forget)))


@dataclass(frozen=True, eq=False)
class TextSteering:
    """Fits steering edits of a text model.

    Attributes:
        fit: Retain questions to fit on.
        check: Retain questions of other entities.
        candidate: States of the candidate.
        original: States of the original.
        latents: Amplifier of the autoencoder's answer latents; None without an accepted one.
        answer_maps: Cache of answer maps, which do not depend on the tested half.
    """

    fit: EncodedQuestions
    check: EncodedQuestions
    candidate: PromptStates
    original: PromptStates
    latents: LatentAmplifier | None = None
    answer_maps: dict[tuple[str, str], AnswerMap | None] = field(default_factory=dict)

    def edit(self, method: str, site: str, mask: NDArray[np.bool_]) -> SteeringEdit | None:
        """The edit of a method at a site, or None where it cannot be fitted.

        Args:
            method: One of ``TEXT_METHODS``.
            mask: (forget row,) mask of the rows it may be fitted on.
        """
        if method in (OWN_ANSWERS, ORIGINAL_ANSWERS):
            if (method, site) not in self.answer_maps:
                states = self.candidate if method == OWN_ANSWERS else self.original
                self.answer_maps[method, site] = self._answer_map(states, site)
            return self.answer_maps[method, site]
        if method == LATENTS:
            fits = self.latents is not None and self.latents.sae.site == site
            return self.latents if fits else None
        forget, retain = self.candidate.forget[site], self.candidate.fit[site]
        if method == COMMON_REMOVED:
            return torch.from_numpy(retain.mean(0) - forget[mask].mean(0))
        lost, drift = self.original.forget[site] - forget, self.original.fit[site] - retain
        return torch.from_numpy(lost[mask].mean(0) - drift.mean(0))

    def _answer_map(self, states: PromptStates, site: str) -> AnswerMap | None:
        classes, relations = self.fit.classes, self.fit.relations
        # An answer of a single entity would amplify that entity instead.
        shared = self.fit.shared_classes
        mask = np.array([name in shared for name in classes])
        n_classes = {kind: len(set(classes[mask & (relations == kind)])) for kind in set(relations)}
        mask &= np.array([n_classes[kind] > 1 for kind in relations])
        if not mask.any():
            return None
        return fit_answer_map(
            states.fit[site][mask],
            classes[mask],
            relations[mask],
            states.check[site],
            self.check.classes,
        )

    def randomly_rotated(self, steering: SteeringEdit, rng: np.random.Generator) -> SteeringEdit:
        """An edit of equal size in random directions."""
        if isinstance(steering, StateMap):
            return steering.randomly_rotated(rng)
        assert isinstance(steering, Tensor)  # no method of text gives another
        noise = torch.from_numpy(rng.standard_normal(len(steering)))
        return noise * steering.norm() / noise.norm()

    def retain_direction(self, steering: Tensor, site: str, rng: np.random.Generator) -> Tensor:
        """Mean difference of random retain entities, scaled to the norm of ``steering``."""
        retain = self.candidate.fit[site]
        names = np.array(self.fit.questions.entities)
        unique = list(dict.fromkeys(names.tolist()))
        sampled = np.isin(names, rng.permutation(unique)[: max(1, len(unique) // 8)])
        vector = retain[~sampled].mean(0) - retain[sampled].mean(0)
        length = max(float(np.linalg.norm(vector)), 1e-12)
        return torch.from_numpy(vector / length) * steering.norm()


# Images

CLASS_MEAN = "its own mean of the class, less that of the rest"
LOGPROB_GRADIENT = "the slope of the class's own log-probability"
AMPLIFIED_READING = "what the original's reader of the class finds, amplified"
IMAGE_METHODS = (CLASS_MEAN, LOGPROB_GRADIENT, AMPLIFIED_READING)
# The original supplies at most the linear reading, never a direction to add. Adding its class
# mean, or the mean difference of the class between the models, steered a retrain that never saw
# the class to 42 % of it (same starting weights, tuning seed 1).
# Its reading is tried at the classifier's input alone. Earlier states still encode the picture,
# where the reading would itself act as a classifier, in such a retrain too.
RIDGE = 0.1
"""Ridge penalty of the original's discriminant, in units of the mean coordinate variance."""


def image_steering_sites(where: Sites) -> list[str]:
    """The output of each block, and the input of the classifier."""
    return [*where.of("resid"), *where.of("final")]


def logprob_gradient(
    model: nn.Module, images: ImageSet, label: int, site: str, where: Sites
) -> Tensor:
    """Mean gradient of a class's log-probability with respect to the states at a site."""
    leaf: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        # Detached: nothing below the site is differentiated.
        leaf.append(value.detach().requires_grad_(True))
        return leaf[0]

    pixels = images.pixels.to(model_device(model))
    with torch.enable_grad(), evaluation_mode(model), patch(model, {site: keep}, known_sites=where):
        logprob = class_logits(model, pixels).log_softmax(1)[:, label].mean()
    (gradient,) = torch.autograd.grad(logprob, leaf[0])
    return gradient.sum(0).detach().float().cpu()


@dataclass(frozen=True, eq=False)
class ImageSteering:
    """Fits steering edits of an image model.

    Attributes:
        candidate_states: Site to (image, ...) states in the candidate.
        original_states: The same in the original, at the classifier's input.
        gradient: From a class and a site to the gradient in the candidate.
        labels: (image,) class of each.
    """

    candidate_states: Mapping[str, Tensor]
    original_states: Mapping[str, Tensor]
    gradient: Callable[[int, str], Tensor]
    labels: NDArray[np.int64]

    def edit(
        self, method: str, site: str, label: int, other: int | None = None
    ) -> SteeringEdit | None:
        """The edit of a method at strength 1; None where it would change nothing.

        Args:
            method: One of ``IMAGE_METHODS``.
            label: The class to steer to.
            other: Another class, for a control: the edit is made for it, or its reading amplifies
                the direction of ``label``.

        Raises:
            InputError: the edit is not finite.
        """
        if method == AMPLIFIED_READING and site != "final":
            return None
        fitted = label if other is None else other
        towards = label if method == AMPLIFIED_READING else fitted
        in_class = torch.from_numpy(self.labels == towards)
        states = self.candidate_states[site]
        edit = states[in_class].mean(0) - states[~in_class].mean(0)
        if method != CLASS_MEAN:
            gradient = self.gradient(towards, site)
            edit = gradient * (edit.norm() / gradient.norm().clamp(min=1e-12))
        if not float(edit.norm()) > 1e-6:
            return None
        if not bool(torch.isfinite(edit).all()):
            raise InputError(f"the steering edit at {site} is not finite", got=method)
        return self._amplified(site, fitted, edit) if method == AMPLIFIED_READING else edit

    def random_edit(
        self, method: str, site: str, label: int, rng: np.random.Generator
    ) -> SteeringEdit | None:
        """An edit as large: the vector, or the probe of the reading, is drawn at random."""
        edit = self.edit(method, site, label)
        if isinstance(edit, LinearReading):
            return replace(edit, probe=_random_vector(edit.probe, rng))
        return _random_vector(edit, rng) if isinstance(edit, Tensor) else None

    def _amplified(self, site: str, label: int, direction: Tensor) -> LinearReading:
        """The original's discriminant of a class: 0 on the other classes' mean, 1 on its own."""
        states = self.original_states[site].flatten(1).double()
        in_class = torch.from_numpy(self.labels == label)
        class_mean, other_mean = states[in_class].mean(0), states[~in_class].mean(0)
        centered = torch.where(in_class[:, None], states - class_mean, states - other_mean)
        covariance = centered.T @ centered / len(states)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-12)
        probe = torch.linalg.solve(covariance, class_mean - other_mean)
        probe /= (class_mean - other_mean) @ probe
        return LinearReading(probe.float(), other_mean.float(), direction)


def _random_vector(vector: Tensor, rng: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(rng.standard_normal(tuple(vector.shape))).float()
    return drawn * (vector.norm() / drawn.norm())
