"""What a probe is asked: which answer (shared answers), or true or false (unique).

*Shared answers*: several entities share each answer, so a multi-class probe fitted on
retain entities can name the answer of a forgotten one. Codes are each somebody's own,
but all of one length and spelled with the same few signs: then the probe names the sign
an answer begins with. Words that happen to be of one length are not codes.

*Unique answers*: every entity has its own, so no class is ever shared. The probe then
reads the truth of statements. Entities are put in blocks and every entity of a block is
paired with every answer of it: each answer is true once and false equally often
*within* the block, so neither entity nor answer word tells which pairs are true.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.questions import Questions, build_questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, encode_items, skip_joining_space

Form = Literal["shared", "unique"]
PARTS = ("fit", "check", "forget", "never_taught")

# A forgotten answer counts as shared when this many fitting entities have it too.
MIN_SHARERS = 3
# ... and the form is chosen when this share of forgotten items has a shared answer.
MIN_SHARED_FRACTION = 0.8


@dataclass(frozen=True)
class TaskPart:
    """Texts to read, with what is true of them.

    Attributes:
        prompts: (row,) text before the answer.
        answers: (row,) answer put after it.
        labels: (row,) class (shared) or 1 for a true statement (unique).
        entities: (row,) entity the text is about.
        groups: (row,) number of the block and wording (unique), else 0.
        columns: (row,) number of the answer within the block (unique), else 0.
        with_answer: Whether the text is read with its answer, or up to where that begins.
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
        """Whole texts without a marked answer: the last token is what is read."""
        rows = encode(tokenizer, self.prompts, self.answers)
        ids = rows.ids
        if not self.with_answer:
            starts = skip_joining_space(tokenizer, rows).answer_start
            pairs = zip(ids, starts, strict=True)
            ids = tuple(each[:start] for each, start in pairs)
        return Sequences(ids, tuple(map(len, ids)))


@dataclass(frozen=True)
class Task:
    """One relation's probing task, with the same parts for every model.

    Attributes:
        relation: Kind of fact.
        form: How it is asked.
        n_classes: Answers (shared form), or true and false.
        parts: Texts by part.
        classes: (class,) the answers themselves, or what they begin with (shared form).
        writable: Whether a model says a class as it is spelled: where classes are the signs
            that answers begin with, only if these are tokens of their own.
    """

    relation: str
    form: Form
    n_classes: int
    parts: dict[str, TaskPart]
    classes: tuple[str, ...] = ()
    writable: bool = True


def choose_form(forget: Sequence[Item], fit: Sequence[Item]) -> Form:
    """Shared when most forgotten answers belong to several fitting entities too."""
    holders: dict[str, set[str]] = {}
    for item in fit:
        holders.setdefault(normalize_text(item.answer), set()).add(item.entity)
    shared = [
        len(holders.get(normalize_text(item.answer), ())) >= MIN_SHARERS
        for item in forget
    ]
    return "shared" if np.mean(shared) >= MIN_SHARED_FRACTION else "unique"


