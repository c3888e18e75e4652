"""Published unlearning methods, as baselines and to make models to audit.

Sources: gradient ascent and gradient difference as in TOFU (Maini et al. 2024, arXiv 2401.06121);
NPO (Zhang et al. 2024, arXiv 2404.05868); SimNPO (Fan et al. 2024, arXiv 2410.07163); DPO with a
refusal as the preferred answer (IdkDPO, as in TOFU); relabeling as in TOFU and the alternative
answers of Eldan & Russinovich (arXiv 2310.02238); RMU (Li et al. 2024, arXiv 2403.03218); UNDIAL
(Dong et al. 2024, arXiv 2402.10052); SCRUB (Kurmanji et al. 2023, arXiv 2302.09880); bad teacher
(Chundawat et al. 2022, arXiv 2205.08096); ELM (Gandikota et al. 2024, arXiv 2410.02760); SalUn (Fan
et al. 2023, arXiv 2310.12508); SSD (Foster et al. 2023, arXiv 2308.07707); task vector negation
(Ilharco et al. 2022, arXiv 2212.04089); CF-k and EU-k (Goel et al. 2022, arXiv 2201.06640).
``last_block_relabel`` is not published: it is relabeling that trains only the last block, so
everything before it is unchanged.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from capture.data.sequences import Sequences
from erasure.unlearning.config import DISTILLATION_METHODS, RELABELING_METHODS, UnlearnConfig
from erasure.unlearning.methods.dampening import dampen_parameters_, diagonal_fisher
from erasure.unlearning.methods.distillation import distillation_losses
from erasure.unlearning.methods.relabeling import masked_gradients, saliency_masks
from erasure.unlearning.training.batch_order import alternating_steps, paired_steps
from erasure.unlearning.training.frozen_prefix import cached_prefix
from erasure.unlearning.training.loop import (
    Evaluate,
    TrainLog,
    finetune_,
    only_training,
    shortest_row,
    train_steps,
)
from erasure.unlearning.training.objectives import count_scored
from erasure.unlearning.training.parameters import reinitialize_, rmu_block, trained_parameters
from erasure.unlearning.training.task import likelihood_losses, preference_losses, rmu_losses
from evidence.errors import InputError
from evidence.progress import SILENT, Progress


@dataclass(frozen=True, repr=False)
class UnlearnLog(TrainLog):
    """A ``TrainLog`` with the settings of the run.

    ``stopped`` is ``"criterion"`` if ``stop_below`` was reached.
    """

    config: UnlearnConfig | None = None


def unlearn_(
    model: nn.Module,
    forget: Sequences,
    retain: Sequences,
    config: UnlearnConfig,
    *,
    relabeled: Sequences | None = None,
    novice: Sequences | None = None,
    rmu_module: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    seed: int,
    progress: Progress = SILENT,
) -> UnlearnLog:
    """Unlearn the forget rows, in place.

    Args:
        model: A Hugging Face causal language model. It stays a plain model, also after low-rank
            training.
        forget: Rows to forget, with their true answers.
        retain: Rows to keep; not read by ``grad_ascent`` and ``task_vector``, or with
            ``retain_weight`` 0 (``ssd`` always reads them).
        relabeled: The forget prompts with wrong answers, for the relabeling methods; with the
            preferred answers, row by row, for ``dpo``.
        novice: The forget rows with an unknown entity in place of theirs, row by row, for ``elm``.
        rmu_module: The block RMU steers, instead of block ``config.rmu_layer``.
        evaluate: Maps the model to named numbers; ``stop_below`` reads ``"forget"``.
        seed: Seed of the order of rows, the adapters and the control vector.

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
    target = _target_rows(forget, relabeled, config)
    _check_pairs(forget, relabeled, novice, config)
    uses_retain = _uses_retain(config)
    if uses_retain and len(retain) == 0:
        raise InputError(
            f"{config.method} needs retain rows",
            got="none",
            fix="Give some, or set retain_weight to 0",
        )
    if config.stop_below is not None and evaluate is None:
        raise InputError("stop_below needs an evaluation", fix="Give evaluate, or leave it out")
    if config.method != "rmu":
        count_scored(target, config.loss_on)
        if uses_retain:
            count_scored(retain, config.loss_on)
    if config.method == "ssd":
        return _ssd_(model, forget, retain, config)
    if config.method == "task_vector":
        return _task_vector_(model, forget, config, evaluate, seed, progress)
    with trained_parameters(model, config, rmu_module, seed) as parameters:
        if config.method == "eu_k":
            reinitialize_(model, parameters, seed)
        with only_training(model, parameters) as trained:
            if config.method == "rmu":
                block = rmu_block(model, config, rmu_module)
                losses = rmu_losses(model, block, target, retain, config, seed)
            elif config.method == "dpo":
                assert relabeled is not None  # checked above
                losses = preference_losses(model, target, relabeled, retain, config)
            elif config.method in DISTILLATION_METHODS:
                losses = distillation_losses(model, target, retain, novice, config, seed)
            else:
                losses = likelihood_losses(model, target, retain, config)
            n_retain = len(retain) if uses_retain else 0
            order = alternating_steps if config.method == "scrub" else paired_steps
            backward = order(losses, len(target), n_retain, config, seed)
            schedule = config.schedule()
            with ExitStack() as stack:
                if config.method == "last_block_relabel":
                    stack.enter_context(cached_prefix(model, shortest_row(model, target)))
                if config.method == "salun":
                    masks = saliency_masks(model, trained, forget, config.loss_on, config.saliency)
                    stack.enter_context(masked_gradients(trained, masks))
                    # Weight decay would also change the weights outside the mask.
                    schedule = replace(schedule, weight_decay=0.0)
                log = train_steps(
                    model,
                    trained,
                    backward,
                    schedule,
                    evaluate=evaluate,
                    stop=_stop_rule(config.stop_below),
                    label=config.method,
                    progress=progress,
                )
    return UnlearnLog(log.rows, log.stopped, config)


