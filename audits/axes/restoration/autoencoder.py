"""The audit's sparse autoencoder, trained on the original's states of retain prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attribution.sae.autoencoder import Sae, measure_quality
from attribution.sae.features import rank_latents
from attribution.sae.latents import live_latents
from attribution.sae.training import SaeConfig, train_sae
from audits.axes.restoration.text_steering import EncodedQuestions
from audits.core.context import AuditedModel
from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences
from capture.network.sites import Sites, find_sites
from evidence.errors import InputError
from evidence.progress import Progress

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


@dataclass(frozen=True, eq=False)
class AnswerAutoencoder:
    """A sparse autoencoder with the expert latents of each answer.

    Attributes:
        sae: The autoencoder of the original's states.
        experts: Class (``EncodedQuestions.classes``) to latents, the best first.
        fvu: Fraction of variance unexplained of the original's retain states.
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


def autoencoder_site(where: Sites) -> str:
    """The residual site at 0.8 of the depth, always before the last block."""
    sites = where.of("resid")
    return sites[max(0, min(round(RELATIVE_DEPTH * (len(sites) - 1)), len(sites) - 2))]


def train_autoencoder(
    original: AuditedModel,
    fit: EncodedQuestions,
    check: EncodedQuestions,
    folder: Path,
    seed: int,
    *,
    device: str,
    progress: Progress,
) -> tuple[AnswerAutoencoder | None, list[str]]:
    """Train on prompts about retain entities, and rank latents at the ends of the prompts.

    No forgotten item is used. The latents of an answer are selected as published: the best by
    F1 among the answers of one relation, without those that fire for most of them.

    Args:
        fit: Retain questions to train and rank on.
        check: Retain questions of other entities, to measure the fit on.
        folder: Where autoencoders are kept.
        seed: Of initial weights and row order.

    Returns:
        The autoencoder, or None with notes that say why there is none.

    Source: Suppression or Deletion, arXiv 2602.18505, for depth and choice of latents.
    """
    if find_spec("sae_lens") is None:
        return None, [
            "No autoencoder: sae-lens is not installed, so neither the route through "
            "its latents nor the published injection into them was tried."
        ]
    with original.loaded(device) as model:
        site = autoencoder_site(find_sites(model))
        rows = prompt_states(model, fit.rows, site)
        held_out = prompt_states(model, check.rows, site)
        ends = capture_activations(model, fit.rows, [site]).site(site)
    k = max(2, min(MAX_K, rows.shape[1] // 8))
    per_epoch = max(1, len(rows) // BATCH)
    config = SaeConfig(
        expansion=EXPANSION, k=k, epochs=max(1, -(-STEPS // per_epoch)), batch_size=BATCH, seed=seed
    )
    try:
        sae = train_sae(rows, site, folder, config, model=original.weights_hash, progress=progress)
        experts = expert_latents(
            sae.encode(torch.from_numpy(ends)).numpy(), fit, int(EXPERT_FACTOR * k)
        )
        if not experts:
            return None, ["No autoencoder: no answer of several entities has latents of its own."]
        fvu = measure_quality(sae, iter([held_out])).fvu
    except InputError as error:
        return None, [f"No autoencoder: {error}"]
    if fvu > MAX_FVU:
        return None, [_refused("original", fvu)]
    return AnswerAutoencoder(sae, experts, fvu), []


def check_reconstruction(
    autoencoder: AnswerAutoencoder, model: nn.Module, check: EncodedQuestions, role: str
) -> tuple[float, list[str]]:
    """Fraction of variance unexplained on a candidate's retain states, and a refusal if high.

    Returns:
        The fraction, and a note where the autoencoder is refused.

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
    fvu = fvu if np.isfinite(fvu) else float("inf")
    return fvu, [_refused(role, fvu)] if fvu > MAX_FVU else []


def check_model(sae: Sae, model: nn.Module, weights: str | None = None) -> None:
    """Refuse an autoencoder of another model, or of a site the model lacks.

    Args:
        weights: Hash of the weights it must have been trained on; not checked where the
            autoencoder does not record it.

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
    trained_on = sae.metadata.get("model")
    if weights and trained_on and trained_on != weights:
        raise InputError(
            "the autoencoder was trained on another model",
            expected=f"one of weights {weights[:12]}",
            got=f"one of weights {trained_on[:12]}",
            fix="Train one on the original of this audit",
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
    entities_of: dict[str, set[str]] = {}
    for name, entity in zip(classes, questions.questions.entities, strict=True):
        entities_of.setdefault(name, set()).add(entity)
    experts: dict[str, NDArray[np.int64]] = {}
    for kind in dict.fromkeys(kinds):
        in_relation = kinds == kind
        names = sorted({c for c in classes[in_relation] if len(entities_of[c]) > 1})
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


def _refused(role: str, fvu: float) -> str:
    return (
        f"The autoencoder is refused: it leaves {fvu:.2f} of the variance of the "
        f"{role}'s states unexplained (at most {MAX_FVU})."
    )
