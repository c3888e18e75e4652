"""Training sparse autoencoders on stored activations, with sae-lens's objectives."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attribution.sae.autoencoder import Sae, measure_quality
from attribution.sae.files import METADATA_FILE, load_sae, sae_lens
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng, stage_seed
from evidence.storage.files import atomic_folder, write_atomic
from evidence.storage.removal import delete_owned_folder

Kind = Literal["topk", "batchtopk", "jumprelu", "matryoshka"]
KINDS: tuple[Kind, ...] = ("topk", "batchtopk", "jumprelu", "matryoshka")
VERSION = 1  # raise it when the same request would give other weights
CHUNK_ROWS = 1 << 16
PART_FILES = re.compile(r"sae\.safetensors|trainer_state\.pt|activation_scaler\.json")
MAX_NORM_RATIO = 10.0
"""Rows longer than so many median lengths are left out: attention sinks dominate."""


@dataclass(frozen=True)
class SaeConfig:
    """How an autoencoder is trained.

    Attributes:
        kind: "topk" (arXiv 2406.04093), "batchtopk" (arXiv 2412.06410), "jumprelu"
            (arXiv 2407.14435) or "matryoshka" (arXiv 2503.17547).
        expansion: Latents over the width of the site.
        k: Latents that fire a row; for "jumprelu" the number aimed at.
        epochs: Times each row is seen.
        batch_size: Rows a step. Steps, not rows, limit quality: keep it small.
        lr: Highest learning rate; it falls to a tenth over the last fifth.
        seed: Of starting weights and order.
    """

    kind: Kind = "topk"
    expansion: int = 8
    k: int = 32
    epochs: int = 2
    batch_size: int = 512
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                "the kind of autoencoder is unknown",
                expected=", ".join(KINDS),
                got=repr(self.kind),
            )
        for name in ("expansion", "k", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1", got=str(getattr(self, name))
                )
        if not 0 < self.lr < 1:
            raise InputError("lr must lie between 0 and 1", got=str(self.lr))


def train_sae(
    rows: Any,
    site: str,
    root: Path,
    config: SaeConfig = SaeConfig(),
    *,
    model: str = "",
    checkpoint_every: int = 200,
    progress: Progress = SILENT,
) -> Sae:
    """Train an autoencoder, or find it trained.

    The folder's name is the hash of rows and settings. Interrupted, the same call
    goes on from the last checkpoint and ends with the same weights.

    Args:
        rows: (row, d) array, in memory or on disk; read in chunks.
        site: Where the rows come from.
        root: Folder of all autoencoders.
        config: Settings.
        model: Hash of the weights of the model the rows come from.
        checkpoint_every: Steps between checkpoints.
        progress: Where to show progress.

    Raises:
        InputError: fewer rows than a batch, rows that are not (row, d), finite and
            different from each other.
    """
    key = _cache_key(rows, site, config, model)
    folder = Path(root) / key
    if not folder.is_dir():
        _train(rows, site, folder, config, model, checkpoint_every, progress)
    return load_sae(folder)


def _cache_key(rows: Any, site: str, config: SaeConfig, model: str) -> str:
    if len(rows.shape) != 2 or rows.shape[0] < config.batch_size:
        raise InputError(
            "there are too few states to train an autoencoder on",
            expected=f"(row, d) with at least {config.batch_size} rows",
            got=str(tuple(rows.shape)),
            fix="Capture more text, or lower batch_size",
        )
    if config.k > config.expansion * rows.shape[1]:
        raise InputError(
            "k is larger than the number of latents",
            expected=f"at most {config.expansion * rows.shape[1]}",
            got=str(config.k),
        )
    digest = hashlib.sha256()
    digest.update(json.dumps([VERSION, asdict(config), site, model]).encode())
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        chunk = np.ascontiguousarray(rows[start : start + CHUNK_ROWS], dtype=np.float32)
        if not np.isfinite(chunk).all():
            raise InputError(
                "the states hold NaN or infinity",
                fix="Capture them in float32",
            )
        digest.update(chunk.tobytes())
    return digest.hexdigest()[:32]


def _train(
    rows: Any,
    site: str,
    folder: Path,
    config: SaeConfig,
    model: str,
    checkpoint_every: int,
    progress: Progress,
) -> None:
    library = sae_lens()
    from sae_lens.config import SAETrainerConfig

    centre, limit, scale = _norm_statistics(rows)
    usable = _inlier_rows(rows, limit)
    per_epoch = sum(len(kept) // config.batch_size for kept in usable)
    steps = max(1, per_epoch * config.epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(config.seed, "sae") % 2**31)
        sae = _training_model(config, rows.shape[1], steps)
    with torch.no_grad():
        sae.b_dec.copy_(centre * scale)
    trainer = library.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.batch_size,
            train_batch_size_samples=config.batch_size,
            lr=config.lr,
            lr_end=config.lr / 10,
            lr_decay_steps=steps // 5,
            # Counted in steps: latents silent for a tenth of the run are revived.
            dead_feature_window=max(20, steps // 10),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    part = folder.with_name(folder.name + ".part")
    _resume(trainer, part)
    with progress.task(f"autoencoder at {site}", steps) as advance:
        advance(trainer.n_training_steps)
        for step, batch in enumerate(_batches(rows, usable, config)):
            if step < trainer.n_training_steps or step >= steps:
                continue
            trainer.step(batch * scale)
            trainer.n_training_steps += 1
            advance(1)
            if trainer.n_training_steps % checkpoint_every == 0:
                _checkpoint(trainer, part)
    sae.fold_activation_norm_scaling_factor(scale)
    with atomic_folder(folder) as scratch:
        _save(sae, scratch, rows, usable, site, config, model)
    _delete_checkpoint(part)


def _training_model(config: SaeConfig, width: int, steps: int) -> Any:
    """A fresh training model of sae-lens."""
    library = sae_lens()
    latents = config.expansion * width
    shared: dict[str, Any] = {
        "d_in": width,
        "d_sae": latents,
        "apply_b_dec_to_input": True,
    }
    if config.kind == "topk":
        made = library.TopKTrainingSAEConfig(k=config.k, **shared)
        return library.TopKTrainingSAE(made)
    if config.kind == "batchtopk":
        made = library.BatchTopKTrainingSAEConfig(k=config.k, **shared)
        return library.BatchTopKTrainingSAE(made)
    if config.kind == "matryoshka":
        made = library.MatryoshkaBatchTopKTrainingSAEConfig(
            k=config.k, matryoshka_widths=matryoshka_widths(latents), **shared
        )
        return library.MatryoshkaBatchTopKTrainingSAE(made)
    made = library.JumpReLUTrainingSAEConfig(
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=float(config.k),
        l0_warm_up_steps=steps // 4,
        jumprelu_bandwidth=0.5,
        jumprelu_init_threshold=0.1,
        jumprelu_ste_to_input=True,
        **shared,
    )
    return library.JumpReLUTrainingSAE(made)


def matryoshka_widths(latents: int) -> list[int]:
    """Widths of the nested prefixes of a Matryoshka autoencoder."""
    widths = {max(1, latents // part) for part in (16, 8, 4, 2)}
    return [*sorted(widths), latents]


def _norm_statistics(rows: Any) -> tuple[Tensor, float, float]:
    """Mean state, longest distance from it that is used, and the scale to sqrt(d)."""
    sample = np.asarray(rows[: 4 * CHUNK_ROWS], dtype=np.float32)
    length = np.linalg.norm(sample - np.median(sample, axis=0), axis=1)
    limit = MAX_NORM_RATIO * float(np.median(length))
    kept = sample[length <= limit]
    spread = (
        float(np.linalg.norm(kept - kept.mean(0), axis=1).mean()) if len(kept) else 0
    )
    if spread <= 1e-6 * max(float(np.abs(sample).max()), 1e-12):
        raise InputError(
            "the states do not vary, so there is nothing to learn",
            expected="rows that differ",
        )
    return torch.from_numpy(kept.mean(0)), limit, float(sample.shape[1] ** 0.5 / spread)


def _inlier_rows(rows: Any, limit: float) -> list[np.ndarray]:
    """For each chunk the rows that are no outliers."""
    median = np.median(np.asarray(rows[: 4 * CHUNK_ROWS], dtype=np.float32), axis=0)
    found = []
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        chunk = np.asarray(rows[start : start + CHUNK_ROWS], dtype=np.float32)
        length = np.linalg.norm(chunk - median, axis=1)
        found.append(np.flatnonzero(length <= limit))
    return found


def _batches(
    rows: Any, usable: list[np.ndarray], config: SaeConfig
) -> Iterator[Tensor]:
    """Batches in an order that depends on the seed and nothing else."""
    for epoch in range(config.epochs):
        rng = numpy_rng(config.seed, "sae", "order", str(epoch))
        for number in rng.permutation(len(usable)):
            order = rng.permutation(usable[number])
            start = number * CHUNK_ROWS
            chunk = np.asarray(rows[start : start + CHUNK_ROWS], dtype=np.float32)
            for first in range(
                0, len(order) - config.batch_size + 1, config.batch_size
            ):
                chosen = order[first : first + config.batch_size]
                yield torch.from_numpy(chunk[chosen])


def _checkpoint(trainer: Any, part: Path) -> None:
    from safetensors.torch import save

    _delete_checkpoint(part)
    with atomic_folder(part) as scratch:
        state = {k: v.contiguous() for k, v in trainer.sae.state_dict().items()}
        write_atomic(scratch / "sae.safetensors", save(state))
        trainer.save_trainer_state(scratch)


def _delete_checkpoint(part: Path) -> None:
    if os.path.lexists(part):
        delete_owned_folder(part, PART_FILES)


def _resume(trainer: Any, part: Path) -> None:
    """Go on from a checkpoint of ours, where there is one."""
    if not part.is_dir():
        return
    from safetensors.torch import load_file

    try:
        trainer.sae.load_state_dict(load_file(part / "sae.safetensors"))
        # torch.load reads it with weights_only, so nothing in it is run.
        trainer.load_trainer_state(part)
    except Exception as error:  # torch meets bad bytes with errors of any kind
        raise InputError(
            f"the training that was interrupted in {part} cannot go on "
            f"({type(error).__name__})",
            fix="Delete that folder to begin anew",
        ) from error


def _save(
    sae: Any,
    scratch: Path,
    rows: Any,
    usable: list[np.ndarray],
    site: str,
    config: SaeConfig,
    model: str,
) -> None:
    """Save for inference, with a threshold that fits, and note what it is."""
    sae.save_inference_model(str(scratch))
    note = {"site": site, "kind": config.kind, "model": model} | {
        "config": asdict(config)
    }
    write_atomic(scratch / METADATA_FILE, json.dumps(note))
    found = load_sae(scratch)

    def chunks(most: int = 4) -> Iterator[np.ndarray]:
        for number, kept in enumerate(usable[:most]):
            chunk = np.asarray(rows[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS])
            for first in range(0, len(kept), 4096):
                yield chunk[kept[first : first + 4096]]

    if config.kind in ("batchtopk", "matryoshka"):
        _calibrate_threshold(found, next(chunks()), config.k)
        found.module.save_model(str(scratch))
    on = torch.zeros(found.d_sae, dtype=torch.bool)
    for chunk in chunks():
        on |= (found.encode(torch.as_tensor(chunk, dtype=torch.float32)) > 0).any(0)
    reached = measure_quality(found, chunks())
    note |= {
        "dead": (~on).nonzero()[:, 0].tolist(),
        "prefixes": matryoshka_widths(found.d_sae)
        if config.kind == "matryoshka"
        else [],
        "quality": asdict(reached),
    }
    write_atomic(scratch / METADATA_FILE, json.dumps(note))


def _calibrate_threshold(sae: Sae, rows: np.ndarray, k: int) -> None:
    """Set the threshold at which k latents fire a row.

    The one learned in training is a running mean that lags behind short runs.
    """
    module = sae.module
    with torch.no_grad():
        x = module.process_sae_in(torch.as_tensor(rows, dtype=torch.float32))
        latents = torch.relu(x @ module.W_enc + module.b_enc).flatten()
        at = torch.topk(latents, min(k * len(rows), len(latents))).values[-1]
        # A latent fires above its threshold; the last one has to fire as well.
        module.threshold.fill_(float(at) * (1 - 1e-6))
