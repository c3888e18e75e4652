"""Size of an audit's stored activations, and whether the disk has room for them."""

import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from audits.axes.decodability.tasks import TaskPart
from audits.axes.decodability.text_probes import make_audit_tasks
from audits.axes.membership.scores import select_sets
from audits.core.config import AuditConfig
from audits.core.inputs import Inputs, InputsOf
from audits.core.item_sets import invent_never_taught, within_budget
from audits.core.registry import ModalityName
from capture.activations.store import stored_bytes
from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from capture.network.network_size import NetworkSize, network_size
from evidence.errors import InputError

GIB = 1 << 30
# Blocks of statements vary in size, since no entity or answer occurs twice in one.
BLOCK_SLACK = 1.1


@dataclass(frozen=True)
class ActivationSize:
    """Stored activations, if the original knew every given item.

    Attributes:
        rows: Texts captured in every model.
        tokens: Their tokens.
        bytes: On disk, for all models together.
    """

    rows: int
    tokens: int
    bytes: int


def activation_size(inputs: Inputs, config: AuditConfig, structure: NetworkSize) -> ActivationSize:
    """Upper bound of the activations that decodability, concept and membership store.

    The audit itself captures this if the original answers every item. If it answers fewer,
    blocks of statements can be larger; the bound allows for that.
    """
    axes = set(config.axes)
    same = inputs.original.weights_hash == inputs.unlearned.weights_hash
    if same or not axes & {"decodability", "concept", "membership"}:
        return ActivationSize(0, 0, 0)
    width, sites = structure.d_model or 0, (structure.n_layers or 0) + 1
    retain = within_budget(inputs.retain, config)
    never_taught = inputs.never_taught or invent_never_taught(inputs.forget, retain, config)
    tokenizer = inputs.original.tokenizer
    rows = tokens = size = 0
    if axes & {"decodability", "concept"}:
        tasks, _ = make_audit_tasks(inputs.forget, retain, never_taught, tokenizer, config)
        parts = [part for task in tasks for part in task.parts.values()]
        max_rows_by_part = [_widest(part, config.budget.block) for part in parts]
        rows += sum(max_rows_by_part)
        tokens += sum(
            ceil(_tokens(part.encoded(tokenizer)) * max_rows / max(1, len(part)))
            for part, max_rows in zip(parts, max_rows_by_part, strict=True)
        )
        size += stored_bytes(sum(max_rows_by_part), width, sites)
    if "membership" in axes:
        try:
            wordings = config.budget.prompts_per_item
            sets = select_sets(inputs.forget, retain, never_taught, wordings, config.seed)
        except InputError:  # the axis will report this and not run
            prompts = []
        else:
            prompts = sets.prompts
        rows += len(prompts)
        tokens += _tokens(encode(tokenizer, prompts))
        size += stored_bytes(len(prompts), width, sites)
        size += stored_bytes(len(prompts), width, 1)  # names at the embedding
    # The original, the candidate, references and the planted suppression.
    models = 3 + len(inputs.references)
    return ActivationSize(rows, tokens, models * size)


def check_room(
    out: Path, inputs: InputsOf[Any], config: AuditConfig, modality: ModalityName
) -> None:
    """Refuse an output folder without room for the audit; images store no activations."""
    if modality == "text":
        check_disk_space(out, activation_size(inputs, config, network_size(inputs.original)))


def check_disk_space(out: Path, size: ActivationSize) -> None:
    """Refuse an output folder that is a file, or without room for the activations.

    Args:
        out: Output folder; need not exist.
        size: Stored activations; those already there count as room.

    Raises:
        InputError: there is no room.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", expected="a folder to write the audit into")
    existing = out.resolve()
    while not existing.exists():
        existing = existing.parent
    done = sum(
        path.stat().st_size for path in (out / "work" / "activations").rglob("*") if path.is_file()
    )
    free = shutil.disk_usage(existing).free + done
    if size.bytes > free:
        raise InputError(
            f"not enough disk space for the activations of this audit in {out}",
            expected=f"{size.bytes / GIB:.2f} GiB",
            got=f"{free / GIB:.2f} GiB free",
            fix="Choose another --out, a smaller profile, or fewer axes",
        )


def _tokens(rows: Sequences) -> int:
    return sum(map(len, rows.ids))


def _widest(part: TaskPart, block: int) -> int:
    """Maximum number of rows of a part over all numbers of known items."""
    true_rows = [row for row, label in enumerate(part.labels) if label]
    if not part.with_answer or not true_rows:
        return len(part)
    items = len({(part.entities[row], part.answers[row]) for row in true_rows})
    max_statements = max(_statements(count, block) for count in range(1, items + 1))
    return ceil(BLOCK_SLACK * len(part) * max_statements / _statements(items, block))


def _statements(items: int, block: int) -> int:
    """Number of statements about ``items`` in even blocks."""
    blocks = max(1, items // block)
    size, larger = divmod(items, blocks)
    return larger * (size + 1) ** 2 + (blocks - larger) * size**2
