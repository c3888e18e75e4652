"""What an audit keeps on disk, and whether there is room for it."""

import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from audits.axes.decodability.tasks import TaskPart
from audits.axes.decodability.text_probes import make_audit_tasks
from audits.axes.membership.scores import select_sets
from audits.core.config import AuditConfig
from audits.core.inputs import Inputs
from audits.core.item_sets import invent_never_taught, within_budget
from capture.activations.store import stored_bytes
from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from capture.network.network_size import NetworkSize
from evidence.errors import InputError

GIB = 1 << 30
# Blocks of statements are not quite even: no entity or answer is twice in one.
BLOCK_SLACK = 1.1


@dataclass(frozen=True)
class ActivationSize:
    """Activations that are kept, were everything known that was given.

    Attributes:
        rows: Texts read in every model.
        tokens: In these.
        bytes: On disk, of all models together.
    """

    rows: int
    tokens: int
    bytes: int


def activation_size(
    inputs: Inputs, config: AuditConfig, structure: NetworkSize
) -> ActivationSize:
    """What probes and readers of signatures read, and what it takes on disk.

    It is what the audit itself captures, where the original answers every item. Where
    it answers fewer, blocks of statements can be wider; that is allowed for.

    Args:
        inputs: Of the audit.
        config: Its settings.
        structure: Of the models.
    """
    axes = set(config.axes)
    same = inputs.original.weights_hash == inputs.unlearned.weights_hash
    if same or not axes & {"decodability", "concept", "membership"}:
        return ActivationSize(0, 0, 0)
    width, sites = structure.d_model or 0, (structure.n_layers or 0) + 1
    retain = within_budget(inputs.retain, config)
    never = inputs.never_taught or invent_never_taught(inputs.forget, retain, config)
    tokenizer = inputs.original.tokenizer
    rows = tokens = size = 0
    if axes & {"decodability", "concept"}:
        tasks, _ = make_audit_tasks(inputs.forget, retain, never, tokenizer, config)
        parts = [part for task in tasks for part in task.parts.values()]
        wide = [_widest(part, config.budget.block) for part in parts]
        rows += sum(wide)
        tokens += sum(
            ceil(_tokens(part.encoded(tokenizer)) * most / max(1, len(part)))
            for part, most in zip(parts, wide, strict=True)
        )
        size += stored_bytes(sum(wide), width, sites)
    if "membership" in axes:
        try:
            wordings = config.budget.prompts_per_item
            asked = select_sets(inputs.forget, retain, never, wordings, config.seed)
        except InputError:  # the axis says so itself and is left out
            prompts = []
        else:
            prompts = asked.prompts
        rows += len(prompts)
        tokens += _tokens(encode(tokenizer, prompts))
        size += stored_bytes(len(prompts), width, sites)
        size += stored_bytes(len(prompts), width, 1)  # names at the embedding
    # Original, candidate, references and what is planted.
    models = 3 + len(inputs.references)
    return ActivationSize(rows, tokens, models * size)


def check_disk_space(out: Path, size: ActivationSize) -> None:
    """Refuse a folder that is a file, or without room for what is kept.

    Args:
        out: Where the audit will write; need not be there yet.
        size: What it will keep; what is there of it already counts as room.

    Raises:
        InputError: there is no room.
    """
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{out} is a file", expected="a folder to write the audit into"
        )
    there = out.resolve()
    while not there.exists():
        there = there.parent
    done = sum(
        path.stat().st_size
        for path in (out / "work" / "activations").rglob("*")
        if path.is_file()
    )
    free = shutil.disk_usage(there).free + done
    if size.bytes > free:
        raise InputError(
            f"there is no room for the activations of this audit in {out}",
            expected=f"{size.bytes / GIB:.2f} GiB",
            got=f"{free / GIB:.2f} GiB free",
            fix="Choose another --out, a smaller profile, or fewer axes",
        )


def _tokens(rows: Sequences) -> int:
    return sum(map(len, rows.ids))


def _widest(part: TaskPart, block: int) -> int:
    """Rows of a part at most, were any of its items not known."""
    true = [row for row, label in enumerate(part.labels) if label]
    if not part.with_answer or not true:
        return len(part)
    items = len({(part.entities[row], part.answers[row]) for row in true})
    most = max(_statements(count, block) for count in range(1, items + 1))
    return ceil(BLOCK_SLACK * len(part) * most / _statements(items, block))


def _statements(items: int, block: int) -> int:
    """Statements about so many items in even blocks, each with all its answers."""
    blocks = max(1, items // block)
    size, larger = divmod(items, blocks)
    return larger * (size + 1) ** 2 + (blocks - larger) * size**2
