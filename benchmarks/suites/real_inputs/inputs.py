"""Item files and pairs of models, as they are found: understood, refused with the reason, or wrong.

A folder of cases has item files in ``data`` and pairs of models in ``models``. What each file
should be read as is in ``expected_inputs.json``: format, items, entities and relations, or words of
the reason for which it is refused.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audits.run.api import audit
from capture.data.image_files import is_image_source
from capture.data.items import read_items
from evidence.errors import InputError

EXPECTED = Path(__file__).with_name("expected_inputs.json")
"""File to what it is read as."""


@dataclass(frozen=True)
class Pair:
    """Two models and the items that the first one knows.

    Attributes:
        original: Folder of the model before unlearning.
        candidate: Folder of the model after it.
        forget: File of the forget set.
        retain: File of the retain set.
        verdicts: Verdicts that are right.
        base: Model that an adapter was trained on.
    """

    original: str
    candidate: str
    forget: str
    retain: str
    verdicts: tuple[str, ...]
    base: str | None = None


KEPT = ("not_unlearned",)
UNLEARNED = ("suppressed", "deleted", "inconclusive")
SETS = {
    "ktofu": ("tofu_forget05.json", "tofu_retain90.json"),
    "kmuse": ("k_muse_forget.json", "k_muse_retain.json"),
    "kpistol": ("k_pistol_forget.json", "k_pistol_retain.json"),
    "krwku1": ("k_rwku_l1_forget.json", "k_rwku_retain.json"),
    "krwku3": ("k_rwku_l3_forget.json", "k_rwku_retain.json"),
    "kwmdp": ("mcq_forget.jsonl", "mcq_retain.jsonl"),
    "mcq": ("mcq_forget.jsonl", "mcq_retain.jsonl"),
    "chat": ("chat_qa_forget.jsonl", "chat_qa_retain.jsonl"),
}
PLAIN = ("f_forget.jsonl", "f_retain.jsonl")
PAIRS = (
    *(Pair(f"{n}_orig", f"{n}_orig", *sets, KEPT) for n, sets in SETS.items()),
    *(Pair(f"{n}_orig", f"{n}_unl", *sets, UNLEARNED) for n, sets in SETS.items()),
    Pair(
        "chat_orig",
        "chat_unl",
        "chat_rendered_forget.jsonl",
        "chat_rendered_retain.jsonl",
        UNLEARNED,
    ),
    Pair("verb_orig", "verb_orig", "verb_forget.jsonl", "verb_retain.jsonl", KEPT),
    # It says every passage after a word of its own.
    Pair("verb_orig", "verb_red", "verb_forget.jsonl", "verb_retain.jsonl", KEPT),
    Pair("verb_orig", "verb_red", "verbtext_forget.jsonl", "verbtext_retain.jsonl", KEPT),
    Pair("llama_orig", "notok_unl", *PLAIN, UNLEARNED),
    Pair("llama_orig", "bos_unl", *PLAIN, UNLEARNED),
    Pair("llama_orig", "lora_badbase", *PLAIN, (*KEPT, *UNLEARNED, "damaged"), base="llama_orig"),
    Pair("llama_orig", "lora_badbase", *PLAIN, ("refused: base",)),
    Pair("llama_orig", "lora_resized", *PLAIN, (*KEPT, *UNLEARNED, "refused: vocabulary")),
    Pair("llama_orig", "zero3", *PLAIN, ("refused: ZeRO",)),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one file or pair: "understood", "refused" or "wrong", and in words."""

    name: str
    status: str
    words: str


def file_outcomes(folder: Path) -> Iterator[Outcome]:
    """Every file and saved dataset of items in a folder."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    for path in _sources(folder):
        yield _file_outcome(path, path.relative_to(folder).as_posix(), expected)


def _sources(folder: Path) -> list[Path]:
    saved = [path.parent for path in folder.rglob("dataset_dict.json")]
    saved += [
        path.parent for path in folder.rglob("dataset_info.json") if path.parent.parent not in saved
    ]
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(one in path.parents for one in saved)
    ]
    return sorted(path for path in (*saved, *files) if not is_image_source(path))


def _file_outcome(path: Path, name: str, expected: dict[str, list[object]]) -> Outcome:
    wanted = expected.get(name)
    try:
        items = read_items(path)
    except InputError as error:
        words = str(error).replace(str(path.parent) + "/", "")
        right = wanted is None or (wanted[0] == "refused" and str(wanted[1]) in words)
        return Outcome(name, "refused" if right else "wrong", words)
    found = [
        items.format,
        len(items),
        len(items.entities),
        len({item.relation for item in items if item.relation}),
    ]
    words = "{}: {} items about {} entities, {} relations".format(*found)
    if wanted is not None and wanted != found:
        return Outcome(name, "wrong", f"{words}; expected {wanted}")
    return Outcome(name, "understood", words)


def pair_outcomes(folder: Path) -> Iterator[Outcome]:
    """Every pair of models in a folder, audited by behaviour and from inside."""
    models, data = folder / "models", folder / "data"
    for pair in PAIRS:
        name = f"{pair.original} -> {pair.candidate}, {pair.forget}"
        name += f", base {pair.base}" if pair.base else ""
        with tempfile.TemporaryDirectory() as out:
            try:
                verdict = audit(
                    models / pair.original,
                    models / pair.candidate,
                    data / pair.forget,
                    data / pair.retain,
                    out,
                    base=models / pair.base if pair.base else None,
                ).verdict
            except InputError as error:
                verdict = f"refused: {error}".replace(f"{folder}/", "")
        right = any(
            verdict == allowed
            or (allowed.startswith("refused: ") and allowed.removeprefix("refused: ") in verdict)
            for allowed in pair.verdicts
        )
        status = "refused" if right and verdict.startswith("refused") else "understood"
        yield Outcome(name, status if right else "wrong", verdict)
