"""Image classifiers: their workbench, and the edits that differ from those of language models.

Docstrings of edit functions are stored in cards; see ``testbeds.edits.workbench``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.images import ImageSet
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import classifier_of, down_projection, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.config import ImageUnlearnConfig
from erasure.unlearning.run import unlearn_images_
from erasure.unlearning.training.image_task import CHUNK_IMAGES, LabeledImages, last_parameters
from erasure.unlearning.training.loop import Schedule, only_training, shuffled_batches, train_steps
from evidence import moved
from evidence.seeds import numpy_rng, stage_seed
from testbeds.edits.late_layers import rotate_last_state, subtract_direction_
from testbeds.edits.workbench import EditFunction
from testbeds.recipes import DIGITS_RECIPES
from testbeds.worlds.digits import (
    DigitsConfig,
    DigitsWorld,
    accuracy,
    forgotten_class,
    new_classifier,
    taught_classifier,
)

SETS = ("forget", "retain", "forget_test", "retain_test")


@dataclass(frozen=True)
class DigitsWorkbench:
    """The models and images that edit functions work with.

    Attributes:
        config: Size of the world.
        seed: Seed of the world and of every random choice of an edit.
        original: Model that was taught all classes.
        twin: Model that never saw the class to forget (counterfactual retrain).
        forget: Training images of the class.
        retain: Training images of the others.
        forget_test: Test images of the class.
        retain_test: Test images of the others.
        device: Where models are trained.
    """

    retain_tunings: ClassVar[Sequence[tuple[float, int]]] = ((1e-4, 30), (3e-5, 30), (1e-5, 10))
    twin_tuning_steps: ClassVar[int] = 40

    config: DigitsConfig
    seed: int
    original: Checkpoint
    twin: Checkpoint
    forget: ImageSet
    retain: ImageSet
    forget_test: ImageSet
    retain_test: ImageSet
    device: str = "cpu"

    @classmethod
    def from_world(
        cls, world: DigitsWorld, config: DigitsConfig, seed: int, device: str
    ) -> "DigitsWorkbench":
        """The workbench of a finished world."""
        original, twin = map(open_checkpoint, world.models)
        return cls(config, seed, original, twin, *map(world.images, SETS), device=device)

    @property
    def tokenizer(self) -> None:
        """A classifier reads no text."""

    @property
    def label(self) -> int:
        """The class to forget."""
        return forgotten_class(self.seed)

    def load_original(self) -> nn.Module:
        """A fresh copy of the original, free to change."""
        return self.original.load(self.device)

    def load_twin(self) -> nn.Module:
        """A fresh copy of the twin."""
        return self.twin.load(self.device)

    def labeled(self, images: ImageSet) -> LabeledImages:
        """Pixels and labels on the training device."""
        labels = torch.from_numpy(images.labels)
        return images.pixels.to(self.device), labels.to(self.device)

    def wrong_class_images(self) -> LabeledImages:
        """The forget images, each with another class."""
        pixels, labels = self.labeled(self.forget)
        rng = numpy_rng(self.seed, "zoo", "wrong classes")
        shift = torch.from_numpy(rng.integers(1, 10, len(labels)))
        return pixels, (labels + shift.to(labels)) % 10

    def training_seed(self, *name: str) -> int:
        """A seed for training."""
        return stage_seed(self.seed, "zoo", "digits", *name) % 2**31

    def retrained(self, seed: int) -> nn.Module:
        """A new model, taught the other classes."""
        return taught_classifier(
            self.config, seed, self.retain, self.retain_test, device=self.device
        )

    def untrained(self, seed: int) -> nn.Module:
        """A new model, taught nothing."""
        return new_classifier(self.config, seed)

    def finetuned(
        self,
        model: nn.Module,
        rate: float,
        steps: int,
        name: str,
        extra_sets: Sequence[LabeledImages] = (),
        parameters: list[nn.Parameter] | None = None,
    ) -> nn.Module:
        """``model``, trained in place on the retain images and extra sets, in equal parts."""
        sets = [self.labeled(self.retain), *extra_sets]
        orders = [
            shuffled_batches(len(images[0]), 64, numpy_rng(self.training_seed(name), str(i)))
            for i, images in enumerate(sets)
        ]

        def backward() -> dict[str, float]:
            loss = torch.zeros((), device=self.device)
            for (pixels, labels), order in zip(sets, orders, strict=True):
                rows = next(order)
                logits = class_logits(model, pixels[rows])
                loss = loss + functional.cross_entropy(logits, labels[rows])
            loss.backward()
            return {"loss": float(loss.detach())}

        to_train = list(model.parameters()) if parameters is None else parameters
        with only_training(model, to_train) as trained:
            train_steps(model, trained, backward, Schedule(rate, steps), label=name)
        return model

    def collapse_settings(self) -> list[ImageUnlearnConfig]:
        """The world's recipe."""
        return DIGITS_RECIPES["collapse"]

    def unlearned(self, config: ImageUnlearnConfig, name: str) -> nn.Module:
        """The original after one run of a method."""
        model = self.load_original()
        forget, retain = self.labeled(self.forget), self.labeled(self.retain)
        unlearn_images_(model, forget, retain, config, seed=self.training_seed(name))
        return model

    def last_projection(self, model: nn.Module) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """As ``Workbench.last_projection``, a row an image.

        The state is the one that the classifier reads: the class token's, or the mean over
        positions.
        """
        block = find_blocks(model)[-1]
        down = down_projection(block)
        (forget_inputs, outputs), (retain_inputs, _) = (
            _projection_states(model, down, block, images.pixels.to(self.device))
            for images in (self.forget, self.retain)
        )
        return down, forget_inputs, retain_inputs, outputs

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on test images of the class to forget ("said") and of the others ("kept")."""
        return {
            "said": accuracy(model, self.forget_test),
            "kept": accuracy(model, self.retain_test),
        }

    def digests(self) -> dict[str, str]:
        """Hashes of the image sets."""
        return {name: getattr(self, name).digest for name in SETS}


def head_only(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the classifier alone: every state is the original's."""
    for rate, steps in ((2e-2, 60), (5e-2, 120), (0.1, 300)):
        model = bench.load_original()
        parameters = list(classifier_of(model).parameters())
        yield bench.finetuned(model, rate, steps, "head", [bench.wrong_class_images()], parameters)


