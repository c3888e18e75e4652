"""The audit's sparse autoencoder of the original's states, with the expert latents of answers.

Source: Suppression or Deletion, arXiv 2602.18505, for depth and choice of latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.sae.autoencoder import Sae
from attribution.sae.features import expert_sets, rank_latents
from attribution.sae.latents import live_latents
from attribution.sae.measures import measure_quality
from attribution.sae.training import SaeConfig, train_sae
from audits.axes.restoration.scoring import EncodedQuestions
from capture.activations.capture import capture_activations
from capture.data.images import ImageSet
from capture.data.sequences import Sequences
from capture.network.sites import Sites, as_positions, find_image_sites, find_sites
from capture.scoring.class_logits import image_states
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

RELATIVE_DEPTH = 0.8
"""Relative depth of its site: block 9 of 0 to 11 in the published test."""
MAX_FVU = 0.3
"""Maximum fraction of variance unexplained, in the original and in the candidate."""
EXPANSION, MAX_K, BATCH, STEPS = 4, 32, 128, 400
EXPERT_FACTOR = 1.25
"""Latents per answer in multiples of k, before shared ones are dropped."""
MAX_SHARED_FRACTION = 0.7
"""A latent that fires for at least this share of a relation's answers is dropped."""
MIN_FIRING_RATE = 0.5
"""Minimum share of an answer's rows on which a latent must fire to fire for the answer."""


IMAGE_K, MAX_SHARED_CLASSES = 16, 7
"""Images: active latents per patch (the CIFAR-10 setting); a latent that is active in this many
classes is an expert of none."""


