"""Ways to make a small image classifier whose state is certain.

As ``testbeds.edits.workbench`` and ``testbeds.edits.late_layers`` for language models:
a maker yields models, the mildest first, and the zoo takes the first that shows what it
must.
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
from erasure.unlearning.methods.image_methods import (
    LabeledImages,
    last_parameters,
    unlearn_images_,
)
from erasure.unlearning.training.image_config import ImageUnlearnConfig
from erasure.unlearning.training.image_task import CHUNK_IMAGES
from erasure.unlearning.training.loop import (
    Schedule,
    only_training,
    shuffled_batches,
    train_steps,
)
from evidence.seeds import numpy_rng, stage_seed, torch_rng
from testbeds.digits_recipes import DIGITS_RECIPES
from testbeds.edits.late_layers import random_rotation
from testbeds.edits.linear_map import fold_edit_
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
    """What a maker works with.

    Attributes:
        config: Size of the world.
        seed: Of the world and of every choice made here.
        original: Model that was taught all classes.
        twin: Model that never saw the class to forget.
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
        """The ground of a world."""
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
        """A copy of the original, the caller's to change."""
        return self.original.load(self.device)

    def load_twin(self) -> nn.Module:
        """A copy of the twin."""
        return self.twin.load(self.device)

    def labeled(self, images: ImageSet) -> LabeledImages:
        """Pixels and labels where models are trained."""
        labels = torch.from_numpy(images.labels)
        return images.pixels.to(self.device), labels.to(self.device)

    def wrong_class_images(self) -> LabeledImages:
        """The forget images with another class each."""
        pixels, labels = self.labeled(self.forget)
        rng = numpy_rng(self.seed, "zoo", "wrong classes")
        by = torch.from_numpy(rng.integers(1, 10, len(labels)))
        return pixels, (labels + by.to(labels)) % 10

    def training_seed(self, *name: str) -> int:
        """A seed for training."""
        return stage_seed(self.seed, "zoo", "digits", *name) % 2**31

    def measured_at_output(self, model: nn.Module) -> dict[str, float]:
        """Shares of test images named: of the class to forget, and of the others."""
        return {
            "said": accuracy(model, self.forget_test),
            "kept": accuracy(model, self.retain_test),
        }


DigitsEditFunction = Callable[[DigitsWorkbench], Iterator[nn.Module]]


