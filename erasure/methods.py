"""Published unlearning methods, as baselines and as makers of models to audit.

Sources: gradient ascent and gradient difference as in TOFU (Maini et al. 2024, arXiv
2401.06121); NPO (Zhang et al. 2024, arXiv 2404.05868); relabelling as in TOFU's and
Eldan & Russinovich's (arXiv 2310.02238) alternative answers; RMU (Li et al. 2024,
arXiv 2403.03218). ``last_block_relabel`` is no published method: it is relabelling
that can only touch the end of the network, so what came before it is untouched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn

from erasure.adapters import low_rank_
from erasure.config import RELABELLING, UnlearnConfig
from erasure.losses import Losses, likelihood_losses, rmu_losses
from erasure.lower import lower_blocks_once
from erasure.objectives import count_scored
from erasure.structure import down_projection, find_blocks, own_head_
from erasure.training import (
    Evaluate,
    TrainLog,
    only_training,
    shortest,
    shuffled_batches,
    take_steps,
)
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng
from evidence.sequences import Sequences


@dataclass(frozen=True)
class UnlearnLog(TrainLog):
    """What happened in unlearning: a ``TrainLog`` and the settings it came from.

    ``stopped`` is ``"criterion"`` where ``stop_below`` was reached.
    """

    config: UnlearnConfig | None = None


def unlearn_(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
    *,
    relabelled: Sequences | None = None,
    rmu_module: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    seed: int,
    progress: Progress = SILENT,
) -> UnlearnLog:
    """Make ``model`` forget, in place.

    Args:
        model: A Hugging Face causal language model. It stays a plain model, also
            after low-rank training.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep; not read by ``grad_ascent``, or with ``retain_weight`` 0.
        config: Method and settings.
        relabelled: The forget prompts with wrong answers, for the relabelling methods.
        rmu_module: The block RMU pushes, instead of block ``config.rmu_layer``.
        evaluate: Model to named numbers; ``stop_below`` reads ``"forget"``.
        seed: Fixes the order of rows, adapters and control vector.
        progress: Where progress is shown.

    Raises:
        InputError: rows or settings the method cannot work with.
    """
    target = _target_rows(forget, relabelled, config)
    keeps = config.method != "grad_ascent" and config.retain_weight > 0
    if keeps and len(retain) == 0:
        raise InputError(
            f"{config.method} needs retain rows",
            got="none",
            fix="Give some, or set retain_weight to 0",
        )
    if config.stop_below is not None and evaluate is None:
        raise InputError(
            "stop_below needs an evaluation", fix="Give evaluate, or leave it out"
        )
    if config.method != "rmu":
        count_scored(target, config.loss_on)
        if keeps:
            count_scored(retain, config.loss_on)
    with _trained_part(model, config, rmu_module, seed) as parameters:
        with only_training(model, parameters) as trained:
            if config.method == "rmu":
                block = _rmu_block(model, config, rmu_module)
                losses = rmu_losses(model, block, target, retain, config, seed)
            else:
                losses = likelihood_losses(model, target, retain, config)
            backward = _paired(
                losses, len(target), len(retain) if keeps else 0, config, seed
            )
            last_alone = config.method == "last_block_relabel"
            with (
                lower_blocks_once(model, shortest(model, target))
                if last_alone
                else nullcontext()
            ):
                log = take_steps(
                    model,
                    trained,
                    backward,
                    config.schedule(),
                    evaluate=evaluate,
                    stop=_stop_rule(config.stop_below),
                    label=config.method,
                    progress=progress,
                )
    return UnlearnLog(log.rows, log.stopped, config)


def _target_rows(
    forget: Sequences, relabelled: Sequences | None, config: UnlearnConfig
) -> Sequences:
    """The rows the forget term is computed on."""
    if len(forget) == 0:
        raise InputError("there is nothing to forget", expected="one row or more")
    if config.method not in RELABELLING:
        return forget
    if relabelled is None or len(relabelled) == 0:
        raise InputError(
            f"{config.method} needs wrong answers",
            expected="relabelled rows",
            got="none",
            fix="Pass the forget prompts with other answers as relabelled",
        )
    if set(relabelled.ids) & set(forget.ids):
        raise InputError(
            "a relabelled row still has its true answer",
            fix="Draw another answer for it",
        )
    return relabelled


def _stop_rule(below: float | None) -> Callable[[dict[str, float]], bool] | None:
    if below is None:
        return None

    def stop(seen: dict[str, float]) -> bool:
        if "forget" not in seen:
            raise InputError(
                "stop_below reads what evaluate returns under 'forget'",
                got=", ".join(seen) or "nothing",
            )
        return seen["forget"] <= below

    return stop


@contextmanager
def _trained_part(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None, seed: int
) -> Iterator[list[nn.Parameter]]:
    """The parameters the method may change, low-rank or whole."""
    scope, whole = _scope(model, config, rmu_module)
    if config.lora_rank is None:
        yield whole
        return
    alpha = 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    with low_rank_(model, scope, config.lora_rank, alpha, seed) as parameters:
        yield parameters


def _scope(
    model: nn.Module, config: UnlearnConfig, rmu_module: nn.Module | None
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Modules and parameters the method may change."""
    if config.method == "last_block_relabel":
        modules = [find_blocks(model)[-1]]
        if config.train_head:
            modules.append(own_head_(model))
    elif config.method == "rmu" and config.rmu_parameters == "down":
        blocks = find_blocks(model)
        last = blocks.index(_rmu_block(model, config, rmu_module))
        chosen = blocks[max(0, last - 2) : last + 1]
        modules = [down_projection(block)[1] for block in chosen]
        # The authors train the matrix alone, also where it has a bias.
        return modules, [module.get_parameter("weight") for module in modules]
    else:
        modules = [model]
    unique = {id(p): p for module in modules for p in module.parameters()}
    return modules, list(unique.values())


def _rmu_block(
    model: nn.Module, config: UnlearnConfig, chosen: nn.Module | None
) -> nn.Module:
    blocks = find_blocks(model)
    if chosen is not None:
        if not any(chosen is block for block in blocks):
            raise InputError(
                "rmu_module is not one of the model's blocks",
                got=type(chosen).__name__,
            )
        return chosen
    if not 0 <= config.rmu_layer < len(blocks):
        raise InputError(
            "rmu_layer is not a block of this model",
            expected=f"0 to {len(blocks) - 1}",
            got=str(config.rmu_layer),
        )
    return blocks[config.rmu_layer]


def _paired(
    losses: Losses, targets: int, retained: int, config: UnlearnConfig, seed: int
) -> Callable[[], dict[str, float]]:
    """One step: a batch of forget rows and, unless there are none, of retain rows."""
    size = min(config.batch_size or targets, targets)
    forget_order = shuffled_batches(
        targets, config.batch_size, numpy_rng(seed, "forget")
    )
    retain_order = shuffled_batches(
        max(retained, 1), config.retain_batch_size or size, numpy_rng(seed, "retain")
    )

    def backward() -> dict[str, float]:
        found = {"forget_loss": losses.forget(next(forget_order))}
        if retained:
            found["retain_loss"] = losses.retain(next(retain_order))
        return found

    return backward