@dataclass(frozen=True, eq=False)
class ExpertAutoencoder:
    """A sparse autoencoder with the expert latents of each answer or image class.

    Attributes:
        sae: The autoencoder of the original's states.
        experts: Class (``EncodedQuestions.classes``, or the index of an image class) to latents,
            the best first.
        fvu: Fraction of variance unexplained of the original's states.
    """

    sae: Sae
    experts: Mapping[str, NDArray[np.int64]]
    fvu: float

    @property
    def all_experts(self) -> NDArray[np.int64]:
        """The best latents of all answers together, at most half of those that fire.

        Latents enter rank by rank: the second best of an answer after the best of every other.
        As many live latents are left over for the control.
        """
        max_experts = len(live_latents(self.sae)) // 2
        chosen: list[int] = []
        for rank in range(max(len(latents) for latents in self.experts.values())):
            for latents in self.experts.values():
                if (
                    rank < len(latents)
                    and len(chosen) < max_experts
                    and latents[rank] not in chosen
                ):
                    chosen.append(int(latents[rank]))
        return np.sort(np.array(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Reconstruction:
    """The original's autoencoder on the states of another model.

    Attributes:
        fvu: Fraction of variance unexplained; None where it is not finite.
        refusal: Why the autoencoder is not used; empty where it is.
    """

    fvu: float | None
    refusal: str = ""


def autoencoder_site(where: Sites) -> str:
    """The residual site at 0.8 of the depth, always before the last block."""
    sites = where.of("resid")
    return sites[max(0, min(round(RELATIVE_DEPTH * (len(sites) - 1)), len(sites) - 2))]


# Text


def train_autoencoder(
    original: nn.Module,
    weights_hash: str,
    fit: EncodedQuestions,
    check: EncodedQuestions,
    folder: Path,
    seed: int,
    progress: Progress = AUTO,
) -> tuple[ExpertAutoencoder | None, str]:
    """Train on prompts about retain entities, and rank latents at the ends of the prompts.

    No forgotten item is used. The latents of an answer are selected as published: the best by
    F1 among the answers of one relation, without those that fire for most of them.

    Args:
        weights_hash: Hash of the original's weights, which the autoencoder records.
        fit: Retain questions to train and rank on.
        check: Retain questions of other entities, to measure the fit on.
        folder: Where autoencoders are kept.
        seed: Of initial weights and row order.

    Returns:
        The autoencoder, or None with a note that says why there is none.
    """
    if find_spec("sae_lens") is None:
        return None, (
            "No autoencoder: sae-lens is not installed, so neither the route through "
            "its latents nor the published injection into them was tried."
        )
    site = autoencoder_site(find_sites(original))
    rows = prompt_states(original, fit.rows, site)
    held_out = prompt_states(original, check.rows, site)
    ends = capture_activations(original, fit.rows, [site]).site(site)
    k = max(2, min(MAX_K, rows.shape[1] // 8))
    per_epoch = max(1, len(rows) // BATCH)
    config = SaeConfig(
        expansion=EXPANSION, k=k, epochs=max(1, -(-STEPS // per_epoch)), batch_size=BATCH, seed=seed
    )
    try:
        sae = train_sae(rows, site, folder, config, model=weights_hash, progress=progress)
        experts = expert_latents(
            sae.encode(torch.from_numpy(ends)).numpy(), fit, int(EXPERT_FACTOR * k)
        )
        if not experts:
            return None, "No autoencoder: no answer of several entities has latents of its own."
        fvu = measure_quality(sae, iter([held_out])).fvu
    except InputError as error:
        return None, f"No autoencoder: {error}"
    if fvu > MAX_FVU:
        return None, _refusal("original", fvu)
    return ExpertAutoencoder(sae, experts, fvu), ""


def check_reconstruction(
    autoencoder: ExpertAutoencoder, model: nn.Module, check: EncodedQuestions, role: str
) -> Reconstruction:
    """Measure an autoencoder on a candidate's retain states, and refuse it where it fits badly.

    Raises:
        InputError: as ``check_model``.
    """
    check_model(autoencoder.sae, model)
    states = prompt_states(model, check.rows, autoencoder.sae.site)
    try:
        fvu = measure_quality(autoencoder.sae, iter([states])).fvu
    except InputError:
        # The states of a collapsed model are constant.
        fvu = float("inf")
    if not np.isfinite(fvu):
        return Reconstruction(None, _refusal(role, float("inf")))
    return Reconstruction(fvu, _refusal(role, fvu) if fvu > MAX_FVU else "")


def check_model(sae: Sae, model: nn.Module) -> None:
    """Refuse an autoencoder of another width, or of a site the model lacks.

    Raises:
        InputError: naming the mismatch.
    """
    where = find_sites(model)
    where.resolve(sae.site)
    if where.d_model not in (None, sae.d_in):
        raise InputError(
            f"the autoencoder has another width than {sae.site} of the model",
            expected=str(where.d_model),
            got=str(sae.d_in),
            fix="Use one that was trained on this model",
        )


def expert_latents(
    latents: NDArray, questions: EncodedQuestions, count: int
) -> dict[str, NDArray[np.int64]]:
    """Expert latents of each answer that several entities share.

    Args:
        latents: (row, latent) activations at the ends of the prompts.
        questions: Those rows.
        count: Latents per answer, before shared ones are dropped.
    """
    classes, kinds = questions.classes, questions.relations
    shared = questions.shared_classes
    experts: dict[str, NDArray[np.int64]] = {}
    for kind in dict.fromkeys(kinds):
        in_relation = kinds == kind
        names = sorted({str(name) for name in classes[in_relation]} & shared)
        if len(names) < 2:
            continue
        marks = {name: classes[in_relation] == name for name in names}
        ranking = rank_latents(latents[in_relation], marks)
        limit = max(2, int(np.ceil(MAX_SHARED_FRACTION * len(names))))
        served = (ranking.active >= MIN_FIRING_RATE).sum(0)
        for class_index, name in enumerate(names):
            # An answer without expert latents is skipped; the others keep theirs.
            chosen = ranking.top(name, count)
            own_latents = chosen[(served[chosen] < limit) & (ranking.f1[class_index, chosen] > 0)]
            if len(own_latents):
                experts[name] = own_latents
    return experts


def prompt_states(model: nn.Module, rows: Sequences, site: str) -> NDArray[np.float32]:
    """(state, d) of every prompt position except the first, row after row."""
    return np.concatenate([prompt[1:] for prompt in states_by_prompt(model, rows, site)])


def states_by_prompt(model: nn.Module, rows: Sequences, site: str) -> list[NDArray[np.float32]]:
    """(row,) states (position, d) of each prompt."""
    starts = np.array(rows.answer_start)
    by_row: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(rows)
    for start in np.unique(starts):
        group = np.flatnonzero(starts == start)
        part = rows[group.tolist()]
        states = capture_activations(model, part, [site], range(int(start)))
        for row, row_states in zip(group, states.site(site), strict=True):
            by_row[row] = row_states
    return by_row


def _refusal(role: str, fvu: float) -> str:
    return (
        f"The autoencoder is refused: it leaves {fvu:.2f} of the variance of the "
        f"{role}'s states unexplained (at most {MAX_FVU})."
    )


# Images


def published_site(layers: int) -> str:
    """The site at the published relative depth, block 9 of 0 to 11."""
    return f"resid.{round(9 / 11 * (layers - 1))}"


def first_patch(states: Tensor) -> int:
    """Index of the first patch of image states: 1 after a class token, else 0."""
    return 1 if states.dim() == 3 else 0


def train_image_autoencoder(
    original: nn.Module, images: ImageSet, folder: Path, seed: int, progress: Progress = AUTO
) -> ExpertAutoencoder:
    """Train or load the original's autoencoder of patches, and select the expert latents.

    Args:
        images: Images of all classes, none of them test images.
        folder: Where autoencoders are kept.
        seed: Of initial weights and row order.

    Raises:
        InputError: too much of the variance is unexplained, or a class has no expert.
    """
    where = find_image_sites(original)
    site = published_site(where.n_layers)
    states = image_states(original, images, [site], where)[site]
    patches = as_positions(states)[:, first_patch(states) :]
    rows = patches.reshape(-1, patches.shape[-1]).numpy()
    config = SaeConfig(expansion=EXPANSION, k=IMAGE_K, epochs=6, batch_size=256, seed=seed)
    sae = train_sae(rows, site, folder, config, progress=progress)
    fvu = float(sae.metadata["quality"]["fvu"])
    if fvu > MAX_FVU:
        raise InputError(
            f"the autoencoder at {site} leaves too much of the states unexplained",
            expected=f"a fraction of variance of at most {MAX_FVU}",
            got=f"{fvu:.2f}",
            fix="Give it more images",
        )
    # A latent is active in an image where it fires at one patch or more.
    max_latents = sae.encode(patches).amax(1).numpy()
    marks = {str(label): images.labels == label for label in np.unique(images.labels)}
    experts = expert_sets(
        rank_latents(max_latents, marks),
        round(EXPERT_FACTOR * IMAGE_K),
        shared_by=MAX_SHARED_CLASSES,
        min_active=MIN_FIRING_RATE,
    )
    return ExpertAutoencoder(sae, experts, fvu)
