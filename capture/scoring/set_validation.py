"""Validation of a forget set against its retain set."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.tokenization import encode_items
from evidence.display.html_table import frame_html
from evidence.errors import InputError, printable

# Swapped files are suspected by size, and detected by behavior.
SWAP_SIZE_RATIO = 3.0  # forget over retain, in entities, from which a swap is suspected
MIN_SWAP_KEPT = 0.8  # share of known forget items still answered ...
MIN_SWAP_LOST = 0.6  # ... and of known retain items lost, that mean a swap
MIN_KNOWN = 5  # known items below which shares say nothing


@dataclass(frozen=True)
class PairScores:
    """(item,) bool, whether each model answers each item, in the order of the sets."""

    original_forget: np.ndarray
    original_retain: np.ndarray
    unlearned_forget: np.ndarray | None = None
    unlearned_retain: np.ndarray | None = None


@dataclass(frozen=True)
class SetSummary:
    """Statistics of one set.

    Attributes:
        role: "forget" or "retain".
        name: Name of the set.
        format: Recognized file format.
        items: Number of items.
        entities: Number of entities.
        answers: (relation, number of different answers), sorted by relation.
        repeated: Number of items that repeat an earlier prompt and answer.
        disputed: Number of prompts with more than one answer.
        without_alternatives: Number of items without alternatives.
        paraphrases: Minimum number of paraphrases per item.
        tokens: Minimum and maximum answer length in tokens; None without a tokenizer.
        known: Number of items that the original answers by greedy decoding; None without
            scores.
        kept: Number of known items that the unlearned model answers too; None without scores.
        sample: Up to three pairs of prompt and answer.
    """

    role: str
    name: str
    format: str
    items: int
    entities: int
    answers: tuple[tuple[str, int], ...]
    repeated: int
    disputed: int
    without_alternatives: int
    paraphrases: int
    tokens: tuple[int, int] | None
    known: int | None
    kept: int | None
    sample: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ValidationReport:
    """Result of ``validate_items``.

    Attributes:
        forget: Statistics of the forget set.
        retain: Statistics of the retain set.
        overlap: Entities in both sets, spelled as in the forget set.
        errors: Problems that make an audit of these sets invalid.
        warnings: Problems that reduce its power, and possible mistakes.
    """

    forget: SetSummary
    retain: SetSummary
    overlap: tuple[str, ...]
    errors: tuple[InputError, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return not self.errors

    def check(self) -> None:
        """Raise the first of ``errors``, if any."""
        if self.errors:
            raise self.errors[0]

    def to_frame(self) -> pd.DataFrame:
        """One row per set, one column per statistic."""
        rows = []
        for part in (self.forget, self.retain):
            low, high = part.tokens or (None, None)
            rows.append(
                {
                    "set": part.role,
                    "name": part.name,
                    "format": part.format,
                    "items": part.items,
                    "entities": part.entities,
                    "relations": len(part.answers),
                    "answers": sum(count for _, count in part.answers),
                    "repeated": part.repeated,
                    "disputed": part.disputed,
                    "without_alternatives": part.without_alternatives,
                    "paraphrases": part.paraphrases,
                    "shortest_answer": low,
                    "longest_answer": high,
                    "known": part.known,
                    "kept": part.kept,
                    "overlap": len(self.overlap),
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        figures = self.to_frame().set_index("set").T.reset_index(names="")
        return frame_html("\n".join(str(self).splitlines()[-1:]), figures)

    def __str__(self) -> str:
        lines: list[str] = []
        for part in (self.forget, self.retain):
            lines += _summary_lines(part)
        shared = ", ".join(map(printable, self.overlap[:3])) + (" ..." if self.overlap[3:] else "")
        lines.append(f"entities in both: {len(self.overlap)} {shared}".rstrip())
        lines += [f"error: {error}" for error in self.errors]
        lines += [f"warning: {warning}" for warning in self.warnings]
        if self.ok:
            unasked = self.forget.known is None or self.retain.known is None
            provided = ", if the original knows enough of them" if unasked else ""
            lines.append(f"These sets can be audited{provided}.")
        return "\n".join(lines)


def validate_items(
    forget: ItemSet,
    retain: ItemSet,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scores: PairScores | None = None,
) -> ValidationReport:
    """Validate a forget set and its retain set.

    Problems are collected in the report; ``ValidationReport.check`` raises the first error.

    Args:
        forget: Items that should be forgotten.
        retain: Items that should be retained.
        tokenizer: If given, the tokenization of all prompts and answers is checked.
        scores: Scores of the original, to count known items, and optionally of the unlearned
            model, to detect swapped files.
    """
    known = (
        {"forget": None, "retain": None}
        if scores is None
        else {
            "forget": (scores.original_forget, scores.unlearned_forget),
            "retain": (scores.original_retain, scores.unlearned_retain),
        }
    )
    errors: list[InputError] = []
    warnings: list[str] = []
    parts = {}
    for role, items in (("forget", forget), ("retain", retain)):
        tokens = _tokens(role, items, tokenizer, errors) if tokenizer else None
        parts[role] = _summary(role, items, tokens, known[role], errors)
        warnings += _set_warnings(role, items, parts[role])
    folded = {normalize_text(entity) for entity in retain.entities}
    overlap = tuple(entity for entity in forget.entities if normalize_text(entity) in folded)
    if overlap:
        errors.insert(0, _overlap_error(overlap))
    swap = _detect_swap(parts["forget"], parts["retain"])
    if isinstance(swap, InputError):
        errors.append(swap)
    elif swap:
        warnings.append(swap)
    return ValidationReport(
        parts["forget"], parts["retain"], overlap, tuple(errors), tuple(warnings)
    )


def _summary(
    role: str,
    items: ItemSet,
    tokens: tuple[int, int] | None,
    scores: tuple[np.ndarray, np.ndarray | None] | None,
    errors: list[InputError],
) -> SetSummary:
    if not len(items):
        errors.append(
            InputError(
                f"the {role} set is empty", expected="one item or more", fix="Check the file"
            )
        )
    answers: dict[str, set[str]] = defaultdict(set)
    by_prompt: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        answers[item.relation].add(normalize_text(item.answer))
        by_prompt[_asked(item)][normalize_text(item.answer)] += 1
    original, unlearned = scores or (None, None)
    return SetSummary(
        role=role,
        name=items.name,
        format=items.format,
        items=len(items),
        entities=len(items.entities),
        answers=tuple((rel, len(counts)) for rel, counts in sorted(answers.items())),
        repeated=sum(sum(counts.values()) - len(counts) for counts in by_prompt.values()),
        disputed=sum(len(counts) > 1 for counts in by_prompt.values()),
        without_alternatives=sum(not item.alternatives for item in items),
        paraphrases=min((len(item.paraphrases) for item in items), default=0),
        tokens=tokens,
        known=None if original is None else int(_answered(role, items, original).sum()),
        kept=None
        if original is None or unlearned is None
        else int((_answered(role, items, original) & _answered(role, items, unlearned)).sum()),
        sample=tuple((item.prompt, item.answer) for item in items.items[:3]),
    )


def _answered(role: str, items: ItemSet, scores: np.ndarray) -> np.ndarray:
    if np.shape(scores) != (len(items),):
        raise InputError(
            f"the scores are not those of the {role} set",
            expected=f"{len(items)} rows",
            got=f"the shape {np.shape(scores)}",
        )
    return np.asarray(scores, dtype=bool)


def _tokens(
    role: str, items: ItemSet, tokenizer: PreTrainedTokenizerBase, errors: list[InputError]
) -> tuple[int, int] | None:
    try:
        rows = encode_items(tokenizer, items)
        for index in range(max((len(item.paraphrases) for item in items), default=0)):
            having = [item for item in items if len(item.paraphrases) > index]
            encode_items(tokenizer, having, index)
    except InputError as error:
        errors.append(error.prefixed(f"in the {role} set, "))
        return None
    lengths = [len(ids) - start for ids, start in zip(rows.ids, rows.answer_start, strict=True)]
    return (min(lengths), max(lengths)) if lengths else None


def _set_warnings(role: str, items: ItemSet, part: SetSummary) -> list[str]:
    warnings = []
    if part.repeated:
        warnings.append(
            f"{part.repeated} items of the {role} set repeat an earlier prompt and "
            "answer: they add no evidence"
        )
    if part.disputed:
        warnings.append(
            f"{part.disputed} prompts of the {role} set have more than one answer: a "
            "model can give one of them only"
        )
    split = _split_prompts(items.items)
    if split:
        warnings.append(
            f"{split} prompts of the {role} set occur under several entities: parts "
            "split by entity share them"
        )
    spaced = sum(item.prompt[-1:] == " " for item in items)
    if spaced:
        warnings.append(
            f"{spaced} prompts of the {role} set end in a space: models read that as "
            "another word, so drop it"
        )
    leaking = sum(normalize_text(item.answer) in normalize_text(item.prompt) for item in items)
    if leaking:
        warnings.append(
            f"{leaking} prompts of the {role} set hold their answer: answering them "
            "takes no knowledge"
        )
    if part.known is not None and part.items and part.known < 0.5 * part.items:
        warnings.append(
            f"the original answers {part.known} of {part.items} {role} items: the "
            "others cannot show what was forgotten"
        )
    return warnings


def _asked(item: Item) -> str:
    """What is asked: the prompt, with the choices that it shows."""
    return normalize_text(" ".join((item.prompt, *item.choices)))


def _split_prompts(items: Sequence[Item]) -> int:
    entities: dict[str, set[str]] = defaultdict(set)
    for item in items:
        entities[_asked(item)].add(normalize_text(item.entity))
    return sum(len(names) > 1 for names in entities.values())


def _overlap_error(overlap: tuple[str, ...]) -> InputError:
    shown = ", ".join(repr(entity) for entity in overlap[:3])
    more = f" and {len(overlap) - 3} more" if len(overlap) > 3 else ""
    return InputError(
        "the forget set and the retain set share entities",
        expected="every entity in one of the two",
        got=f"{shown}{more} in both",
        fix="Remove them from one of the files; a probe fitted on one set would have "
        "seen the other",
    )


def swapped_files_error(forget: tuple[int, int], retain: tuple[int, int]) -> InputError | None:
    """An error if the behavior of the models indicates swapped files, else None.

    Args:
        forget: Number of forget items known to the original, and of those still answered by the
            unlearned model.
        retain: The same for the retain items.
    """
    (forget_known, forget_kept), (retain_known, retain_kept) = forget, retain
    if (
        min(forget_known, retain_known) >= MIN_KNOWN
        and forget_kept >= MIN_SWAP_KEPT * forget_known
        and retain_kept <= (1 - MIN_SWAP_LOST) * retain_known
    ):
        return InputError(
            "the forget and the retain file look swapped",
            expected="an unlearned model that lost more of the forget set",
            got=f"it still answers {forget_kept} of {forget_known} forget "
            f"items and {retain_kept} of {retain_known} retain items",
            fix="Exchange the two files",
        )
    return None


def _detect_swap(forget: SetSummary, retain: SetSummary) -> InputError | str | None:
    """An error if the behavior indicates a swap, a warning if only the sizes do."""
    if forget.known is not None and retain.known is not None:
        if forget.kept is not None and retain.kept is not None:
            error = swapped_files_error((forget.known, forget.kept), (retain.known, retain.kept))
            if error or min(forget.known, retain.known) >= MIN_KNOWN:
                return error  # behavior takes precedence over sizes
    if forget.entities >= SWAP_SIZE_RATIO * max(1, retain.entities):
        return (
            f"the forget set has {forget.entities} entities and the retain set "
            f"{retain.entities}: were the two files swapped?"
        )
    return None


def _summary_lines(part: SetSummary) -> list[str]:
    lines = [
        f"{part.role} set {part.name!r}, understood as {printable(part.format)}: "
        f"{part.items} items about {part.entities} entities"
    ]
    for relation, count in part.answers[:5]:
        label = f"relation {relation!r}" if relation else "one relation"
        lines.append(f"  {label}: {count} different answers")
    if part.answers[5:]:
        lines.append(f"  and {len(part.answers) - 5} more relations")
    lines.append(
        f"  repeated items: {part.repeated}; prompts with several answers: "
        f"{part.disputed}; paraphrases: {part.paraphrases} or more an item; items "
        f"without alternatives: {part.without_alternatives}"
    )
    if part.tokens is not None:
        lines.append(f"  answers of {part.tokens[0]} to {part.tokens[1]} tokens")
    if part.known is not None:
        kept = "" if part.kept is None else f", the unlearned model {part.kept} of them"
        lines.append(f"  the original answers {part.known} of {part.items}{kept}")
    for prompt, answer in part.sample[:1]:
        shown = prompt if len(prompt) <= 120 else f"{prompt[:57]} ... {prompt[-57:]}"
        lines.append(f"  such as {shown!r} -> {answer[:80]!r}")
    return lines
