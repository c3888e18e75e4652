"""Published methods of class unlearning, for image classifiers.

Sources: gradient ascent and gradient difference as for language models
(``erasure.unlearning.run``); random labels and SalUn (Fan et al. 2023, arXiv 2310.12508); SSD
(Foster et al. 2023, arXiv 2308.07707); SCRUB (Kurmanji et al. 2023, arXiv 2302.09880); bad teacher
(Chundawat et al. 2022, arXiv 2205.08096); boundary shrink (Chen et al. 2023, arXiv 2303.11570);
DUCK (Cotogni et al. 2023, arXiv 2312.02052); CF-k and EU-k (Goel et al. 2022, arXiv 2201.06640);
L1-sparse (Jia et al. 2023, arXiv 2304.04934); RMU (Li et al. 2024, arXiv 2403.03218), transferred
from language models to the states of a block. FAMR is built from its abstract alone: the forget
loss to the uniform distribution and an L2 anchor at the original weights, without its
influence-function step. All use AdamW, where some of the authors use SGD, and learning rates for
networks of this size.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from capture.network.structure import block_at, find_blocks, random_like
from capture.scoring.class_logits import class_logits
from erasure.unlearning.config import (
    IMAGE_FORGET_ONLY_METHODS,
    IMAGE_RETAIN_ONLY_METHODS,
    ImageUnlearnConfig,
)
from erasure.unlearning.methods.dampening import dampen_parameters_
from erasure.unlearning.methods.relabeling import largest_gradient_masks, masked_gradients
from erasure.unlearning.training.batch_order import alternating_steps, paired_steps
from erasure.unlearning.training.image_task import (
    class_centroids,
    fgsm_target_class,
    frozen_features,
    logits_and_features,
    logits_and_states,
    mean_distillation,
    nearest_centroid_loss,
    uniform_loss,
)
from erasure.unlearning.training.loop import TrainLog, only_training, train_steps
from erasure.unlearning.training.objectives import control_vector
from erasure.unlearning.training.parameters import reinitialize_
from erasure.unlearning.training.task import Losses
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng, torch_rng

LabeledImages = tuple[Tensor, Tensor]
"""Pixels (image, channel, height, width) and class numbers (image,)."""


def unlearn_images_(
    model: nn.Module,
    forget: LabeledImages,
    retain: LabeledImages,
    config: ImageUnlearnConfig,
    *,
    seed: int,
    progress: Progress = SILENT,
) -> TrainLog:
    """Unlearn one class, in place.

    Args:
        model: An image classifier.
        forget: Training images of the class, all with one label.
        retain: Training images of the other classes; not read by ``grad_ascent``,
            ``boundary_shrink`` and ``famr``.
        seed: Seed of the order, wrong labels, control vector and new weights.

    Raises:
        InputError: There are no images, the forget images have several labels, or a retain image
            has theirs.

    Examples:
        >>> classifier = exhume.open_checkpoint("classifier").load()
        >>> with np.load("forget.npz") as forget, np.load("retain.npz") as retain:
        ...     sets = [(torch.from_numpy(f["image"]), torch.from_numpy(f["label"]))
        ...             for f in (forget, retain)]
        >>> config = exhume.ImageUnlearnConfig("grad_ascent", steps=2)
        >>> exhume.unlearn_images_(classifier, *sets, config, seed=0).stopped
        'steps'
    """
    _check(forget, retain)
    if config.method == "ssd":
        return _ssd_(model, forget, retain, config)
    parameters = _scope(model, config)
    if config.method == "eu_k":
        reinitialize_(model, parameters, seed)
    with only_training(model, parameters) as trained, ExitStack() as stack:
        losses = _losses(model, forget, retain, config, trained, seed)
        if config.method == "salun":
            _image_loss(model, *forget).backward()
            stack.enter_context(
                masked_gradients(trained, largest_gradient_masks(trained, config.saliency))
            )
        n_retain = 0 if config.method in IMAGE_FORGET_ONLY_METHODS else len(retain[0])
        order = alternating_steps if config.method == "scrub" else paired_steps
        return train_steps(
            model,
            trained,
            order(losses, len(forget[0]), n_retain, config, seed),
            config.schedule(),
            label=config.method,
            progress=progress,
        )


def _check(forget: LabeledImages, retain: LabeledImages) -> None:
    classes = forget[1].unique().tolist()
    if len(classes) != 1 or len(retain[0]) == 0:
        raise InputError(
            "class unlearning needs images of one class, and images of others",
            expected="one class to forget, one image or more to keep",
            got=f"{len(classes)} classes to forget, {len(retain[0])} images to keep",
        )
    if bool((retain[1] == classes[0]).any()):
        raise InputError(
            f"class {classes[0]} is to be forgotten and to be kept",
            fix="Remove its images from the retain set",
        )


def _scope(model: nn.Module, config: ImageUnlearnConfig) -> list[nn.Parameter]:
    """The parameters that the method may change."""
    if config.method in ("cf_k", "eu_k"):
        return last_parameters(model, config.last_k)
    if config.method == "rmu":
        block_at(model, config.block, "block")
        trained_blocks = find_blocks(model)[: config.block + 1]
        return [p for block in trained_blocks for p in block.parameters()]
    return list(model.parameters())


def last_parameters(model: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the last ``count`` blocks and of everything after them.

    Raises:
        InputError: The model has fewer blocks.
    """
    blocks = find_blocks(model)
    if count > len(blocks):
        raise InputError(
            "the model has fewer blocks than are to be trained",
            expected=f"at most {len(blocks)}",
            got=str(count),
        )
    modules = list(model.modules())
    first = modules.index(blocks[-count])
    parameters = {id(p): p for m in modules[first:] for p in m.parameters(recurse=False)}
    return list(parameters.values())


