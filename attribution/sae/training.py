"""Train sparse autoencoders on stored activations, with the objectives of sae-lens."""

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
from numpy.typing import NDArray
from torch import Tensor

from attribution.sae.autoencoder import Sae
from attribution.sae.files import METADATA_FILE, load_sae, sae_lens
from attribution.sae.measures import measure_quality
from capture.activations.capture import Activations
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng, stage_seed
from evidence.storage.files import atomic_folder, write_atomic
from evidence.storage.removal import delete_owned_folder

Kind = Literal["topk", "batchtopk", "jumprelu", "matryoshka"]
KINDS: tuple[Kind, ...] = ("topk", "batchtopk", "jumprelu", "matryoshka")
VERSION = 1  # increment whenever the same request would give other weights
CHUNK_ROWS = 1 << 16
PART_FILES = re.compile(r"sae\.safetensors|trainer_state\.pt|activation_scaler\.json")
MAX_NORM_RATIO = 10.0
"""Rows with a norm above this many medians are left out, as attention sinks would dominate."""


@dataclass(frozen=True)
class SaeConfig:
    """Training settings of an autoencoder.

    Attributes:
        kind: "topk" (arXiv 2406.04093), "batchtopk" (arXiv 2412.06410), "jumprelu" (arXiv
            2407.14435) or "matryoshka" (arXiv 2503.17547).
        expansion: Number of latents over the width of the site.
        k: Active latents per row; for "jumprelu" the target number.
        epochs: Passes over the rows.
        batch_size: Rows per step. The number of steps limits quality, not the number of rows, so
            keep batches small.
        lr: Peak learning rate; it decays to a tenth over the last fifth of the steps.
        seed: Seed of the initial weights and of the order of rows.

    Examples:
        >>> exhume.SaeConfig("batchtopk", k=16).expansion
        8
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
                "the kind of autoencoder is unknown", expected=", ".join(KINDS), got=repr(self.kind)
            )
        for name in ("expansion", "k", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", got=str(getattr(self, name)))
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
    progress: Progress = AUTO,
) -> Sae:
    """Train an autoencoder, or load it if it was trained before.

    The folder is named by a hash of the rows and settings. An interrupted run resumes from its last
    checkpoint and ends with the same weights.

    Args:
        rows: (row, d) array, in memory or on disk; read in chunks.
        site: Name of the site the rows come from.
        root: Folder of all autoencoders.
        model: Hash of the weights of the model the rows come from.
        checkpoint_every: Steps between checkpoints.

    Raises:
        InputError: There are fewer rows than one batch, or the rows are not (row, d), not finite or
            constant.

    Examples:
        >>> from pathlib import Path
        >>> config = exhume.SaeConfig(expansion=2, k=4, batch_size=16)
        >>> exhume.train_sae(states.site("resid.0"), "resid.0", Path("saes"), config)
        Sae(topk at resid.0, 32 -> 64)
    """
    key = _cache_key(rows, site, config, model)
    folder = Path(root) / key
    if not folder.is_dir():
        _train(rows, site, folder, config, model, checkpoint_every, progress)
    return load_sae(folder)


def _cache_key(rows: Any, site: str, config: SaeConfig, model: str) -> str:
    if len(rows.shape) != 2 or rows.shape[0] < config.batch_size:
        raise InputError(
            "there are too few states to train an autoencoder",
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
            raise InputError("the states hold NaN or infinity", fix="Capture them in float32")
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

    mean, limit, scale = _norm_statistics(rows)
    usable = _inlier_rows(rows, limit)
    per_epoch = sum(len(inliers) // config.batch_size for inliers in usable)
    steps = max(1, per_epoch * config.epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(config.seed, "sae") % 2**31)
        sae = _training_model(config, rows.shape[1], steps)
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
    trainer = library.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.batch_size,
            train_batch_size_samples=config.batch_size,
            lr=config.lr,
            lr_end=config.lr / 10,
            lr_decay_steps=steps // 5,
            # Counted in steps: revive latents that were silent for a tenth of the run.
            dead_feature_window=max(20, steps // 10),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    part = folder.with_name(folder.name + ".part")
    _resume(trainer, part)
    with as_progress(progress).task(f"autoencoder at {site}", steps) as advance:
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
    """A new sae-lens training model."""
    library = sae_lens()
    latents = config.expansion * width
    shared: dict[str, int | bool] = {"d_in": width, "d_sae": latents, "apply_b_dec_to_input": True}
    if config.kind == "topk":
        sae_config = library.TopKTrainingSAEConfig(k=config.k, **shared)
        return library.TopKTrainingSAE(sae_config)
    if config.kind == "batchtopk":
        sae_config = library.BatchTopKTrainingSAEConfig(k=config.k, **shared)
        return library.BatchTopKTrainingSAE(sae_config)
    if config.kind == "matryoshka":
        sae_config = library.MatryoshkaBatchTopKTrainingSAEConfig(
            k=config.k, matryoshka_widths=matryoshka_widths(latents), **shared
        )
        return library.MatryoshkaBatchTopKTrainingSAE(sae_config)
    sae_config = library.JumpReLUTrainingSAEConfig(
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=float(config.k),
        l0_warm_up_steps=steps // 4,
        jumprelu_bandwidth=0.5,
        jumprelu_init_threshold=0.1,
        jumprelu_ste_to_input=True,
        **shared,
    )
    return library.JumpReLUTrainingSAE(sae_config)


def matryoshka_widths(latents: int) -> list[int]:
    """Widths of the nested prefixes of a Matryoshka autoencoder."""
    widths = {max(1, latents // part) for part in (16, 8, 4, 2)}
    return [*sorted(widths), latents]


def _norm_statistics(rows: Any) -> tuple[Tensor, float, float]:
    """Mean state, largest norm that is used, and the scale to norm sqrt(d)."""
    sample = np.asarray(rows[: 4 * CHUNK_ROWS], dtype=np.float32)
    norms = np.linalg.norm(sample - np.median(sample, axis=0), axis=1)
    limit = MAX_NORM_RATIO * float(np.median(norms))
    inliers = sample[norms <= limit]
    spread = float(np.linalg.norm(inliers - inliers.mean(0), axis=1).mean()) if len(inliers) else 0
    if spread <= 1e-6 * max(float(np.abs(sample).max()), 1e-12):
        raise InputError(
            "the states do not vary, so there is nothing to learn", expected="rows that differ"
        )
    return (torch.from_numpy(inliers.mean(0)), limit, float(sample.shape[1] ** 0.5 / spread))


def _inlier_rows(rows: Any, limit: float) -> list[np.ndarray]:
    """Indices of the rows that are no outliers, by chunk."""
    median = np.median(np.asarray(rows[: 4 * CHUNK_ROWS], dtype=np.float32), axis=0)
    inliers = []
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        chunk = np.asarray(rows[start : start + CHUNK_ROWS], dtype=np.float32)
        norms = np.linalg.norm(chunk - median, axis=1)
        inliers.append(np.flatnonzero(norms <= limit))
    return inliers


def _batches(rows: Any, usable: list[np.ndarray], config: SaeConfig) -> Iterator[Tensor]:
    """Batches in an order that depends on the seed alone."""
    for epoch in range(config.epochs):
        rng = numpy_rng(config.seed, "sae", "order", str(epoch))
        for number in rng.permutation(len(usable)):
            order = rng.permutation(usable[number])
            start = number * CHUNK_ROWS
            chunk = np.asarray(rows[start : start + CHUNK_ROWS], dtype=np.float32)
            for first in range(0, len(order) - config.batch_size + 1, config.batch_size):
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
    """Load the last checkpoint, if there is one."""
    if not part.is_dir():
        return
    from safetensors.torch import load_file

    try:
        trainer.sae.load_state_dict(load_file(part / "sae.safetensors"))
        # torch.load uses weights_only here, so no code in the file is run.
        trainer.load_trainer_state(part)
    except Exception as error:  # damaged files make torch raise many types of errors
        raise InputError(
            f"the interrupted training in {part} cannot be resumed ({type(error).__name__})",
            fix="Delete that folder to start again",
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
    """Save the inference model with a calibrated threshold, and its metadata."""
    sae.save_inference_model(str(scratch))
    metadata = {"site": site, "kind": config.kind, "model": model} | {"config": asdict(config)}
    write_atomic(scratch / METADATA_FILE, json.dumps(metadata))
    trained = load_sae(scratch)

    def chunks(max_chunks: int = 4) -> Iterator[np.ndarray]:
        for number, inliers in enumerate(usable[:max_chunks]):
            chunk = np.asarray(rows[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS])
            for first in range(0, len(inliers), 4096):
                yield chunk[inliers[first : first + 4096]]

    if config.kind in ("batchtopk", "matryoshka"):
        _calibrate_threshold(trained, next(chunks()), config.k)
        trained.module.save_model(str(scratch))
    is_active = torch.zeros(trained.d_sae, dtype=torch.bool)
    for chunk in chunks():
        is_active |= (trained.encode(torch.as_tensor(chunk, dtype=torch.float32)) > 0).any(0)
    quality = measure_quality(trained, chunks())
    metadata |= {
        "dead": (~is_active).nonzero()[:, 0].tolist(),
        "prefixes": matryoshka_widths(trained.d_sae) if config.kind == "matryoshka" else [],
        "quality": asdict(quality),
    }
    write_atomic(scratch / METADATA_FILE, json.dumps(metadata))


def _calibrate_threshold(sae: Sae, rows: np.ndarray, k: int) -> None:
    """Set the threshold at which k latents per row are active on average.

    The threshold learned in training is a running mean, which lags behind in short runs.
    """
    module = sae.module
    with torch.no_grad():
        x = module.process_sae_in(torch.as_tensor(rows, dtype=torch.float32))
        latents = torch.relu(x @ module.W_enc + module.b_enc).flatten()
        kth_largest = torch.topk(latents, min(k * len(rows), len(latents))).values[-1]
        # Latents are active strictly above the threshold; include the k-th.
        module.threshold.fill_(float(kth_largest) * (1 - 1e-6))


class StoredRows:
    """The activations at one site, one row per stored position, read when sliced.

    Attributes:
        shape: (row, d), as of an array.
    """

    def __init__(self, activations: Activations, site: str):
        """Count the positions of each item; no value is read yet.

        Args:
            activations: In memory or in the store; one or several positions per item.
            site: Name of the site.

        Raises:
            InputError: The site was not captured, or its values do not have one width.
        """
        if site not in activations.arrays:
            raise InputError(
                f"site {site!r} was not captured",
                expected=f"one of {', '.join(activations.sites[:6])}",
                got=repr(site),
            )
        self._values: Any = activations.arrays[site]
        shape = tuple(self._values.shape)
        if len(shape) not in (2, 3):
            raise InputError(
                f"the values at {site} do not have one width",
                expected="(item, d) or (item, position, d)",
                got=str(shape),
            )
        n_positions = shape[1] if len(shape) == 3 else 1
        mask = np.ones((shape[0], n_positions), dtype=bool)
        if len(shape) == 3 and activations.mask is not None:
            mask = activations.mask
        self._mask: NDArray[np.bool_] = mask
        # Index of the first row of each item, and the number of rows.
        self._starts = np.concatenate([[0], mask.sum(1).cumsum()])
        self.shape = (int(self._starts[-1]), int(shape[-1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """(row, d) float32 values of a contiguous range of rows.

        Raises:
            InputError: The slice has a step other than 1.
        """
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise InputError(
                "stored rows are read as contiguous slices", expected="a step of 1", got=str(step)
            )
        if stop <= start:
            return np.zeros((0, self.shape[1]), dtype=np.float32)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        values = np.asarray(self._values[first:last], dtype=np.float32)
        flat = values.reshape(-1, self.shape[1])[self._mask[first:last].ravel()]
        skipped = start - int(self._starts[first])
        return flat[skipped : skipped + stop - start]
