"""Probing tasks: predict the answer (shared form), or true against false (unique form).

*Shared answers*: several entities share each answer, so a multi-class probe fitted on retain
entities can predict the answer of a forgotten one. Codes are unique to an entity, but all have
one length and few distinct first characters: then the probe predicts the first character. A code
holds a digit: letters alone are never taken for one, whatever their number, because no test tells
random letters from the words of every language.

*Unique answers*: every entity has its own answer, so classes are never shared. The probe then
predicts the truth of statements. Entities are grouped into blocks, and every entity of a block
is paired with every answer of the block. Each answer is true once and false equally often
*within* the block, so neither the entity nor the answer alone reveals the true pairs.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.questions import Questions, build_questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, encode_items, skip_joining_space
from evidence.errors import InputError

Form = Literal["shared", "unique"]
PARTS = ("fit", "check", "forget", "never_taught")

# A forgotten answer counts as shared when at least this many fitting entities have it.
MIN_SHARERS = 3
# The shared form is used when at least this share of the forgotten items has a shared answer.
MIN_SHARED_FRACTION = 0.8


@dataclass(frozen=True)
class TaskPart:
    """Texts to probe, with their labels.

    Attributes:
        prompts: (row,) text before the answer.
        answers: (row,) answer appended to it.
        labels: (row,) class (shared form), or 1 for a true statement (unique form).
        entities: (row,) entity that the text is about.
        groups: (row,) index of block and paraphrase (unique form), else 0.
        columns: (row,) index of the answer within the block (unique form), else 0.
        with_answer: Whether the text is read with its answer, or up to where the answer begins.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    labels: np.ndarray
    entities: tuple[str, ...]
    groups: np.ndarray
    columns: np.ndarray
    with_answer: bool

    def __len__(self) -> int:
        return len(self.prompts)

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> Sequences:
        """Whole texts without a marked answer; the probe reads the last token."""
        rows = encode(tokenizer, self.prompts, self.answers)
        ids = rows.ids
        if not self.with_answer:
            starts = skip_joining_space(tokenizer, rows).answer_start
            pairs = zip(ids, starts, strict=True)
            ids = tuple(tokens[:start] for tokens, start in pairs)
        return Sequences(ids, tuple(map(len, ids)))


@dataclass(frozen=True)
class Task:
    """The probing task of one relation, the same for every model.

    Attributes:
        form: "shared" or "unique".
        n_classes: Number of answers (shared form), or 2.
        parts: Texts by part.
        classes: (class,) the answers, or their first characters (shared form).
        writable: Whether a class can be written as it is spelled: first characters can only where
            they are tokens of their own.
    """

    relation: str
    form: Form
    n_classes: int
    parts: dict[str, TaskPart]
    classes: tuple[str, ...] = ()
    writable: bool = True


def choose_form(forget: Sequence[Item], fit: Sequence[Item]) -> Form:
    """The shared form, where most forgotten answers belong to several fitting entities too."""
    entities_of: dict[str, set[str]] = {}
    for item in fit:
        entities_of.setdefault(normalize_text(item.answer), set()).add(item.entity)
    shared = [
        len(entities_of.get(normalize_text(item.answer), ())) >= MIN_SHARERS for item in forget
    ]
    return "shared" if np.mean(shared) >= MIN_SHARED_FRACTION else "unique"


