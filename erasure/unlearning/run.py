"""Run an unlearning method on a model: one driver for text and images.

The methods and their sources are in ``erasure.unlearning.methods``.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from capture.data.sequences import Sequences
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import refuse_row_edits
from capture.network.model_inputs import changes_weights
from erasure.unlearning.config import ImageUnlearnConfig, UnlearnConfig
from erasure.unlearning.methods.base import Method
from erasure.unlearning.methods.representation import RMU
from erasure.unlearning.training.image_task import ImageTask, LabeledImages, random_wrong_labels
from erasure.unlearning.training.loop import Evaluate, TrainLog
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import TextTask
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

Rows = Sequences | LabeledImages
Config = UnlearnConfig | ImageUnlearnConfig | Method[Any]


@dataclass(frozen=True, repr=False)
class UnlearnLog(TrainLog):
    """A ``TrainLog`` with the settings of the run.

    ``stopped`` is ``"criterion"`` if ``stop_below`` was reached.
    """

    config: Config | None = None


@changes_weights
@gradients_on()
def unlearn_(
    model: nn.Module,
    forget: Rows,
    retain: Rows,
    config: Config,
    *,
    relabeled: Rows | None = None,
    novice: Sequences | None = None,
    rmu_module: nn.Module | None = None,
    training: TrainingSettings | None = None,
    evaluate: Evaluate | None = None,
    seed: int,
    progress: Progress = AUTO,
) -> UnlearnLog:
    """Unlearn the forget rows, in place.

    Args:
        model: A Hugging Face causal language model, or an image classifier. It stays a plain model,
            also after low-rank training.
        forget: Rows to forget, with their true answers; or training images of one class with its
            label.
        retain: Rows to keep, or images of other classes; not read by methods that act on forget
            rows alone, or with ``retain_weight`` 0 (``ssd`` always reads them).
        config: A method and its settings; or a method of ``unlearning_methods``, with its
            hyperparameters alone.
        relabeled: The forget prompts with wrong answers, for the relabeling methods; with the
            preferred answers, row by row, for ``dpo``. For images, wrong labels, which are drawn at
            random by default.
        novice: The forget rows with an unknown entity in place of theirs, row by row, for ``elm``.
        rmu_module: The block RMU steers, instead of block ``config.rmu_layer``.
        training: Optimizer, batches and weights, if ``config`` is a method.
        evaluate: Maps the model to named numbers; ``stop_below`` reads ``"forget"``.
        seed: Seed of the order of rows, the adapters and what a method draws.

    Raises:
        InputError: The rows or settings do not fit the method.

    Examples:
        >>> forget = exhume.encode_items(tokenizer, exhume.read_items("forget.jsonl"))
        >>> unlearned = checkpoint.load()  # changed in place
        >>> config = exhume.UnlearnConfig("npo", lr=1e-2, steps=10)
        >>> log = exhume.unlearn_(unlearned, forget, rows, config, seed=0)
        >>> log.stopped, len(log.to_frame())
        ('steps', 10)
        >>> said = [exhume.score_answers(m, forget).greedy.mean() for m in (model, unlearned)]
        >>> bool(said[1] < said[0])
        True
    """
    refuse_row_edits("unlearning")
    method, settings = _parts(config, training)
    if rmu_module is not None and isinstance(method, RMU):
        method = replace(method, block=rmu_module)
    task = _task(model, forget, retain, relabeled, novice, settings.loss_on, seed)
    method.check(task, settings)
    if settings.stop_below is not None and evaluate is None:
        raise InputError("stop_below needs an evaluation", fix="Give evaluate, or leave it out")
    log = method.run(task, settings, evaluate=evaluate, seed=seed, progress=progress)
    return UnlearnLog(log.rows, log.stopped, config)


@changes_weights
@gradients_on()
def unlearn_images_(
    model: nn.Module,
    forget: LabeledImages,
    retain: LabeledImages,
    config: ImageUnlearnConfig,
    *,
    seed: int,
    progress: Progress = AUTO,
) -> UnlearnLog:
    """Unlearn one class of images, in place: ``unlearn_`` for an image classifier.

    Examples:
        >>> classifier = exhume.open_checkpoint("classifier").load()
        >>> with np.load("forget.npz") as forget, np.load("retain.npz") as retain:
        ...     sets = [(torch.from_numpy(f["image"]), torch.from_numpy(f["label"]))
        ...             for f in (forget, retain)]
        >>> config = exhume.ImageUnlearnConfig("grad_ascent", steps=2)
        >>> exhume.unlearn_images_(classifier, *sets, config, seed=0).stopped
        'steps'
    """
    refuse_row_edits("unlearning")
    return unlearn_(model, forget, retain, config, seed=seed, progress=progress)


def _parts(
    config: Config, training: TrainingSettings | None
) -> tuple[Method[Any], TrainingSettings]:
    if isinstance(config, Method):
        return config, training or TrainingSettings()
    if training is not None:
        raise InputError(
            "there are two training settings",
            expected="training with a method, or a config alone",
            got=f"training and {type(config).__name__}",
        )
    return config.parts()


def _task(
    model: nn.Module,
    forget: Rows,
    retain: Rows,
    relabeled: Rows | None,
    novice: Sequences | None,
    loss_on: str,
    seed: int,
) -> TextTask | ImageTask:
    if isinstance(forget, Sequences):
        if not isinstance(retain, Sequences) or isinstance(relabeled, tuple):
            raise InputError("the rows are not of one kind", expected="text or images")
        return TextTask(model, forget, retain, relabeled, novice, loss_on)
    if isinstance(retain, Sequences) or isinstance(relabeled, Sequences):
        raise InputError("the rows are not of one kind", expected="text or images")
    task = ImageTask(model, forget, retain, relabeled)
    if relabeled is None:
        task = replace(task, relabeled=random_wrong_labels(forget, retain, seed))
    return task
