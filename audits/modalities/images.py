"""Image classifiers and images of classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audits.core.config import AuditConfig
from audits.core.context import ImageRun
from audits.core.inputs import ImageInputs, named_roles
from audits.core.roles import Role
from audits.modalities.amounts import image_amounts, image_work
from audits.modalities.base import Modality, Sources
from audits.modalities.image_sets import (
    EvaluationSets,
    check_swapped,
    predicted_classes,
    score_baseline,
    select,
)
from audits.modalities.planting import Planted, plant
from audits.modalities.vocabulary import CLASS
from capture.checkpoints.open import Checkpoint, check_base, open_checkpoint
from capture.data.image_files import is_image_source, read_images
from capture.data.images import ImagePreprocessor, ImageSet, is_image_classifier
from capture.network.network_size import network_size
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.image_task import last_parameters
from erasure.unlearning.training.loop import Schedule, only_training, train_steps
from evidence.errors import InputError
from evidence.progress import Progress
from evidence.seeds import numpy_rng

NOT_MEASURED = (
    "Not measured on image models: free text, general text and paraphrases, which a classifier "
    "does not have. Its utility is the share of the other classes' images that it predicts, and "
    "the effective rank of its states."
)
MIN_RETAIN_CLASSES = 2
"""Minimum number of retain classes: never-taught images compose halves of two."""
MIN_NEVER_TAUGHT_IMAGES = 8
"""Minimum size of the largest class of given never-taught images."""


def open_images(sources: Sources, config: AuditConfig, progress: Progress) -> ImageInputs:
    """Open the models, read images with the original's preprocessing, check compatibility.

    Raises:
        InputError: inputs that cannot be audited; no model has been run.
    """
    never_taught = sources.never_taught
    others = named_roles(sources.unlearned, sources.references)
    base = sources.base
    check_base(base, (sources.original, *(source for _, source in others)))
    first = open_checkpoint(sources.original, name="original", base=base, progress=progress)
    _check_classifier(first)
    network_size(first)
    _check_one_stage(first)
    preprocessor = ImagePreprocessor.from_config(first.config, first.path)
    forget_images = read_images(sources.forget, preprocessor, "forget")
    retain_images = read_images(sources.retain, preprocessor, "retain")
    never = None
    if never_taught is not None:
        # Never-taught classes are not among the model's classes.
        never_taught_preprocessor = replace(preprocessor, classes=None)
        never = read_images(never_taught, never_taught_preprocessor, "never_taught")
        never_taught_preprocessor.check(never)
    for images in (forget_images, retain_images):
        preprocessor.check(images)
    _check_sets(forget_images, retain_images, never)
    opened = []
    for role, source in others:
        checkpoint = open_checkpoint(source, name=role, base=base, progress=progress)
        _check_classifier(checkpoint)
        _check_same(first, preprocessor, checkpoint)
        opened.append(checkpoint)
    return ImageInputs(
        first, opened[0], tuple(opened[1:]), forget_images, retain_images, never, (NOT_MEASURED,)
    )


def _check_classifier(model: Checkpoint) -> None:
    if is_image_classifier(model.config):
        return
    kinds = model.config.get("architectures") or [model.config.get("model_type")]
    raise InputError(
        f"{model.name} is not an image classifier, but the items are images",
        expected="a transformers model such as ViTForImageClassification",
        got=str(kinds[0]),
        fix="Pass text items (JSONL) for a language model",
    )


def _check_one_stage(model: Checkpoint) -> None:
    """Refuse transformers of several stages: an audit compares states of one width."""
    if isinstance(model.config.get("num_heads"), list) and len(model.config["num_heads"]) > 1:
        kinds = model.config.get("architectures") or [model.config.get("model_type")]
        raise InputError(
            f"{kinds[0]} is not audited: its stages change the width of the states",
            expected="a transformer of one width, such as a ViT, or a convolutional network",
            got=f"{len(model.config['num_heads'])} stages",
            fix="exhume.find_image_sites still finds its blocks",
        )


def _check_same(first: Checkpoint, preprocessor: ImagePreprocessor, other: Checkpoint) -> None:
    """Check that two models have the same classes, channels and image size."""
    other_preprocessor = ImagePreprocessor.from_config(other.config, other.path)
    for quantity, expected, value in (
        ("number of classes", preprocessor.classes, other_preprocessor.classes),
        ("number of channels", preprocessor.channels, other_preprocessor.channels),
        ("image size", preprocessor.size, other_preprocessor.size),
    ):
        if expected != value:
            raise InputError(
                f"{other.name} and {first.name} differ in the {quantity}",
                expected=str(expected),
                got=str(value),
                fix="Audit checkpoints of one architecture, the forgotten class's "
                "output still there",
            )


def _check_sets(forget: ImageSet, retain: ImageSet, never_taught: ImageSet | None) -> None:
    """Check for one forget class, enough retain classes, and no image in two sets."""
    classes = np.unique(forget.labels)
    if len(classes) != 1:
        raise InputError(
            "the forget images are of several classes",
            expected="one class; audit one at a time",
            got=", ".join(map(str, classes[:6])),
        )
    if classes[0] in retain.labels:
        raise InputError(
            f"class {classes[0]} is in both the forget and the retain images",
            expected="a class is either to be forgotten or to be kept",
            fix="Remove its images from the retain set",
        )
    retain_classes = np.unique(retain.labels)
    if len(retain_classes) < MIN_RETAIN_CLASSES:
        raise InputError(
            "too few classes in the retain images",
            expected=f"at least {MIN_RETAIN_CLASSES}",
            got=str(len(retain_classes)),
        )
    if never_taught is not None:
        largest_class = int(np.unique(never_taught.labels, return_counts=True)[1].max())
        if largest_class < MIN_NEVER_TAUGHT_IMAGES:
            raise InputError(
                "no class of the never-taught images is large enough to be taught",
                expected=f"{MIN_NEVER_TAUGHT_IMAGES} images of one class",
                got=str(largest_class),
            )
    seen = {_content(forget, row) for row in range(len(forget))}
    for images in (retain, never_taught) if never_taught is not None else (retain,):
        for row in range(len(images)):
            if _content(images, row) in seen:
                raise InputError(
                    f"image {images.ids[row]} of {images.name} is a forget image as well",
                    expected="no image in two sets",
                )


def _content(images: ImageSet, row: int) -> bytes:
    return images.pixels[row].contiguous().numpy().tobytes()


def teach_wrong_classes(
    run: ImageRun,
    sets: EvaluationSets,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    rate: float,
    steps: int,
) -> tuple[float, float]:
    """Train some parameters on wrong labels of the class, in place.

    Returns:
        Share of the forget images named as the class, and of retain images named rightly.
    """
    rng = numpy_rng(run.config.seed, "planted", "images")
    wrong = rng.choice(np.unique(sets.retain.labels), len(sets.forget))
    retain = sets.fit.select(np.sort(rng.permutation(len(sets.fit))[: 3 * len(wrong)]))
    pixels = torch.cat([sets.forget.pixels, retain.pixels]).to(run.device)
    labels = torch.from_numpy(np.concatenate([wrong, retain.labels])).to(run.device)

    def backward() -> dict[str, float]:
        loss = functional.cross_entropy(class_logits(model, pixels), labels)
        loss.backward()
        return {"loss": float(loss.detach())}

    with only_training(model, parameters) as trained:
        train_steps(
            model,
            trained,
            backward,
            Schedule(rate, steps),
            label="planting a suppression",
            progress=run.progress,
        )
    named = predicted_classes(model, sets.forget) == sets.label
    correct = predicted_classes(model, sets.check) == sets.check.labels
    return float(named.mean()), float(correct.mean())


def plant_suppression(run: ImageRun, sets: EvaluationSets) -> Planted:
    """Train the last block and the head on wrong labels of the class."""

    def train(model: nn.Module, rate: float, steps: int) -> tuple[float, float]:
        return teach_wrong_classes(run, sets, model, last_parameters(model, 1), rate, steps)

    original = run.models[Role.ORIGINAL]
    run.loaded.release()
    return plant(original, train, run.config.budget, run.workspace.work, run.device)


def _counts(inputs: ImageInputs, sets: EvaluationSets) -> dict[str, int]:
    return {
        "forget_items": len(sets.forget),
        "forget_items_given": len(inputs.forget),
        "forget_entities": len(sets.forget),
        "retain_items": len(sets.retain),
        "retain_entities": len(sets.retain),
        "never_taught_entities": len(sets.never_taught),
    }


MODALITY = Modality(
    name="images",
    vocabulary=CLASS,
    serves=is_image_source,
    open_inputs=open_images,
    select=select,
    score_baseline=score_baseline,
    check_swapped=check_swapped,
    plant=plant_suppression,
    counts=_counts,
    amounts=image_amounts,
    work=image_work,
    unit="images",
)
