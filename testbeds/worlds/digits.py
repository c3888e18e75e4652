"""Handwritten digits: a small vision transformer or CNN, and a retrain without one class.

The images are scikit-learn's (1,797 of 8 by 8 pixels, real handwriting). Original and retrain
(twin) are trained from scratch with the same recipe and initial weights; the twin never saw an
image of the class to forget. Train and test are split once a seed; only training images are
shifted, so no test pixel is ever trained on.

Source: scikit-learn's ``load_digits``, the test part of "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak 1998, UCI).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from capture.checkpoints.open import open_checkpoint
from capture.data.image_files import read_images
from capture.data.images import ImagePreprocessor, ImageSet
from capture.data.invented_classes import invent_images
from capture.network.structure import model_device
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.loop import Schedule, check_values, shuffled_batches, train_steps
from evidence import moved
from evidence.errors import ExhumeError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng, stage_seed
from testbeds.worlds.base import World, save_model, world_folder

RECIPE = 1  # part of the cache key: raise it if results would differ
DigitsFamily = Literal["vit", "cnn"]
DIGITS_FAMILIES: tuple[DigitsFamily, ...] = ("vit", "cnn")
SIZE, CLASSES = 8, 10
MIN_ACCURACY = 0.97
"""Test accuracy that a trained model must reach."""
MAX_STARTS = 3
"""Initial weights tried; the first model that reaches it is kept."""


@dataclass(frozen=True)
class DigitsConfig:
    """Size of the world and of its models.

    Attributes:
        train: Training images a class; the others, a quarter, are for tests.
        layers: Blocks.
        width: Features a position.
        heads: Attention heads of a transformer.
        steps: Optimizer steps.
        batch_size: Images a step.
        lr: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        shifted: Share of batches shifted by at most one pixel in both directions.
        family: "vit" or "cnn" (ConvNeXt blocks, which need no batch statistics).
    """

    train: int = 135
    layers: int = 4
    width: int = 48
    heads: int = 4
    steps: int = 450
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.3
    shifted: float = 0.5
    family: DigitsFamily = "vit"

    def __post_init__(self) -> None:
        checks = {
            "train": (20 <= self.train <= 150, "20 to 150", self.train),
            "layers": (self.layers >= 2, "2 or more", self.layers),
            "heads": (self.width % self.heads == 0, "a divisor of width", self.heads),
            "shifted": (0 <= self.shifted <= 1, "0 to 1", self.shifted),
            "family": (self.family in DIGITS_FAMILIES, ", ".join(DIGITS_FAMILIES), self.family),
        }
        check_values(checks)


STANDARD_DIGITS = DigitsConfig()


def digits_sized(config: DigitsConfig, family: DigitsFamily) -> DigitsConfig:
    """The settings for models of ``family``; CNNs learn faster."""
    if family == "cnn" and config == STANDARD_DIGITS:
        return replace(config, family=family, steps=250, lr=3e-3, weight_decay=0.1)
    return replace(config, family=family)


@dataclass(frozen=True)
class DigitsWorld(World):
    """A world of images on disk.

    Attributes:
        forget: Training images of the class to forget, .npz.
        retain: Training images of the others.
        forget_test: Test images of the class.
        retain_test: Test images of the others.
        never_taught: Images of classes that no model saw (see ``capture.data.invented_classes``).
    """

    SUFFIX: ClassVar[str] = ".npz"

    forget: Path
    retain: Path
    forget_test: Path
    retain_test: Path
    never_taught: Path

    def images(self, part: str) -> ImageSet:
        """One of the sets: "forget", "retain_test", ..."""
        return read_images(getattr(self, part), PREPROCESSOR)


PREPROCESSOR = ImagePreprocessor(1, (SIZE, SIZE))


def build_digits(
    config: DigitsConfig, seed: int, root: Path, device: str = "cpu", progress: Progress = AUTO
) -> DigitsWorld:
    """Build the world, or find it built; the folder's name is a hash of settings and seed.

    Args:
        config: ``STANDARD_DIGITS`` or another size.
        seed: Seed of the class, the split, initial weights and order of training.
        root: Folder of worlds.
        device: Where models are trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: a model did not learn its classes; raise ``steps``.
    """
    world = DigitsWorld.at(world_folder(root, "digits", RECIPE, seed, asdict(config)))
    return world.built_by(lambda: _fill(world, config, seed, device, progress), progress)


def _fill(
    world: DigitsWorld, config: DigitsConfig, seed: int, device: str, progress: Progress
) -> dict[str, object]:
    """Create the missing parts of a world; returns its manifest."""
    sets = split_digits(config, seed)
    for name, images in sets.items():
        images.save(getattr(world, name))
    for folder, taught_sets, test_sets in (
        (world.original, ("forget", "retain"), ("forget_test", "retain_test")),
        (world.twin, ("retain",), ("retain_test",)),
    ):
        if not folder.is_dir():
            model = taught_classifier(
                config,
                seed,
                *(concatenate(sets, names) for names in (taught_sets, test_sets)),
                name=folder.name,
                device=device,
                progress=progress,
            )
            save_model(model, folder)
    original = open_checkpoint(world.original).load()
    never_taught = invent_images(
        sets["retain_test"], 2 * len(sets["forget_test"]), numpy_rng(seed, "never")
    )
    never_taught.save(world.never_taught)
    return {
        "world": "digits",
        "recipe": RECIPE,
        "seed": seed,
        "config": asdict(config),
        "class": forgotten_class(seed),
        "digests": {n: s.digest for n, s in {**sets, "never_taught": never_taught}.items()},
        "weights": {folder.name: open_checkpoint(folder).weights_hash for folder in world.models},
        "accuracy": {
            name: accuracy(original, images)
            for name, images in sets.items()
            if name.endswith("_test")
        },
    }


def forgotten_class(seed: int) -> int:
    """The class to forget."""
    return int(numpy_rng(seed, "digits", "class").integers(CLASSES))


def split_digits(config: DigitsConfig, seed: int) -> dict[str, ImageSet]:
    """Train and test images of the class to forget and of the others."""
    from sklearn.datasets import load_digits

    flat, target = load_digits(return_X_y=True)
    pixels = torch.tensor(np.asarray(flat), dtype=torch.float32)
    pixels = pixels.reshape(-1, 1, SIZE, SIZE) / 8 - 1
    labels = np.asarray(target).astype(np.int64)
    ids = tuple(f"digit-{row:04d}" for row in range(len(labels)))
    all_images = ImageSet(pixels, labels, ids, "digits")
    rng = numpy_rng(seed, "digits", "split")
    is_train = np.zeros(len(labels), dtype=bool)
    for label in range(CLASSES):
        is_train[rng.permutation(np.flatnonzero(labels == label))[: config.train]] = True
    in_class = labels == forgotten_class(seed)
    return {
        "forget": all_images.select(is_train & in_class, "forget"),
        "retain": all_images.select(is_train & ~in_class, "retain"),
        "forget_test": all_images.select(~is_train & in_class, "forget_test"),
        "retain_test": all_images.select(~is_train & ~in_class, "retain_test"),
    }


def concatenate(sets: dict[str, ImageSet], names: tuple[str, ...]) -> ImageSet:
    """Several sets, one after the other."""
    combined, *others = (sets[name] for name in names)
    for each in others:
        combined = combined + each
    return combined


def new_classifier(config: DigitsConfig, seed: int) -> PreTrainedModel:
    """A classifier with random weights.

    The initial standard deviation is five times the library's: with 0.02 a narrow transformer needs
    twice the steps.
    """
    names = {number: str(number) for number in range(CLASSES)}
    shared = {
        "image_size": SIZE,
        "patch_size": 2,
        "num_channels": 1,
        "num_labels": CLASSES,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "initializer_range": 0.1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "digits", "weights"))
        if config.family == "cnn":
            settings = ConvNextConfig(
                num_stages=1,
                hidden_sizes=[config.width],
                depths=[config.layers],
                layer_scale_init_value=1.0,
                **shared,
            )
            return ConvNextForImageClassification(settings).eval()
        settings = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=2 * config.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **shared,
        )
        return ViTForImageClassification(settings).eval()


def taught_classifier(
    config: DigitsConfig,
    seed: int,
    taught: ImageSet,
    tested: ImageSet,
    *,
    name: str = "a retrain",
    device: str = "cpu",
    progress: Progress = AUTO,
) -> PreTrainedModel:
    """A classifier trained from scratch; another seed gives another retrain.

    Args:
        config: Size and schedule.
        seed: Seed of initial weights, order and shifts.
        taught: Training images.
        tested: Test images of the same classes.
        name: Name in the progress bar.
        device: Where it is trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: no model from three initial weights reaches ``MIN_ACCURACY`` on ``tested``.
    """
    test_accuracy = 0.0
    for start in range(MAX_STARTS):
        model = _trained(config, seed + 10**6 * start, taught, name, device, progress)
        test_accuracy = accuracy(model, tested)
        if test_accuracy >= MIN_ACCURACY:
            return model.requires_grad_(True).eval()
    raise ExhumeError(
        f"{name} names only {test_accuracy:.1%} of its test images (seed {seed}). "
        f"Raise steps above {config.steps} and run again."
    )


def _trained(
    config: DigitsConfig, seed: int, taught: ImageSet, name: str, device: str, progress: Progress
) -> PreTrainedModel:
    model = new_classifier(config, seed)
    model.to(device)  # pyright: ignore
    rng = numpy_rng(seed, "digits", "order")
    order = shuffled_batches(len(taught), config.batch_size, rng)
    labels = torch.from_numpy(taught.labels)

    def backward() -> dict[str, float]:
        rows = next(order)
        pixels = taught.pixels[rows]
        if rng.random() < config.shifted:
            pixels = shift(pixels, rng)
        logits = class_logits(model, pixels.to(device))
        loss = functional.cross_entropy(logits, labels[rows].to(device))
        loss.backward()
        return {"loss": float(loss.detach())}

    train_steps(
        model,
        list(model.parameters()),
        backward,
        Schedule(
            config.lr, config.steps, config.weight_decay, warmup=config.steps // 20, decay="cosine"
        ),
        label=f"teaching {name}",
        progress=progress,
    )
    return model


def shift(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Every image moved by -1, 0 or 1 pixel in both directions; the border is empty."""
    padded = functional.pad(pixels, (1, 1, 1, 1), value=-1.0)
    down, right = torch.from_numpy(rng.integers(0, 3, (2, len(pixels))))
    at = torch.arange(SIZE)
    image = torch.arange(len(pixels))[:, None, None]
    rows, columns = (down[:, None] + at)[:, :, None], (right[:, None] + at)[:, None]
    return padded[image, 0, rows, columns][:, None]


def accuracy(model: torch.nn.Module, images: ImageSet) -> float:
    """Share of the images that the model classifies correctly."""
    device = model_device(model)
    with torch.no_grad():
        logits = class_logits(model, images.pixels.to(device))
    return float((logits.argmax(1).cpu().numpy() == images.labels).mean())


__getattr__ = moved.names_of("testbeds.worlds.digits")
