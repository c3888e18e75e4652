"""The published class-restoration test for images, with the controls it lacks.

On images of the forgotten class, selected by their true label, the original's states of the
same image are patched into the candidate: the coordinates of the class's expert latents at
every patch, and the class token. A restoration shows that the rest of the candidate still reads
the original's states. It says nothing about what the candidate holds, since the class is
supplied from outside. So the test does not vote; its arms show the contribution of each patched
part.

The published encoding is linear, without bias or TopK. The decoding is not described; here the
change of the expert coordinates is decoded and added, so that the autoencoder's reconstruction
error is left in place.

Source: "Suppression or Deletion" (arXiv 2602.18505) and its public evaluation code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.sae.autoencoder import Sae
from attribution.sae.features import expert_sets, rank_latents
from attribution.sae.training import SaeConfig, train_sae
from audits.axes.restoration.autoencoder import MAX_FVU
from audits.axes.restoration.image_steering import named_as_class
from audits.axes.restoration.net_rate import MIN_LOST
from audits.axes.restoration.state_injection import ALPHAS
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import as_positions, find_image_sites, restore_shape
from capture.scoring.class_logits import image_states
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng

ARMS = ("published", "cls", "latents", "random", "other_class", "other_images")
K = 16
"""Active latents per patch; 1.25 times as many experts per class (the CIFAR-10 setting)."""
MAX_SHARED_CLASSES = 7
"""A latent that is active in this many classes is an expert of none."""


@dataclass(frozen=True, eq=False)
class Experts:
    """The autoencoder of one site of the original, with the expert latents of each class.

    Attributes:
        sae: The autoencoder.
        latents: Class to the indices of its expert latents.
        fvu: Fraction of variance unexplained of the original's states.
    """

    sae: Sae
    latents: dict[int, np.ndarray]
    fvu: float


def published_site(layers: int) -> str:
    """The site at the published relative depth, block 9 of 0 to 11."""
    return f"resid.{round(9 / 11 * (layers - 1))}"


def find_experts(
    original: nn.Module, images: ImageSet, root: Path, seed: int, *, progress: Progress = SILENT
) -> Experts:
    """Train or load the original's autoencoder, and select the expert latents.

    Args:
        original: Model before unlearning.
        images: Images of all classes, none of them test images.
        root: Where autoencoders are kept.
        seed: Of initial weights and row order.

    Raises:
        InputError: the fraction of variance unexplained exceeds 0.3.
    """
    where = find_image_sites(original)
    site = published_site(where.n_layers)
    states = image_states(original, images, [site], where)[site]
    patches = as_positions(states)[:, _first_patch(states) :]
    rows = patches.reshape(-1, patches.shape[-1]).numpy()
    config = SaeConfig(expansion=4, k=K, epochs=6, batch_size=256, seed=seed)
    sae = train_sae(rows, site, root, config, progress=progress)
    fvu = float(sae.metadata["quality"]["fvu"])
    if fvu > MAX_FVU:
        raise InputError(
            f"the autoencoder at {site} leaves too much of the states unexplained",
            expected=f"a fraction of variance of at most {MAX_FVU}",
            got=f"{fvu:.2f}",
            fix="Give it more images",
        )
    latents = sae.encode(patches)
    # A latent is active in an image where it fires at one patch or more.
    max_latents = latents.amax(1).numpy()
    marks = {str(c): images.labels == c for c in np.unique(images.labels)}
    ranking = rank_latents(max_latents, marks)
    sets = expert_sets(ranking, round(1.25 * K), shared_by=MAX_SHARED_CLASSES, min_active=0.5)
    return Experts(
        sae, {int(name): latents_of_class for name, latents_of_class in sets.items()}, fvu
    )


def inject_states(
    original: nn.Module,
    model: nn.Module,
    forget: ImageSet,
    retain: ImageSet,
    experts: Experts,
    seed: int,
) -> dict[str, Any] | None:
    """The published restoration rate and its controls, JSON-ready.

    Args:
        original: Model before unlearning.
        model: The candidate.
        forget: Test images of the forgotten class.
        retain: Test images of other classes, from which ``other_images`` are drawn.
        experts: Result of ``find_experts``.
        seed: Of the controls.

    Returns:
        ``rates``: by arm, one rate an alpha (see ``ARMS``; arms with a class token are None for
        a network without one), ``best``: the largest by arm, ``before`` and ``lost``; None
        where the candidate lost less than a tenth.
    """
    where, site = find_image_sites(model), experts.sae.site
    label = int(forget.labels[0])
    before = float(named_as_class(model, forget, {}, where).mean())
    full = float(named_as_class(original, forget, {}, find_image_sites(original)).mean())
    if full - before < MIN_LOST:
        return None
    donor = image_states(original, forget, [site], find_image_sites(original))[site]
    rng = numpy_rng(seed, "published", "controls")
    picked = rng.choice(len(retain), len(forget), replace=len(retain) < len(forget))
    other_images = image_states(
        original, retain.select(picked), [site], find_image_sites(original)
    )[site]
    class_latents = experts.latents[label]
    other_classes = sorted(set(experts.latents) - {label})
    other_latents = experts.latents[int(rng.choice(other_classes))]
    unused = np.setdiff1d(np.arange(experts.sae.d_sae), class_latents)
    random_latents = rng.choice(unused, min(len(class_latents), len(unused)), replace=False)
    token = _first_patch(donor) == 1
    arms: dict[str, tuple[Tensor, np.ndarray, bool, bool]] = {
        "published": (donor, class_latents, token, True),
        "cls": (donor, class_latents, True, False),
        "latents": (donor, class_latents, False, True),
        "random": (donor, random_latents, False, True),
        "other_class": (donor, other_latents, False, True),
        "other_images": (other_images, class_latents, token, True),
    }
    rates: dict[str, list[float] | None] = {}
    for arm, (source, latents, cls, patches) in arms.items():
        if arm == "cls" and not token:
            rates[arm] = None
            continue
        size = class_latents if arm == "random" else None
        rates[arm] = [
            (
                float(
                    named_as_class(
                        model,
                        forget,
                        {site: _carrying(experts.sae, source, latents, alpha, cls, patches, size)},
                        where,
                    ).mean()
                )
                - before
            )
            / (full - before)
            for alpha in ALPHAS
        ]
    return {
        "site": site,
        "rates": rates,
        "best": {arm: None if r is None else max(r) for arm, r in rates.items()},
        "before": before,
        "lost": full - before,
        "experts": len(class_latents),
        "fvu": experts.fvu,
    }


def _first_patch(states: Tensor) -> int:
    """Index of the first patch: 1 after a class token, else 0."""
    return 1 if states.dim() == 3 else 0


def _carrying(
    sae: Sae,
    donor: Tensor,
    latents: np.ndarray,
    alpha: float,
    cls: bool,
    patches: bool,
    size: np.ndarray | None,
) -> Edit:
    """The published edit, for images in the donor's order.

    Args:
        donor: (image, ...) states to patch in.
        latents: Latents whose coordinates are patched.
        alpha: Strength; 1 replaces the coordinates entirely.
        cls: Whether the class token is patched as well.
        patches: Whether the latents are patched.
        size: Latents whose change sets the norm of the edit, patch by patch.
    """
    done = 0

    def changed(difference: Tensor, chosen: np.ndarray) -> Tensor:
        index = torch.from_numpy(chosen).long()
        down = sae.module.W_enc.detach()[:, index].to(difference)
        return (difference @ down) @ sae.decoder[index].to(difference)

    def edit(value: Tensor) -> Tensor:
        nonlocal done
        donor_batch = donor[done : done + len(value)].to(value)
        done += len(value)
        positions, donor_positions = (as_positions(value).clone(), as_positions(donor_batch))
        first = _first_patch(value)
        difference = donor_positions[:, first:] - positions[:, first:]
        if patches:
            step = changed(difference, latents)
            if size is not None:
                norm = changed(difference, size).norm(dim=-1, keepdim=True)
                step = step * norm / step.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            positions[:, first:] += alpha * step
        if cls:
            positions[:, 0] += alpha * (donor_positions[:, 0] - positions[:, 0])
        return restore_shape(positions, value)

    return edit
