"""``exhume plan``: upper bounds of an audit's memory, disk and work, before it runs.

Counts are upper bounds: unknown items are dropped later, and higher learning rates are tried
only if needed. The time assumes this machine's rate of matrix products; small models run far
below it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from audits.core.config import make_config
from audits.modalities.base import Sources
from audits.modalities.edit_shape import MAX_PARAMETERS
from audits.run.cost import PARTS, looks_inside, plan_inputs, total_cost
from audits.run.disk_space import GIB, check_disk_space
from audits.run.pipeline import modality_of
from capture.checkpoints.open import Checkpoint
from capture.checkpoints.safetensors_files import NamedTensors, file_tensors, module_tensors
from capture.checkpoints.weight_change import compare_weights
from capture.checkpoints.weights.weight_files import find_shards
from evidence.display.html_table import table_html
from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.progress import AUTO, Progress

MAX_MEMORY_GIB = 1_000_000
"""Maximum of ``memory=``, in GiB."""
BYTES_PER_PARAMETER = 4
# Copies of the weights where gradients are taken.
TRAINING_COPIES = 4
# Memory of a batch and the libraries, besides the weights.
OVERHEAD_BYTES = int(2.25 * GIB)


@dataclass(frozen=True, repr=False)
class Plan:
    """Upper bounds of what an audit takes.

    Attributes:
        parameters: Of the largest model.
        models: Number of models, including the planted suppression.
        questions: Rows scored on every model.
        tokens: Their prompt tokens; for images, their number.
        probed: Rows captured in every model.
        probed_tokens: Their tokens.
        taught_tokens: Tokens of all training steps, at every learning rate.
        memory: Peak, in bytes.
        available: Memory that may be used, in bytes.
        disk: Stored activations, in bytes.
        work: Floating-point operations of forward passes and training steps.
        rate: Floating-point operations per second of a matrix product, measured now.
        device: Where the rate was measured.
        unit: "tokens" or "images".

    Examples:
        >>> found = exhume.plan("original", "unlearned", "forget.jsonl", "retain.jsonl", memory=4)
        >>> [what for what, _ in found.rows()]
        ['parameters', 'models', 'asked of each', 'read in each', 'taught', 'memory', 'activations
        kept', 'work']
    """

    parameters: int
    models: int
    questions: int
    tokens: int
    probed: int
    probed_tokens: int
    taught_tokens: int
    memory: int
    available: int
    disk: int
    work: float
    rate: float
    device: str
    unit: str = "tokens"

    def __repr__(self) -> str:
        lines = [f"{what}: {amount}" for what, amount in self.rows()]
        return "\n  ".join(["An audit of this pair takes", *lines])

    def _repr_html_(self) -> str:
        return table_html("An audit of this pair", ("what", "how much"), self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """(quantity, amount) rows of a table."""
        return [
            ("parameters", f"{self.parameters:,}, in float32"),
            ("models", f"{self.models}, with the planted suppression if axes need it"),
            ("asked of each", f"at most {self.questions:,} rows, {self.tokens:,} {self.unit}"),
            ("read in each", f"at most {self.probed:,} rows, {self.probed_tokens:,} {self.unit}"),
            ("taught", f"at most {self.taught_tokens:,} {self.unit}"),
            ("memory", f"{self.memory / GIB:.1f} of {self.available / GIB:.1f} GiB"),
            ("activations kept", f"at most {_amount(self.disk)}"),
            (
                "work",
                f"at most {self.work / 1e12:.3g} TFLOP: "
                f"{self.work / self.rate / 60:.1f} minutes at the "
                f"{self.rate / 1e9:.0f} GFLOP/s of a matrix product on {self.device}",
            ),
        ]

    def check(self) -> None:
        """Refuse an audit that does not fit into memory.

        Raises:
            InputError: the audit would need more memory than is available.
        """
        if self.memory > self.available:
            raise InputError(
                "the audit does not fit into memory",
                expected=f"at most {self.available / GIB:.1f} GiB",
                got=f"about {self.memory / GIB:.1f} GiB for "
                f"{self.parameters / 1e9:.2f} billion parameters",
                fix="Use a machine with more memory; beyond "
                f"{MAX_PARAMETERS / 1e9:g} billion parameters, --axes behaviour,decodability "
                "halves it, and nothing can be called deleted then",
            )


def plan(
    original: Any,
    unlearned: Any,
    forget: Any,
    retain: Any,
    *,
    reference: Sequence[Any] = (),
    never_taught: Any = None,
    out: Path | str | None = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    chat: str = "auto",
    system: str = "",
    scorer: str = "auto",
    base: Any = None,
    memory: float | None = None,
    profile: str = "quick",
    axes: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = AUTO,
) -> Plan:
    """Estimate what an audit of these inputs takes, without running a model.

    Args:
        original: As in ``audits.run.api.audit``, and so are the others.
        unlearned: The candidate.
        forget: Items that should be gone.
        retain: Items that should still be known.
        reference: Models retrained without the forget set.
        never_taught: Items that no model was taught.
        out: Output folder of the audit, to check its free space.
        tokenizer: For live models, which rarely have one attached.
        columns: Field of an item to column of the files.
        chat: "auto", "on" or "off".
        system: System prompt of the chat.
        scorer: "auto" or the name of a scorer.
        base: The model that adapters among the models were trained on, in place of the one
            that they name.
        memory: GiB that may be used; the free memory by default.
        profile: "quick", "standard" or "full".
        axes: Axes to run; those of the profile by default.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: whatever an audit would refuse before running a model.

    Examples:
        >>> found = exhume.plan("original", "unlearned", "forget.jsonl", "retain.jsonl", memory=4)
        >>> found.parameters, found.questions
        (56736, 936)
        >>> found.check()
    """
    if memory is not None and not _is_amount(memory):
        raise InputError(
            "the memory limit is not a valid amount",
            expected=f"GiB, above 0 and at most {MAX_MEMORY_GIB:,}",
            got=quoted(memory),
        )
    config = make_config(
        {
            "profile": profile,
            "axes": axes,
            "device": device,
            "chat": chat,
            "system": system,
            "scorer": scorer,
        }
    )
    sources = Sources(
        original, unlearned, forget, retain, reference, never_taught, tokenizer, columns, base
    )
    modality = modality_of(forget, retain)
    inputs = modality.open_inputs(sources, config, progress)
    planned = plan_inputs(modality, inputs, config)
    cost = total_cost(planned)
    if out is not None:
        check_disk_space(Path(out), cost.disk)
    chosen = choose_device(config.device)
    free = psutil.virtual_memory().available
    if chosen.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0]
    opened = (inputs.original, inputs.unlearned, *inputs.references)
    parameters = max(map(count_parameters, opened))
    copies = cost.copies
    if modality.edit_shape is not None and parameters <= MAX_PARAMETERS:
        # The edit shape needs the weights, two gradients, and one in the making.
        copies = TRAINING_COPIES
    models = planned.n_models if looks_inside(planned) else planned.n_models - 1
    units = cost.forward + cost.captured + 3 * cost.trained
    estimate = Plan(
        parameters=parameters,
        models=models,
        questions=sum(planned.amounts[part].rows for part in PARTS),
        tokens=planned.units(*PARTS),
        probed=cost.captured_rows // planned.n_models,
        probed_tokens=cost.captured // planned.n_models,
        taught_tokens=cost.trained,
        memory=copies * BYTES_PER_PARAMETER * parameters + OVERHEAD_BYTES,
        available=free if memory is None else int(memory * GIB),
        disk=cost.disk,
        work=modality.work(inputs, parameters) * units,
        rate=_rate(chosen),
        device=chosen,
        unit=modality.unit,
    )
    if estimate.memory <= estimate.available:
        # Comparing an adapter merges it, which takes memory as well.
        for checkpoint in (inputs.unlearned, *inputs.references):
            if checkpoint.weights_hash != inputs.original.weights_hash:
                compare_weights(inputs.original, checkpoint, progress)
    return estimate


def _is_amount(memory: Any) -> bool:
    number = isinstance(memory, int | float) and not isinstance(memory, bool)
    return number and 0 < memory <= MAX_MEMORY_GIB


def count_parameters(checkpoint: Checkpoint) -> int:
    """Number of values in a checkpoint's tensors; those of an adapter are merged."""

    def total(tensors: NamedTensors) -> int:
        return sum(tensors.read(name).numel() for name in tensors.names)

    if checkpoint.live is not None:
        return total(module_tensors(checkpoint.live))
    if checkpoint.path is None:
        raise InputError(f"checkpoint {checkpoint.name} has neither folder nor module")
    with file_tensors(find_shards(checkpoint.path)) as tensors:
        return total(tensors)


def _amount(size: int) -> str:
    unit, name = (GIB, "GiB") if size >= GIB // 100 else (1 << 20, "MiB")
    return f"{size / unit:.2f} {name}"


def _rate(device: str) -> float:
    """Measured floating-point operations per second of a matrix product."""
    a = torch.ones(768, 768, device=device)
    best = torch.inf
    for _ in range(4):
        start = time.perf_counter()
        # Reading one number synchronizes an asynchronous device.
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2.0 * 768**3 / best
