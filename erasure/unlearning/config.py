"""Settings of an unlearning run in one flat record, as recipes and cards store them.

A config names a method of the registry and holds the settings of all of them. ``parts`` takes it
apart into the method's class and the training settings that all methods share. Field names and
defaults are stored and hashed: do not change them.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from erasure.unlearning.methods.base import Method
from erasure.unlearning.methods.registry import unlearning_methods
from erasure.unlearning.methods.representation import RMU
from erasure.unlearning.training.loop import Schedule, check_values
from erasure.unlearning.training.settings import TrainingSettings
from evidence.fields import check_fields

METHODS = tuple(unlearning_methods("text"))
IMAGE_METHODS = tuple(unlearning_methods("images"))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# Method to its hyperparameters, each with its name in the config. A method that is not here has its
# own defaults: the fields of the configs are closed.
_TEXT_FIELDS = {
    "npo": _same("beta"),
    "simnpo": _same("beta", "margin"),
    "dpo": _same("beta"),
    "rmu": {"block": "rmu_layer", "coefficient": "rmu_coefficient", "parameters": "rmu_parameters"},
    "last_block_relabel": _same("train_head"),
    "salun": _same("saliency"),
    "undial": {"penalty": "lowered"},
    "scrub": _same("temperature", "distil_weight", "ascents"),
    "bad_teacher": _same("temperature"),
    "elm": _same("guidance"),
    "cf_k": _same("last_k"),
    "eu_k": _same("last_k"),
    "task_vector": _same("scale"),
    "ssd": _same("dampen_above", "dampen_by"),
}
_IMAGE_FIELDS = {
    "salun": _same("saliency"),
    "ssd": _same("dampen_above", "dampen_by"),
    "scrub": _same("temperature", "distil_weight", "ascents"),
    "bad_teacher": _same("temperature"),
    "boundary_shrink": _same("step"),
    "duck": _same("temperature"),
    "famr": _same("anchor"),
    "cf_k": _same("last_k"),
    "eu_k": _same("last_k"),
    "rmu": _same("block", "coefficient"),
    "l1_sparse": {"penalty": "anchor"},
}


@dataclass(frozen=True)
class UnlearnConfig:
    """A method for language models and its settings.

    The fields are those of ``TrainingSettings`` and the hyperparameters of the methods, which
    ``unlearning_methods("text")`` documents:

    Attributes:
        method: One of ``METHODS``.
        beta: Of ``npo``, ``dpo`` and ``simnpo``, whose authors use 2.5 or 4.5.
        margin: Of ``simnpo``.
        lowered: The penalty of ``undial``.
        temperature: Of ``scrub`` (the authors use 2 or 4) and ``bad_teacher`` (1).
        distil_weight, ascents: Of ``scrub``.
        guidance: Of ``elm``.
        last_k: Of ``cf_k`` and ``eu_k``.
        saliency: Of ``salun``.
        scale: Of ``task_vector``.
        dampen_above, dampen_by: Of ``ssd``.
        rmu_layer, rmu_coefficient, rmu_parameters: Block, coefficient and parameters of ``rmu``.
        train_head: Of ``last_block_relabel``.

    Examples:
        >>> exhume.UnlearnConfig("rmu", steps=20, rmu_layer=1).rmu_coefficient
        6.5
    """

    method: str
    lr: float = 1e-5
    steps: int = 50
    batch_size: int | None = None
    retain_batch_size: int | None = None
    retain_weight: float = 1.0
    forget_weight: float = 1.0
    beta: float = 0.1
    margin: float = 0.0
    lowered: float = 10.0
    temperature: float = 1.0
    distil_weight: float = 0.5
    ascents: int = 3
    guidance: float = 1.0
    last_k: int = 1
    saliency: float = 0.5
    scale: float = 1.0
    dampen_above: float = 10.0
    dampen_by: float = 1.0
    weight_decay: float = 0.01
    clip: float | None = 1.0
    warmup: int = 0
    loss_on: str = "answer"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    rmu_layer: int = 7
    rmu_coefficient: float = 6.5
    rmu_parameters: str = "down"
    train_head: bool = False
    stop_below: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        method, training = self.parts()
        method.check_training(training)

    def parts(self) -> tuple[Method[Any], TrainingSettings]:
        """The method with its hyperparameters, and the training settings."""
        return _parts(self, "text", _TEXT_FIELDS)

    def schedule(self) -> Schedule:
        """The validated learning-rate schedule."""
        return self.parts()[1].schedule()


@dataclass(frozen=True)
class ImageUnlearnConfig:
    """A method for image classifiers and its settings.

    The fields are some of ``TrainingSettings`` and the hyperparameters of the methods, which
    ``unlearning_methods("images")`` documents:

    Attributes:
        method: One of ``IMAGE_METHODS``.
        temperature: Of ``scrub``, ``bad_teacher`` and ``duck``.
        distil_weight, ascents: Of ``scrub``.
        saliency: Of ``salun``.
        dampen_above, dampen_by: Of ``ssd``.
        step: Of ``boundary_shrink``.
        anchor: Of ``famr``; the penalty of ``l1_sparse``.
        last_k: Of ``cf_k`` and ``eu_k``.
        block, coefficient: Of ``rmu``, which trains the block and all blocks before it.

    Examples:
        >>> exhume.ImageUnlearnConfig("scrub").ascents
        3
    """

    method: str
    lr: float = 1e-3
    steps: int = 30
    batch_size: int | None = 32
    retain_batch_size: int | None = 64
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    temperature: float = 2.0
    distil_weight: float = 0.5
    ascents: int = 3
    saliency: float = 0.5
    dampen_above: float = 10.0
    dampen_by: float = 1.0
    step: float = 0.2
    anchor: float = 1e-3
    last_k: int = 1
    block: int = 1
    coefficient: float = 2.0
    weight_decay: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        method, training = self.parts()
        method.check_training(training)

    def parts(self) -> tuple[Method[Any], TrainingSettings]:
        """The method with its hyperparameters, and the training settings."""
        method, training = _parts(self, "images", _IMAGE_FIELDS)
        if isinstance(method, RMU):
            method = replace(method, parameters="prefix")
        return method, training

    def schedule(self) -> Schedule:
        """The validated learning-rate schedule."""
        return self.parts()[1].schedule()


def _parts(
    config: UnlearnConfig | ImageUnlearnConfig, modality: str, named: dict[str, dict[str, str]]
) -> tuple[Method[Any], TrainingSettings]:
    methods = unlearning_methods(modality)
    check_values({"method": (config.method in methods, ", ".join(methods), config.method)})
    values = {
        method: {field: getattr(config, name) for field, name in names.items()}
        for method, names in named.items()
    }
    for method, names in named.items():  # settings of the other methods are checked as well
        methods[method].check_hyperparameters(values[method], names)
    shared = {each.name for each in fields(TrainingSettings)} & {e.name for e in fields(config)}
    training = TrainingSettings(**{name: getattr(config, name) for name in shared})
    return methods[config.method](**values.get(config.method, {})), training