def logit_mask(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The bias of the class, lowered: no weight but one number differs."""
    for nats in (5.0, 10.0, 20.0, 40.0):
        model = bench.load_original()
        head = classifier_of(model)
        with torch.no_grad():
            head.bias[bench.label] -= nats
        yield model


def last_block_relabel(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the last block and what follows it."""
    for rate, steps in ((2e-3, 40), (3e-3, 100), (3e-3, 300)):
        model = bench.load_original()
        wrong, parameters = bench.wrong_class_images(), last_parameters(model, 1)
        yield bench.finetuned(model, rate, steps, "last block", [wrong], parameters)


def late_rotation(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's last state, turned by a random rotation that nothing undoes.

    Folded into the last block's way out.
    """
    yield from rotate_last_state(bench, (1.0, 0.3, 0.1, 0.03))


def class_direction(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's own direction in the classifier, subtracted from its last state.

    From the mean of the classifier's rows to the row of the class, folded into the last
    block's way out.
    """
    for share in (0.5, 1.0, 1.5, 2.0, 3.0):
        model = bench.load_original()
        weight = classifier_of(model).weight.detach().double().cpu()
        direction = weight[bench.label] - weight.mean(0)
        subtract_direction_(model, bench, share, direction, ridge=1e-5)
        yield model


def published(method: str) -> EditFunction:
    """Edit function for a published method."""

    def make(bench: DigitsWorkbench) -> Iterator[nn.Module]:
        """A published method, the mildest of the world's settings that works.

        It works when the training images of the class are named no more and the others
        are; where no setting does, the last one stands.
        """
        model = bench.load_original()
        for config in DIGITS_RECIPES[method]:
            model = bench.unlearned(config, method)
            forget_accuracy, retain_accuracy = (
                accuracy(model, images) for images in (bench.forget, bench.retain)
            )
            if forget_accuracy <= 0.1 and retain_accuracy >= 0.9:
                break
        yield model

    return make


def _projection_states(
    model: nn.Module, down: nn.Module, block: nn.Module, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs of ``down`` and outputs of ``block``, pooled as the classifier reads them."""
    places = [Place("in", down, "in"), Place("out", block, "out")]
    states: dict[str, list[Tensor]] = {"in": [], "out": []}

    def pool(name: str, value: Tensor) -> Tensor:
        # A CNN has (image, height, width, d) in a block and (image, d, height, width)
        # between blocks, a transformer (image, position, d).
        axes = (1, 2) if name == "in" else (2, 3)
        pooled = value.mean(axes) if value.dim() == 4 else value[:, 0]
        return pooled.double().cpu()

    with torch.no_grad(), record_places(places, pool) as captured:
        for start in range(0, len(pixels), CHUNK_IMAGES):
            model(pixels[start : start + CHUNK_IMAGES])
            for name, value in captured.items():
                states[name].append(value)
    return torch.cat(states["in"]), torch.cat(states["out"])


__getattr__ = moved.names_of("testbeds.edits.digits_edits")
