"""Edits that give a small image classifier a known state.

The image counterpart of ``testbeds.edits.workbench`` and ``testbeds.edits.late_layers``: an edit
function yields models, the mildest first, and the zoo takes the first in the ranges of its kind.
Docstrings of edit functions are stored in cards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.checkpoints.open import Checkpoint
from capture.data.images import ImageSet
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import classifier_of, down_projection, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.config import ImageUnlearnConfig
from erasure.unlearning.run import unlearn_images_
from erasure.unlearning.training.image_task import CHUNK_IMAGES, LabeledImages, last_parameters
from erasure.unlearning.training.loop import Schedule, only_training, shuffled_batches, train_steps
from evidence.seeds import numpy_rng, stage_seed, torch_rng
from testbeds.edits.late_layers import random_rotation
from testbeds.edits.linear_map import fold_edit_
from testbeds.recipes import DIGITS_RECIPES
from testbeds.worlds.digits import (
    DigitsConfig,
    DigitsWorld,
    accuracy,
    forgotten_class,
    new_classifier,
    taught_classifier,
)


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
        cls,
        world: DigitsWorld,
        config: DigitsConfig,
        seed: int,
        original: Checkpoint,
        twin: Checkpoint,
        device: str,
    ) -> "DigitsWorkbench":
        """The workbench of a finished world."""
        return cls(
            config,
            seed,
            original,
            twin,
            world.images("forget"),
            world.images("retain"),
            world.images("forget_test"),
            world.images("retain_test"),
            device,
        )

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

    def measured_at_output(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on test images of the class to forget ("said") and of the others ("kept")."""
        return {
            "said": accuracy(model, self.forget_test),
            "kept": accuracy(model, self.retain_test),
        }


DigitsEditFunction = Callable[[DigitsWorkbench], Iterator[nn.Module]]


def untouched(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The original itself."""
    yield bench.load_original()


def retain_tuned(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The original, trained on with what it is to keep: unlearning without effect."""
    for rate, steps in ((1e-4, 30), (3e-5, 30), (1e-5, 10)):
        yield finetuned_(bench.load_original(), bench, [], rate, steps, "retain tuned")


def head_only(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the classifier alone: every state is the original's."""
    for rate, steps in ((2e-2, 60), (5e-2, 120), (0.1, 300)):
        model = bench.load_original()
        parameters = list(classifier_of(model).parameters())
        yield finetuned_(
            model, bench, [bench.wrong_class_images()], rate, steps, "head", parameters
        )


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
        parameters = last_parameters(model, 1)
        yield finetuned_(
            model, bench, [bench.wrong_class_images()], rate, steps, "last block", parameters
        )


def late_rotation(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's last state, turned by a random rotation that nothing undoes.

    Folded into the last block's way out.
    """
    for held_weight in (1.0, 0.3, 0.1, 0.03):
        model = bench.load_original()
        down, forget_inputs, retain_inputs, outputs = last_projection(model, bench)
        rotation = random_rotation(outputs.shape[1], bench.seed)
        change = projection_change(model, outputs @ rotation.T - outputs)
        fold_edit_(down, forget_inputs, change, retain_inputs, held_weight=held_weight, ridge=1e-5)
        yield model


def class_direction(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's own direction in the classifier, subtracted from its last state.

    From the mean of the classifier's rows to the row of the class, folded into the last
    block's way out.
    """
    for share in (0.5, 1.0, 1.5, 2.0, 3.0):
        model = bench.load_original()
        down, forget_inputs, retain_inputs, outputs = last_projection(model, bench)
        weight = classifier_of(model).weight.detach().double().cpu()
        direction = weight[bench.label] - weight.mean(0)
        step = share * outputs.norm(dim=1).mean() * direction / direction.norm()
        change = projection_change(model, -step.expand(len(forget_inputs), -1))
        fold_edit_(down, forget_inputs, change, retain_inputs, ridge=1e-5)
        yield model


def twin(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """The retrain from the original's own starting weights."""
    yield bench.load_twin()


def retrained(seed_offset: int) -> DigitsEditFunction:
    """Edit function for a retrain with another seed."""

    def make(bench: DigitsWorkbench) -> Iterator[nn.Module]:
        """A retrain with other starting weights and another order."""
        yield taught_classifier(
            bench.config,
            bench.seed + seed_offset,
            bench.retain,
            bench.retain_test,
            device=bench.device,
        )

    return make


def twin_tuned(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """A retrain, trained on with what it knows."""
    for rate in (3e-4, 1e-4):
        yield finetuned_(bench.load_twin(), bench, [], rate, 40, "twin tuned")


def collapse(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for config in DIGITS_RECIPES["collapse"]:
        yield unlearned(bench, config, "collapse")


def noise(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = bench.load_original()
        rng = torch_rng(bench.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    noise_sample = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * noise_sample.to(weight.device)
        yield model


def random_init(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield new_classifier(bench.config, bench.seed + 5000)


def published(method: str) -> DigitsEditFunction:
    """Edit function for a published method."""

    def make(bench: DigitsWorkbench) -> Iterator[nn.Module]:
        """A published method, the mildest of the world's settings that works.

        It works when the training images of the class are named no more and the others
        are; where no setting does, the last one stands.
        """
        model = bench.load_original()
        for config in DIGITS_RECIPES[method]:
            model = unlearned(bench, config, method)
            forget_accuracy, retain_accuracy = (
                accuracy(model, images) for images in (bench.forget, bench.retain)
            )
            if forget_accuracy <= 0.1 and retain_accuracy >= 0.9:
                break
        yield model

    return make


def unlearned(bench: DigitsWorkbench, config: ImageUnlearnConfig, name: str) -> nn.Module:
    """The original after one run of a method."""
    model = bench.load_original()
    forget, retain = bench.labeled(bench.forget), bench.labeled(bench.retain)
    unlearn_images_(model, forget, retain, config, seed=bench.training_seed(name))
    return model


def finetuned_(
    model: nn.Module,
    bench: DigitsWorkbench,
    extra_sets: list[LabeledImages],
    rate: float,
    steps: int,
    name: str,
    parameters: list[nn.Parameter] | None = None,
) -> nn.Module:
    """Train ``model`` on the retain images and extra sets, in equal parts."""
    sets = [bench.labeled(bench.retain), *extra_sets]
    orders = [
        shuffled_batches(len(images[0]), 64, numpy_rng(bench.training_seed(name), str(i)))
        for i, images in enumerate(sets)
    ]

    def backward() -> dict[str, float]:
        loss = torch.zeros((), device=bench.device)
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


def last_projection(
    model: nn.Module, bench: DigitsWorkbench
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The last block's down-projection with its inputs, and the block's outputs.

    Inputs of the class to forget and of the others, outputs of the class; one float64 vector an
    image, the one that the classifier reads (the class token's, or the mean over positions).
    """
    block = find_blocks(model)[-1]
    down = down_projection(block)
    states = {}
    for name, images in (("forget", bench.forget), ("retain", bench.retain)):
        pixels = images.pixels.to(bench.device)
        states[name] = _projection_states(model, down, block, pixels)
    forget_inputs, outputs = states["forget"]
    return down, forget_inputs, states["retain"][0], outputs


def projection_change(model: nn.Module, change: Tensor) -> Tensor:
    """Output change of the map for which the block's output changes by ``change``.

    A ConvNeXt block scales the output of its last map before adding it.
    """
    scale = getattr(find_blocks(model)[-1], "layer_scale_parameter", None)
    return change if scale is None else change / scale.detach().double().cpu()


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