def _image_loss(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(class_logits(model, pixels), labels)


def _losses(
    model: nn.Module,
    forget: LabeledImages,
    retain: LabeledImages,
    config: ImageUnlearnConfig,
    trained: list[nn.Parameter],
    seed: int,
) -> Losses:
    """Forget and retain terms of the method."""
    forget_loss, method = _forget_term(model, forget, retain, config, trained, seed)
    teacher_logits = (
        frozen_features(model, retain[0])[0] if method in _DISTILLATION_METHODS else None
    )

    def retain_term(rows: list[int]) -> float:
        pixels, labels = retain[0][rows], retain[1][rows]
        temperature = config.temperature
        if method == "duck":
            loss = functional.cross_entropy(class_logits(model, pixels) / temperature, labels)
        elif method == "rmu":
            loss = _retain_state_loss(model, pixels, rows, config, frozen_states)
        elif method == "bad_teacher":
            assert teacher_logits is not None
            loss = mean_distillation(class_logits(model, pixels), teacher_logits[rows], temperature)
        else:
            logits = class_logits(model, pixels)
            loss = functional.cross_entropy(logits, labels)
            if method == "scrub":
                assert teacher_logits is not None
                loss = loss + config.distil_weight * mean_distillation(
                    logits, teacher_logits[rows], temperature
                )
            elif method == "l1_sparse":
                loss = loss + next(l1_weights) * sum(p.abs().sum() for p in trained)
        (config.retain_weight * loss).backward()
        return float(loss.detach())

    frozen_states = _states(model, retain[0], config.block) if method == "rmu" else None
    l1_weights = iter(
        config.anchor * np.linspace(1, 0, config.steps, endpoint=False)
        if method == "l1_sparse"
        else ()
    )
    if method in IMAGE_RETAIN_ONLY_METHODS:
        return Losses(None, retain_term)

    def forget_term(rows: list[int]) -> float:
        assert forget_loss is not None
        loss = forget_loss(rows)
        (config.forget_weight * loss).backward()
        return float(loss.detach())

    return Losses(forget_term, retain_term)


_DISTILLATION_METHODS = ("scrub", "bad_teacher")


def _forget_term(
    model: nn.Module,
    forget: LabeledImages,
    retain: LabeledImages,
    config: ImageUnlearnConfig,
    trained: list[nn.Parameter],
    seed: int,
) -> tuple[Callable[[list[int]], Tensor] | None, str]:
    """The loss on forget images by their row numbers, and the method's name."""
    method, (pixels, labels) = config.method, forget
    if method in ("grad_ascent", "grad_diff"):
        return lambda rows: -_image_loss(model, pixels[rows], labels[rows]), method
    if method in ("relabel", "salun", "boundary_shrink"):
        wrong_labels = _wrong_labels(model, forget, retain, config, seed)
        return lambda rows: _image_loss(model, pixels[rows], wrong_labels[rows]), method
    if method in _DISTILLATION_METHODS:
        source = model if method == "scrub" else random_like(model, seed)
        teacher = frozen_features(copy.deepcopy(source), pixels)[0]
        sign = -1.0 if method == "scrub" else 1.0
        return (
            lambda rows: (
                sign
                * mean_distillation(
                    class_logits(model, pixels[rows]), teacher[rows], config.temperature
                )
            )
        ), method
    if method == "duck":
        features = frozen_features(model, retain[0])[1]
        classes = int(max(int(labels.max()), int(retain[1].max()))) + 1
        centroids = class_centroids(features, retain[1], classes)
        centroids = centroids[~centroids.isnan().any(1)]
        return (
            lambda rows: nearest_centroid_loss(
                logits_and_features(model, pixels[rows])[1], centroids
            ),
            method,
        )
    if method == "famr":
        origin = [parameter.detach().clone() for parameter in trained]

        def uniform(rows: list[int]) -> Tensor:
            distance = sum(
                (parameter - start).square().sum()
                for parameter, start in zip(trained, origin, strict=True)
            )
            return uniform_loss(class_logits(model, pixels[rows])) + config.anchor * distance

        return uniform, method
    if method == "rmu":
        retain_states = _states(model, retain[0][:64], config.block)
        width = retain_states.shape[1] if retain_states.dim() == 4 else retain_states.shape[-1]
        spread = float(_features_last(retain_states).norm(dim=-1).mean())
        control = control_vector(
            width, config.coefficient * spread, torch_rng(seed, "control vector")
        ).to(pixels)

        def rmu_loss(rows: list[int]) -> Tensor:
            states = logits_and_states(model, pixels[rows], config.block)[1]
            return (_features_last(states) - control).square().mean()

        return rmu_loss, method
    return None, method


def _features_last(states: Tensor) -> Tensor:
    """Feature maps with the feature axis last; other states unchanged."""
    return states.movedim(1, -1) if states.dim() == 4 else states


def _states(model: nn.Module, pixels: Tensor, block: int) -> Tensor:
    with torch.no_grad():
        return logits_and_states(model, pixels, block)[1]


def _retain_state_loss(
    model: nn.Module,
    pixels: Tensor,
    rows: list[int],
    config: ImageUnlearnConfig,
    frozen_states: Tensor | None,
) -> Tensor:
    assert frozen_states is not None
    states = logits_and_states(model, pixels, config.block)[1]
    return (states - frozen_states[rows]).square().mean()


def _wrong_labels(
    model: nn.Module,
    forget: LabeledImages,
    retain: LabeledImages,
    config: ImageUnlearnConfig,
    seed: int,
) -> Tensor:
    """(image,) a wrong retain class for every forget image, random or from an FGSM step."""
    pixels, labels = forget
    if config.method == "boundary_shrink":
        return fgsm_target_class(model, pixels, labels, config.step)
    retain_classes = retain[1].unique()
    drawn = numpy_rng(seed, "wrong labels").integers(len(retain_classes), size=len(labels))
    return retain_classes[torch.from_numpy(drawn)]


def _ssd_(
    model: nn.Module, forget: LabeledImages, retain: LabeledImages, config: ImageUnlearnConfig
) -> TrainLog:
    """SSD: dampen weights once, without training."""
    with only_training(model, model.parameters()) as parameters:
        forget_fisher = image_fisher(model, parameters, forget)
        retain_fisher = image_fisher(model, parameters, retain)
        share = len(forget[0]) / (len(forget[0]) + len(retain[0]))
        n_dampened = dampen_parameters_(
            parameters, forget_fisher, retain_fisher, share, config.dampen_above, config.dampen_by
        )
    return TrainLog(({"step": 1.0, "dampened": float(n_dampened)},))


def image_fisher(
    model: nn.Module, parameters: list[nn.Parameter], images: LabeledImages
) -> list[Tensor]:
    """Diagonal Fisher information: mean squared gradient of one image's loss."""
    names = {id(p): name for name, p in model.named_parameters()}
    values = {names[id(p)]: p.detach() for p in parameters}

    def image_loss(weights: dict[str, Tensor], pixel: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, weights, (pixel[None],))
        logits = output if isinstance(output, Tensor) else output.logits
        return functional.cross_entropy(logits, label[None])

    # Vectorize over images: one image at a time takes ten times as long.
    per_image_gradients = torch.func.vmap(torch.func.grad(image_loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in values.items()}
    # Fused attention cannot be vectorized by vmap.
    with sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(images[0]), 64):
            gradients = per_image_gradients(
                values, *(gradient[start : start + 64] for gradient in images)
            )
            for name, gradient in gradients.items():
                total[name] += gradient.square().sum(0) / len(images[0])
    return [total[names[id(p)]] for p in parameters]