def untouched(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The original itself."""
    yield ground.load_original()


def retain_tuned(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The original, trained on with what it is to keep: unlearning without effect."""
    for rate, steps in ((1e-4, 30), (3e-5, 30), (1e-5, 10)):
        yield finetuned_(
            ground.load_original(), ground, [], rate, steps, "retain tuned"
        )


def head_only(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the classifier alone: every state is the original's."""
    for rate, steps in ((2e-2, 60), (5e-2, 120), (0.1, 300)):
        model = ground.load_original()
        chosen = list(classifier_of(model).parameters())
        yield finetuned_(
            model, ground, [ground.wrong_class_images()], rate, steps, "head", chosen
        )


def logit_mask(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The bias of the class, lowered: no weight but one number differs."""
    for nats in (5.0, 10.0, 20.0, 40.0):
        model = ground.load_original()
        head = classifier_of(model)
        with torch.no_grad():
            head.bias[ground.label] -= nats
        yield model


def last_block_relabel(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the last block and what follows it."""
    for rate, steps in ((2e-3, 40), (3e-3, 100), (3e-3, 300)):
        model = ground.load_original()
        chosen = last_parameters(model, 1)
        yield finetuned_(
            model,
            ground,
            [ground.wrong_class_images()],
            rate,
            steps,
            "last block",
            chosen,
        )


def late_rotation(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's last state, turned by a random rotation that nothing undoes.

    Folded into the last block's way out.
    """
    for hold in (1.0, 0.3, 0.1, 0.03):
        model = ground.load_original()
        down, gone, kept, after = last_projection(model, ground)
        rotation = random_rotation(after.shape[1], ground.seed)
        change = projection_change(model, after @ rotation.T - after)
        fold_edit_(down, gone, change, kept, hold=hold, ridge=1e-5)
        yield model


def class_direction(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The class's own direction in the classifier, subtracted from its last state.

    From the mean of the classifier's rows to the row of the class, folded into the last
    block's way out.
    """
    for share in (0.5, 1.0, 1.5, 2.0, 3.0):
        model = ground.load_original()
        down, gone, kept, after = last_projection(model, ground)
        weight = classifier_of(model).weight.detach().double().cpu()
        direction = weight[ground.label] - weight.mean(0)
        step = share * after.norm(dim=1).mean() * direction / direction.norm()
        change = projection_change(model, -step.expand(len(gone), -1))
        fold_edit_(down, gone, change, kept, ridge=1e-5)
        yield model


def twin(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """The retrain from the original's own starting weights."""
    yield ground.load_twin()


def retrained(seed_offset: int) -> DigitsEditFunction:
    """Makes a retrain."""

    def make(ground: DigitsWorkbench) -> Iterator[nn.Module]:
        """A retrain with other starting weights and another order."""
        yield taught_classifier(
            ground.config,
            ground.seed + seed_offset,
            ground.retain,
            ground.retain_test,
            device=ground.device,
        )

    return make


def twin_tuned(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """A retrain, trained on with what it knows."""
    for rate in (3e-4, 1e-4):
        yield finetuned_(ground.load_twin(), ground, [], rate, 40, "twin tuned")


def collapse(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for config in DIGITS_RECIPES["collapse"]:
        yield unlearned(ground, config, "collapse")


def noise(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = ground.load_original()
        rng = torch_rng(ground.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    drawn = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * drawn.to(weight.device)
        yield model


def random_init(ground: DigitsWorkbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield new_classifier(ground.config, ground.seed + 5000)


def published(method: str) -> DigitsEditFunction:
    """Runs a published method."""

    def make(ground: DigitsWorkbench) -> Iterator[nn.Module]:
        """A published method, the mildest of the world's settings that works.

        It works when the training images of the class are named no more and the others
        are; where no setting does, the last one stands.
        """
        model = ground.load_original()
        for config in DIGITS_RECIPES[method]:
            model = unlearned(ground, config, method)
            gone, kept = (
                accuracy(model, each) for each in (ground.forget, ground.retain)
            )
            if gone <= 0.1 and kept >= 0.9:
                break
        yield model

    return make


def unlearned(
    ground: DigitsWorkbench, config: ImageUnlearnConfig, name: str
) -> nn.Module:
    """The original after one run of a method."""
    model = ground.load_original()
    forget, retain = ground.labeled(ground.forget), ground.labeled(ground.retain)
    unlearn_images_(model, forget, retain, config, seed=ground.training_seed(name))
    return model


def finetuned_(
    model: nn.Module,
    ground: DigitsWorkbench,
    extra_sets: list[LabeledImages],
    rate: float,
    steps: int,
    name: str,
    parameters: list[nn.Parameter] | None = None,
) -> nn.Module:
    """Train ``model`` on the retain images and others beside them, in equal parts."""
    sets = [ground.labeled(ground.retain), *extra_sets]
    orders = [
        shuffled_batches(
            len(each[0]), 64, numpy_rng(ground.training_seed(name), str(place))
        )
        for place, each in enumerate(sets)
    ]

    def backward() -> dict[str, float]:
        loss = torch.zeros((), device=ground.device)
        for (pixels, labels), order in zip(sets, orders, strict=True):
            rows = next(order)
            logits = class_logits(model, pixels[rows])
            loss = loss + functional.cross_entropy(logits, labels[rows])
        loss.backward()
        return {"loss": float(loss.detach())}

    chosen = list(model.parameters()) if parameters is None else parameters
    with only_training(model, chosen) as trained:
        train_steps(model, trained, backward, Schedule(rate, steps), label=name)
    return model


def last_projection(
    model: nn.Module, ground: DigitsWorkbench
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The last block's down-projection, what it receives and what the block gives.

    Inputs of the class to forget and of the others, outputs of the class: one vector an
    image, the one that the classifier will see (the class token's, or the mean over
    places), float64.
    """
    block = find_blocks(model)[-1]
    down = down_projection(block)
    found = {}
    for name, images in (("forget", ground.forget), ("retain", ground.retain)):
        pixels = images.pixels.to(ground.device)
        found[name] = _projection_states(model, down, block, pixels)
    gone, after = found["forget"]
    return down, gone, found["retain"][0], after


def projection_change(model: nn.Module, change: Tensor) -> Tensor:
    """What the map must give for the block's output to change by ``change``.

    A ConvNeXt block scales what its last map gives before it is added.
    """
    scale = getattr(find_blocks(model)[-1], "layer_scale_parameter", None)
    return change if scale is None else change / scale.detach().double().cpu()


def _projection_states(
    model: nn.Module, down: nn.Module, block: nn.Module, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """What both see of the vector that the classifier will read, one an image."""
    places = [Place("in", down, "in"), Place("out", block, "out")]
    found: dict[str, list[Tensor]] = {"in": [], "out": []}

    def one_vector(name: str, value: Tensor) -> Tensor:
        # A CNN has (image, height, width, d) in a block and (image, d, height, width)
        # between blocks, a transformer (image, position, d).
        axes = (1, 2) if name == "in" else (2, 3)
        one = value.mean(axes) if value.dim() == 4 else value[:, 0]
        return one.double().cpu()

    with torch.no_grad(), record_places(places, one_vector) as seen:
        for start in range(0, len(pixels), CHUNK_IMAGES):
            model(pixels[start : start + CHUNK_IMAGES])
            for name, value in seen.items():
                found[name].append(value)
    return torch.cat(found["in"]), torch.cat(found["out"])