def answers_are_codes(items: dict[str, list[Item]], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the answers are codes that can be asked for their first character.

    Codes have one length and no whitespace, and each holds a digit; other answers are words or
    texts, and are asked for as a whole. First characters must be shared as ``choose_form`` asks,
    none of them by more than half of the fitting items: a nearly constant character carries no
    information. The tokenizer must know each of them.

    Args:
        items: Items of one relation by part.
    """
    all_items = [item for part in items.values() for item in part]
    if len({len(item.answer) for item in all_items}) != 1 or not items["fit"]:
        return False
    if not all(_is_code(answer) for answer in {item.answer for item in all_items}):
        return False
    first = {
        part: [replace(item, answer=item.answer[0]) for item in items[part]]
        for part in ("forget", "fit")
    }
    common = Counter(normalize_text(item.answer) for item in first["fit"]).most_common(1)
    if common[0][1] > 0.5 * len(first["fit"]):
        return False
    if choose_form(first["forget"], first["fit"]) != "shared":
        return False
    signs = {item.answer[0]: item.prompt for item in all_items}
    try:
        encode(tokenizer, list(signs.values()), list(signs))
    except InputError:
        return False
    return True


def _is_code(answer: str) -> bool:
    return any(map(str.isdecimal, answer)) and not any(map(str.isspace, answer))


def _answer_tokens(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> list[tuple[int, ...]]:
    """Tokens of each answer, without a joining space that is its own token."""
    rows = skip_joining_space(tokenizer, encode_items(tokenizer, items))
    return [ids[start:] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


def make_tasks(
    sets: dict[str, ItemSet],
    tokenizer: PreTrainedTokenizerBase,
    *,
    wordings: int,
    statement_wordings: int,
    block_size: int,
    rng: np.random.Generator,
) -> tuple[list[Task], list[str]]:
    """One task for each relation with enough items in every part.

    Args:
        sets: Items by part ("fit", "check", "forget", "never_taught").
        wordings: Prompts per item (shared form).
        statement_wordings: Prompts per statement (unique form).
        block_size: Answers each entity is paired with (unique form).
        rng: Draws the blocks.

    Returns:
        The tasks, and notes on relations that were left out.
    """
    relations = tuple(dict.fromkeys(item.relation for item in sets["forget"]))
    tasks, notes = [], []
    for relation in relations:
        items = {part: [item for item in sets[part] if item.relation == relation] for part in PARTS}
        form = choose_form(items["forget"], items["fit"])
        if form == "shared":
            task = _shared(relation, items, wordings, str)
        elif answers_are_codes(items, tokenizer):
            length = len(items["forget"][0].answer)
            notes.append(
                f"relation {relation!r}: no answer is shared and all are {length} "
                "signs long, so probes name the sign an answer begins with, not the "
                "answer"
            )
            task = _shared(relation, items, wordings, _first_sign)
            task = replace(task, writable=_begin_with_a_sign(items, tokenizer))
        else:
            task = _unique(relation, items, statement_wordings, block_size, rng)
        short = [part for part in PARTS if len(set(task.parts[part].entities)) < 4]
        if short or task.n_classes < 2:
            notes.append(
                f"relation {relation!r} is not probed: too few "
                f"{' and '.join(short) or 'answers'} entities"
            )
        else:
            tasks.append(task)
    return tasks, notes


def _first_sign(answer: str) -> str:
    return answer[0]


def _begin_with_a_sign(items: dict[str, list[Item]], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the first token of every answer is its first character alone."""
    all_items = [item for part in items.values() for item in part]
    answers = _answer_tokens(tokenizer, all_items)
    return all(
        str(tokenizer.decode([tokens[0]])).strip() == item.answer[0]
        for item, tokens in zip(all_items, answers, strict=True)
    )


def _shared(
    relation: str, items: dict[str, list[Item]], wordings: int, kind: Callable[[str], str]
) -> Task:
    """The task of predicting the answer, or its first character (``kind``)."""
    spelled = {normalize_text(kind(i.answer)): kind(i.answer) for i in reversed(items["fit"])}
    classes = {answer: number for number, answer in enumerate(sorted(spelled))}
    parts = {}
    for name, members in items.items():
        questions: Questions = build_questions(members, wordings)
        selected = questions.select([normalize_text(kind(a)) in classes for a in questions.answers])
        zeros = np.zeros(len(selected), dtype=int)
        parts[name] = TaskPart(
            prompts=selected.prompts,
            answers=tuple(selected.answers),
            labels=np.array(
                [classes[normalize_text(kind(a))] for a in selected.answers], dtype=int
            ),
            entities=tuple(selected.entities),
            groups=zeros,
            columns=zeros,
            with_answer=False,
        )
    names = tuple(spelled[answer] for answer in classes)
    return Task(relation, "shared", len(classes), parts, names)


def _unique(
    relation: str, items: dict[str, list[Item]], wordings: int, block: int, rng: np.random.Generator
) -> Task:
    parts = {name: _statements(members, wordings, block, rng) for name, members in items.items()}
    return Task(relation, "unique", 2, parts)


def _statements(items: list[Item], wordings: int, block: int, rng: np.random.Generator) -> TaskPart:
    """Every entity of a block with every answer of the block, for each paraphrase."""
    prompts, answers, labels, entities, groups, columns = [], [], [], [], [], []
    group = 0
    for members in make_blocks(items, block, rng):
        for wording in range(wordings):
            for item in members:
                texts = (item.prompt, *item.paraphrases)
                if wording >= len(texts):
                    continue
                for column, other in enumerate(members):
                    prompts.append(texts[wording])
                    answers.append(other.answer)
                    labels.append(int(other is item))
                    entities.append(item.entity)
                    groups.append(group)
                    columns.append(column)
            group += 1
    return TaskPart(
        tuple(prompts),
        tuple(answers),
        np.array(labels, dtype=int),
        tuple(entities),
        np.array(groups, dtype=int),
        np.array(columns, dtype=int),
        with_answer=True,
    )


def make_blocks(items: Sequence[Item], size: int, rng: np.random.Generator) -> list[list[Item]]:
    """Group items into blocks of about ``size`` without repeated entities or answers.

    Items that fit in no block of two or more are dropped.
    """
    order = [items[position] for position in rng.permutation(len(items))]
    n_blocks = max(1, len(order) // size)
    groups: list[list[Item]] = []
    # Indices of the groups by their length, ascending, and those that hold an entity or answer:
    # trying every group for every item would take quadratic time.
    by_length: list[list[int]] = [[]]
    holding: dict[tuple[str, str], set[int]] = defaultdict(set)
    for item in order:
        keys = ("entity", item.entity), ("answer", normalize_text(item.answer))
        taken = holding[keys[0]] | holding[keys[1]]
        free = (index for indices in by_length for index in indices if index not in taken)
        shortest = next(free, None)
        if shortest is not None and (len(groups[shortest]) < size or len(groups) >= n_blocks):
            length = len(groups[shortest])
            groups[shortest].append(item)
            del by_length[length][bisect_left(by_length[length], shortest)]
            if len(by_length) <= length + 1:
                by_length.append([])
            insort(by_length[length + 1], shortest)
        else:
            shortest = len(groups)
            groups.append([item])
            if len(by_length) < 2:
                by_length.append([])
            by_length[1].append(shortest)
        for key in keys:
            holding[key].add(shortest)
    return [members for members in groups if len(members) > 1]


def row_scores(task: Task, part: TaskPart, scores: np.ndarray) -> np.ndarray:
    """Score of each row, site by site.

    Args:
        scores: (site, row, output) decision values.

    Returns:
        (row, site) in [0, 1]. Shared form: 1 where the right answer scores highest. Unique
        form: true statements as in ``within_entity_rank``, false ones NaN.
    """
    if task.form == "shared":
        return (scores.argmax(2) == part.labels).T.astype(float)
    ranks = within_entity_rank(part, scores[:, :, 0])
    return np.where((part.labels == 1)[:, None], ranks, np.nan)


def rows_by_group(part: TaskPart) -> list[np.ndarray]:
    """The rows of each group, in ascending order of groups and rows."""
    order = np.argsort(part.groups, kind="stable")
    cuts = np.flatnonzero(np.diff(part.groups[order])) + 1
    return np.split(order, cuts) if len(order) else []


def within_entity_rank(part: TaskPart, values: np.ndarray) -> np.ndarray:
    """Within-entity rank of each statement (unique form): a rank AUC with chance 0.5.

    Args:
        values: (site, row) decision values.

    Returns:
        (row, site): the share of the other statements about the same entity, for the same
        paraphrase, that score lower. Each answer's mean over its block is subtracted first,
        which removes answer-frequency bias. Ties count one half, so the mean over an entity's
        statements is exactly 0.5.
    """
    result = np.zeros((len(part), len(values)))
    names = np.array(part.entities)
    for rows in rows_by_group(part):
        centered = values[:, rows].copy()
        for column in np.unique(part.columns[rows]):
            same = part.columns[rows] == column
            centered[:, same] -= centered[:, same].mean(1, keepdims=True)
        # Differences at rounding level (a site that sees only the answer) count as ties.
        tolerance = 1e-6 * np.maximum(np.abs(values[:, rows]).max(1), 1e-12)
        for name in dict.fromkeys(names[rows]):
            own_rows = np.flatnonzero(names[rows] == name)
            difference = centered[:, own_rows, None] - centered[:, None, own_rows]
            tied = np.abs(difference) <= tolerance[:, None, None]
            wins = ((difference > 0) & ~tied).sum(2) + 0.5 * (tied.sum(2) - 1)
            result[rows[own_rows]] = (wins / (len(own_rows) - 1)).T
    return result