def _target_rows(
    forget: Sequences, relabeled: Sequences | None, config: UnlearnConfig
) -> Sequences:
    """The rows of the forget term."""
    if len(forget) == 0:
        raise InputError("there is nothing to forget", expected="one row or more")
    if config.method not in RELABELING_METHODS:
        return forget
    if relabeled is None or len(relabeled) == 0:
        raise InputError(
            f"{config.method} needs wrong answers",
            expected="relabeled rows",
            got="none",
            fix="Pass the forget prompts with other answers as relabeled",
        )
    if set(relabeled.ids) & set(forget.ids):
        raise InputError(
            "a relabeled row still has its true answer", fix="Draw another answer for it"
        )
    return relabeled


def _check_pairs(
    forget: Sequences, relabeled: Sequences | None, novice: Sequences | None, config: UnlearnConfig
) -> None:
    """Check that rows compared with the forget rows one by one match them."""
    if config.method == "dpo" and (relabeled is None or len(relabeled) != len(forget)):
        raise InputError(
            "dpo needs an answer to prefer for every forget row",
            expected=f"{len(forget)} relabeled rows",
            got="none" if relabeled is None else str(len(relabeled)),
        )
    if config.method == "elm":
        forget_parts = _scored_parts(forget, config.loss_on)
        if novice is None or _scored_parts(novice, config.loss_on) != forget_parts:
            raise InputError(
                "elm needs every forget row with an unknown entity",
                expected="novice rows with the forget rows' answers, in their order",
                got="none" if novice is None else "other rows",
            )


def _scored_parts(rows: Sequences, loss_on: str) -> list[tuple[int, ...] | int]:
    """The part of each row that must be equal if rows are compared token by token."""
    if loss_on == "all":
        return [len(ids) for ids in rows.ids]
    return [ids[start:] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


def _uses_retain(config: UnlearnConfig) -> bool:
    """Whether the method reads retain rows."""
    if config.method == "ssd":
        return True
    if config.method in ("grad_ascent", "task_vector"):
        return False
    return config.retain_weight > 0


def _ssd_(
    model: nn.Module, forget: Sequences, retain: Sequences, config: UnlearnConfig
) -> UnlearnLog:
    """SSD: dampen weights once, without training."""
    with only_training(model, model.parameters()) as parameters:
        loss_on = config.loss_on
        forget_fisher = diagonal_fisher(model, parameters, forget, loss_on)
        retain_fisher = diagonal_fisher(model, parameters, retain, loss_on)
        share = len(forget) / (len(forget) + len(retain))
        n_dampened = dampen_parameters_(
            parameters, forget_fisher, retain_fisher, share, config.dampen_above, config.dampen_by
        )
    return UnlearnLog(({"step": 1.0, "dampened": float(n_dampened)},), config=config)


def _task_vector_(
    model: nn.Module,
    forget: Sequences,
    config: UnlearnConfig,
    evaluate: Evaluate | None,
    seed: int,
    progress: Progress,
) -> UnlearnLog:
    """Fine-tune on the forget rows, then subtract a multiple of the change."""
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    with trained_parameters(model, config, None, seed) as parameters:
        log = finetune_(
            model,
            forget,
            lr=config.lr,
            steps=config.steps,
            batch_size=config.batch_size,
            weight_decay=config.weight_decay,
            clip=config.clip,
            warmup=config.warmup,
            loss_on=config.loss_on,
            parameters=parameters,
            seed=seed,
            label=config.method,
            progress=progress,
        )
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), initial, strict=True):
            parameter.copy_(start - config.scale * (parameter - start))
    rows = log.rows
    if evaluate is not None:
        rows = (*rows, {"step": float(config.steps)} | evaluate(model))
    return UnlearnLog(rows, log.stopped, config)


def _stop_rule(below: float | None) -> Callable[[dict[str, float]], bool] | None:
    if below is None:
        return None

    def stop(evaluation: dict[str, float]) -> bool:
        if "forget" not in evaluation:
            raise InputError(
                "stop_below reads what evaluate returns under 'forget'",
                got=", ".join(evaluation) or "nothing",
            )
        return evaluation["forget"] <= below

    return stop