def answers_are_codes(
    items: dict[str, list[Item]], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether the answers are codes: of one length, and first signs tell some apart.

    Words of one length are no codes: answers with letters in them need several tokens
    each, and all as many. First signs must be shared as ``choose_form`` asks, none of
    them by more than half of the fitting items: what is nearly always the same sign
    tells nothing.

    Args:
        items: Items of one relation by part.
        tokenizer: Splits the answers.
    """
    every = [item for part in items.values() for item in part]
    if len({len(item.answer) for item in every}) != 1 or not items["fit"]:
        return False
    if any(sign.isalpha() for item in every for sign in item.answer):
        lengths = {len(answer) for answer in _answer_tokens(tokenizer, every)}
        if len(lengths) != 1 or lengths == {1}:
            return False
    first = {
        part: [replace(item, answer=item.answer[0]) for item in items[part]]
        for part in ("forget", "fit")
    }
    common = Counter(normalize_text(item.answer) for item in first["fit"]).most_common(
        1
    )
    if common[0][1] > 0.5 * len(first["fit"]):
        return False
    return choose_form(first["forget"], first["fit"]) == "shared"


def _answer_tokens(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> list[tuple[int, ...]]:
    """Each answer's tokens, less a joining space that is a token of its own."""
    rows = skip_joining_space(tokenizer, encode_items(tokenizer, items))
    return [ids[at:] for ids, at in zip(rows.ids, rows.answer_start, strict=True)]


def make_tasks(
    sets: dict[str, ItemSet],
    tokenizer: PreTrainedTokenizerBase,
    *,
    wordings: int,
    statement_wordings: int,
    block_size: int,
    rng: np.random.Generator,
) -> tuple[list[Task], list[str]]:
    """One task a relation that has enough items in every part.

    Args:
        sets: Items by part ("fit", "check", "forget", "never_taught").
        tokenizer: Splits answers.
        wordings: Wordings a question is asked in (shared form).
        statement_wordings: Wordings a statement is built from (unique form).
        block_size: Answers an entity is paired with (unique form).
        rng: Draws the blocks.

    Returns:
        The tasks, and sentences about relations left out.
    """
    relations = tuple(dict.fromkeys(item.relation for item in sets["forget"]))
    tasks, notes = [], []
    for relation in relations:
        items = {
            part: [item for item in sets[part] if item.relation == relation]
            for part in PARTS
        }
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


def _begin_with_a_sign(
    items: dict[str, list[Item]], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether each answer's first token is its first sign and no more."""
    every = [item for part in items.values() for item in part]
    answers = _answer_tokens(tokenizer, every)
    return all(
        str(tokenizer.decode([tokens[0]])).strip() == item.answer[0]
        for item, tokens in zip(every, answers, strict=True)
    )


def _shared(
    relation: str,
    items: dict[str, list[Item]],
    wordings: int,
    kind: Callable[[str], str],
) -> Task:
    """The task of naming an answer's kind: itself, or the sign it begins with."""
    spelled = {
        normalize_text(kind(i.answer)): kind(i.answer) for i in reversed(items["fit"])
    }
    classes = {answer: number for number, answer in enumerate(sorted(spelled))}
    parts = {}
    for name, members in items.items():
        questions: Questions = build_questions(members, wordings)
        kept = questions.select(
            [normalize_text(kind(a)) in classes for a in questions.answers]
        )
        zeros = np.zeros(len(kept), dtype=int)
        parts[name] = TaskPart(
            prompts=kept.prompts,
            answers=tuple(kept.answers),
            labels=np.array(
                [classes[normalize_text(kind(a))] for a in kept.answers], dtype=int
            ),
            entities=tuple(kept.entities),
            groups=zeros,
            columns=zeros,
            with_answer=False,
        )
    names = tuple(spelled[answer] for answer in classes)
    return Task(relation, "shared", len(classes), parts, names)


def _unique(
    relation: str,
    items: dict[str, list[Item]],
    wordings: int,
    block: int,
    rng: np.random.Generator,
) -> Task:
    parts = {
        name: _statements(members, wordings, block, rng)
        for name, members in items.items()
    }
    return Task(relation, "unique", 2, parts)


def _statements(
    items: list[Item], wordings: int, block: int, rng: np.random.Generator
) -> TaskPart:
    """Every entity of a block with every answer of the block, in each wording."""
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


def make_blocks(
    items: Sequence[Item], size: int, rng: np.random.Generator
) -> list[list[Item]]:
    """Items in blocks of about ``size``; no entity and no answer twice in a block.

    Items that fit in no block of two or more are left out.
    """
    order = [items[place] for place in rng.permutation(len(items))]
    wanted = max(1, len(order) // size)
    found: list[list[Item]] = []
    for item in order:
        fitting = [
            members
            for members in found
            if all(
                other.entity != item.entity
                and normalize_text(other.answer) != normalize_text(item.answer)
                for other in members
            )
        ]
        open_to = [members for members in fitting if len(members) < size]
        if open_to:
            min(open_to, key=len).append(item)
        elif len(found) < wanted or not fitting:
            found.append([item])
        else:
            min(fitting, key=len).append(item)
    return [members for members in found if len(members) > 1]


def row_scores(task: Task, part: TaskPart, scores: np.ndarray) -> np.ndarray:
    """How well each row's question was answered, site by site.

    Args:
        task: The task.
        part: The part that was read.
        scores: (site, row, output) decision values.

    Returns:
        (row, site) in [0, 1]. Shared: 1 where the right answer scores highest.
        Unique: the row of a true statement as in ``within_entity_rank``; rows of false ones
        are NaN.
    """
    if task.form == "shared":
        return (scores.argmax(2) == part.labels).T.astype(float)
    found = within_entity_rank(part, scores[:, :, 0])
    return np.where((part.labels == 1)[:, None], found, np.nan)


def within_entity_rank(part: TaskPart, values: np.ndarray) -> np.ndarray:
    """Where each statement stands among those about its entity (unique form).

    Args:
        part: The part that was read.
        values: (site, row) decision values.

    Returns:
        (row, site): the share of the other statements about the same entity, in the
        same wording, that score lower, after each answer's mean over its block is
        taken off, so that a liking for the answer word cannot count. Ties count one
        half; chance is 0.5, and exactly the mean over an entity's statements.
    """
    result = np.zeros((len(part), len(values)))
    names = np.array(part.entities)
    for group in np.unique(part.groups):
        rows = np.flatnonzero(part.groups == group)
        here = values[:, rows].copy()
        for column in np.unique(part.columns[rows]):
            same = part.columns[rows] == column
            here[:, same] -= here[:, same].mean(1, keepdims=True)
        # Statements that tie up to rounding (a site that sees only the answer) are
        # ties, not evidence.
        tie = 1e-6 * np.maximum(np.abs(values[:, rows]).max(1), 1e-12)
        for name in dict.fromkeys(names[rows]):
            mine = np.flatnonzero(names[rows] == name)
            lead = here[:, mine, None] - here[:, None, mine]
            near = np.abs(lead) <= tie[:, None, None]
            wins = ((lead > 0) & ~near).sum(2) + 0.5 * (near.sum(2) - 1)
            result[rows[mine]] = (wins / (len(mine) - 1)).T
    return result
