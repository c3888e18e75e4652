"""``Method``: an unlearning method as one small class, with its own hyperparameters.

A method that trains gives two loss terms (``losses``); the base class runs the training. A method
that edits weights once replaces ``run``.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from erasure.unlearning.training.batch_order import paired_steps
from erasure.unlearning.training.loop import (
    Evaluate,
    Schedule,
    TrainLog,
    check_values,
    only_training,
    train_steps,
)
from erasure.unlearning.training.parameters import Scope, trained_parameters
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import Losses, Part, Supply, UnlearningTask
from evidence.errors import InputError
from evidence.fields import check_fields
from evidence.progress import AUTO, Progress

Task = TypeVar("Task", bound=UnlearningTask)


def positive(default: float) -> Any:
    """A hyperparameter above 0, with its default."""
    return _checked(default, lambda value: value > 0, "a number > 0")


def at_least(least: int, default: float) -> Any:
    """A hyperparameter of ``least`` or more."""
    return _checked(default, lambda value: value >= least, f"{least} or more")


def share(default: float) -> Any:
    """A hyperparameter in (0, 1]."""
    return _checked(default, lambda value: 0 < value <= 1, "a share above 0")


def one_of(default: str, *others: str) -> Any:
    """A hyperparameter that names a choice."""
    choices = (default, *others)
    return _checked(default, lambda value: value in choices, " or ".join(map(repr, choices)))


def _checked(default: object, valid: Callable[[Any], bool], expected: str) -> Any:
    return field(default=default, metadata={"valid": valid, "expected": expected})


@dataclass(frozen=True)
class Run(Generic[Task]):
    """A training run, as a method's losses see it.

    Attributes:
        task: The rows and the model.
        parameters: What is trained.
        training: Optimizer, batches and weights.
        seed: Seed of the order of rows and of what a method draws.
        n_forget: Rows of the forget term.
        n_retain: Rows of the retain term; 0 if it is not used.
    """

    task: Task
    parameters: list[nn.Parameter]
    training: TrainingSettings
    seed: int
    n_forget: int
    n_retain: int

    def keep_answers(self, rows: list[int]) -> float:
        """The usual retain term: negative log-likelihood of the retain answers."""
        return self.task.nll("retain", rows, self.training.retain_weight)


@dataclass(frozen=True)
class Method(Generic[Task]):
    """Base of the unlearning methods; the fields of a subclass are its hyperparameters.

    Class attributes:
        name: Name in the registry, in configs and in logs.
        modalities: Tasks that the method supports.
        needs: Further rows that it takes.
        forget_part: Rows of its forget term.
        reads_forget, reads_retain: Whether it has a forget term and a retain term.
        adapters: Whether it can train low-rank adapters; False if it acts on single weights.
        scores_answers: Whether its losses score answers.
    """

    name: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]] = ("text", "images")
    needs: ClassVar[tuple[Supply, ...]] = ()
    forget_part: ClassVar[Part] = "forget"
    reads_forget: ClassVar[bool] = True
    reads_retain: ClassVar[bool] = True
    adapters: ClassVar[bool] = True
    scores_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_hyperparameters({each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def check_hyperparameters(
        cls, values: Mapping[str, object], shown: Mapping[str, str] | None = None
    ) -> None:
        """Check values of fields; ``shown`` are the names in the error, where others are used."""
        shown = shown or {}
        checked = [each for each in fields(cls) if "valid" in each.metadata and each.name in values]
        check_values(
            {
                shown.get(each.name, each.name): (
                    each.metadata["valid"](values[each.name]),
                    each.metadata["expected"],
                    values[each.name],
                )
                for each in checked
            }
        )

    def losses(self, run: Run[Task]) -> Losses:
        """Forget and retain terms; called when the parameters take gradients."""
        raise NotImplementedError

    def scope(self, task: Task) -> Scope:
        """What the method may change: the whole model by default."""
        return Scope.of(task.model)

    def steps(self, run: Run[Task], losses: Losses) -> Callable[[], dict[str, float]]:
        """Function of one step: by default a batch of forget and one of retain rows."""
        return paired_steps(losses, run.n_forget, run.n_retain, run.training, run.seed)

    def schedule(self, training: TrainingSettings) -> Schedule:
        """Learning rate and optimizer settings of the run."""
        return training.schedule()

    def during(self, run: Run[Task]) -> AbstractContextManager[None]:
        """Context of the training steps."""
        return nullcontext()

    def uses_retain(self, training: TrainingSettings) -> bool:
        """Whether the run reads retain rows."""
        return self.reads_retain and training.retain_weight > 0

    def check_training(self, training: TrainingSettings) -> None:
        """Check settings that the method cannot use."""
        check_values(
            {
                "retain_weight": (
                    self.reads_forget or training.retain_weight > 0,
                    f"more than 0 with {self.name}",
                    training.retain_weight,
                ),
                "lora_rank": (
                    self.adapters or training.lora_rank is None,
                    f"None with {self.name}",
                    training.lora_rank,
                ),
            }
        )

    def check(self, task: Task, training: TrainingSettings) -> None:
        """Check that the task and the settings fit the method.

        Raises:
            InputError: Naming what is missing.
        """
        self.check_training(training)
        if task.modality not in self.modalities:
            raise InputError(
                f"{self.name} does not unlearn {task.modality}",
                expected=" or ".join(self.modalities),
                got=task.modality,
            )
        if training.lora_rank is not None and not task.adapters:
            raise InputError(f"lora_rank cannot be used with {task.modality}", expected="None")
        for supply in self.needs:
            task.check_supply(supply, self.name)
        uses_retain = self.uses_retain(training)
        if uses_retain and task.count("retain") == 0:
            raise InputError(
                f"{self.name} needs retain rows",
                got="none",
                fix="Give some, or set retain_weight to 0",
            )
        if self.scores_answers:
            task.check_scored(self.forget_part)
            if uses_retain:
                task.check_scored("retain")

    def run(
        self,
        task: Task,
        training: TrainingSettings,
        *,
        evaluate: Evaluate | None = None,
        seed: int,
        progress: Progress = AUTO,
    ) -> TrainLog:
        """Unlearn, in place: by default by training on the two terms."""
        scope, adapters = self.scope(task), (training.lora_rank, training.lora_alpha)
        with (
            trained_parameters(task.model, scope, *adapters, seed) as parameters,
            only_training(task.model, parameters) as trained,
        ):
            n_retain = task.count("retain") if self.uses_retain(training) else 0
            run = Run(task, trained, training, seed, task.count(self.forget_part), n_retain)
            step = self.steps(run, self.losses(run))
            with self.during(run):
                return train_steps(
                    task.model,
                    trained,
                    step,
                    self.schedule(training),
                    evaluate=evaluate,
                    stop=training.stop_rule(),
                    label=self.name,
                    progress=progress,
                )
