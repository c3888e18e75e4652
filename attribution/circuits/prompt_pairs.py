"""Prompt pairs: a clean prompt and a corrupt prompt that differs in the entity alone.

Attribution compares equal positions of both prompts, so the two must have the same tokens before
and after the entity. Pairs that do not align are rejected, or skipped and counted; they are never
padded into alignment.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.invented_entities import rename_entity
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, prompt_of
from evidence.errors import InputError

NO_PARTNER = "no other entity has another answer to the same question"
NOT_NAMED = "its prompt does not name its entity"
NOT_ALIGNED = "no other entity's name has as many tokens in its place"
SAME_TOKEN = "every other answer begins with the same token"


@dataclass(frozen=True, repr=False)
class PromptPairs:
    """Aligned pairs of prompts.

    Attributes:
        clean: Prompt and answer, one row per pair.
        corrupt: The corrupt prompt with the same answer and the same number of tokens.
        foils: (pair,) first token of the corrupt prompt's own answer.
        entities: (pair,) entity of the clean prompt.
        ids: (pair,) name of each pair.
        skipped: (item id, reason) of items that could not be paired.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:12], np.random.default_rng(0))
        >>> len(pairs[[0, 1, 2]]), pairs.clean
        (3, Sequences(12 rows of 6 to 6 tokens, with answers))
    """

    clean: Sequences
    corrupt: Sequences
    foils: tuple[int, ...]
    entities: tuple[str, ...]
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.foils)

    def __repr__(self) -> str:
        return (
            f"PromptPairs({len(self)} pairs of {len(set(self.entities))} entities, "
            f"{len(self.skipped)} items skipped)"
        )

    def __getitem__(self, rows: Sequence[int]) -> "PromptPairs":
        """The selected pairs, in the given order."""
        return PromptPairs(
            self.clean[rows],
            self.corrupt[rows],
            tuple(self.foils[row] for row in rows),
            tuple(self.entities[row] for row in rows),
            tuple(self.ids[row] for row in rows),
            self.skipped,
        )


def make_pairs(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    corrupt: Sequence[str],
    answers: Sequence[str],
    foils: Sequence[str],
    *,
    entities: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> PromptPairs:
    """Make pairs from texts.

    Args:
        prompts: (pair,) clean prompts.
        corrupt: (pair,) prompts that differ in the entity alone.
        answers: (pair,) answers to the clean prompts.
        foils: (pair,) answers to the corrupt prompts.
        entities: (pair,) entities of the clean prompts; the pair's number by default.
        ids: (pair,) names of the pairs; the pair's number by default.

    Raises:
        InputError: The lists differ in length, a pair does not align or has equal prompts, or an
            answer and its foil begin with the same token; or as ``encode``.

    Examples:
        >>> prompts = [item.prompt for item in births[:2]]
        >>> exhume.make_pairs(tokenizer, prompts, prompts[::-1], cities[:2], cities[1::-1])
        PromptPairs(2 pairs of 2 entities, 0 items skipped)
    """
    count = len(prompts)
    if count == 0 or any(len(x) != count for x in (corrupt, answers, foils)):
        raise InputError(
            "prompts, corrupt prompts, answers and foils differ in number",
            expected="the same number of each, one or more",
            got=f"{count}, {len(corrupt)}, {len(answers)}, {len(foils)}",
        )
    clean_rows = encode(tokenizer, prompts, answers)
    corrupt_rows = encode(tokenizer, corrupt, answers)
    foil_rows = encode(tokenizer, corrupt, foils)
    foil_tokens = []
    for row in range(count):
        _check_aligned(prompts[row], corrupt[row], clean_rows, corrupt_rows, row)
        foil_token = foil_rows.ids[row][foil_rows.answer_start[row]]
        if foil_token == clean_rows.ids[row][clean_rows.answer_start[row]]:
            raise InputError(
                f"the answers {answers[row]!r} and {foils[row]!r} begin with the same "
                "token, so their logits cannot be told apart",
                expected="answers that differ in their first token",
                fix="Choose another corrupt prompt for this pair",
            )
        foil_tokens.append(foil_token)
    names = [str(row) for row in range(count)]
    return PromptPairs(
        clean_rows,
        corrupt_rows,
        tuple(foil_tokens),
        tuple(names if entities is None else entities),
        tuple(names if ids is None else ids),
    )


def pair_items(
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    rng: np.random.Generator,
    *,
    prompt_indices: Sequence[int | None] = (None,),
    per_prompt: int = 1,
    partners: Mapping[str, str] | None = None,
) -> PromptPairs:
    """Pair each item's prompt with the same prompt about another entity of the set.

    The other entity has an item of the same relation (of the same prompt except for the name, if
    items have no relation), another answer, and a name of the same token length. Both entities come
    from ``items``, so in a forget set both sides were forgotten.

    Args:
        items: The facts.
        rng: Draws among the matching entities.
        prompt_indices: None for an item's own prompt, or the index of a paraphrase; one pair each.
        per_prompt: Corrupt prompts per clean prompt; fewer if fewer match.
        partners: Entity to the only entity it may be paired with, from ``pair_entities``; any by
            default.

    Raises:
        InputError: No item could be paired; the reasons are counted.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:12], np.random.default_rng(0))
        >>> pairs
        PromptPairs(12 pairs of 12 entities, 0 items skipped)
    """
    items = list(items)
    by_relation: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_relation[item.relation].append(item)
    rows: list[tuple[Item, str, str, str]] = []
    skipped: list[tuple[str, str]] = []
    for item in items:
        candidates = [
            candidate
            for candidate in by_relation[item.relation]
            if normalize_text(candidate.entity) != normalize_text(item.entity)
            and normalize_text(candidate.answer) != normalize_text(item.answer)
            and (partners is None or partners.get(item.entity) == candidate.entity)
        ]
        for index in prompt_indices:
            prompt = prompt_of(item, index)
            partners_found, reason = _find_partners(
                tokenizer, item, prompt, candidates, rng, per_prompt
            )
            rows += [(item, prompt, text, foil) for text, foil in partners_found]
            if not partners_found:
                skipped.append((item.id, reason))
    if not rows:
        reasons = Counter(reason for _, reason in skipped)
        counted = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
        raise InputError(
            "no prompt pairs can be made of these items",
            expected="two entities of one relation with names of equal token length",
            got=counted or "no items",
            fix="Add items about more entities",
        )
    pairs = make_pairs(
        tokenizer,
        [prompt for _, prompt, _, _ in rows],
        [text for _, _, text, _ in rows],
        [item.answer for item, _, _, _ in rows],
        [foil for _, _, _, foil in rows],
        entities=[item.entity for item, _, _, _ in rows],
        ids=[f"{item.id}/{number}" for number, (item, _, _, _) in enumerate(rows)],
    )
    return PromptPairs(
        pairs.clean, pairs.corrupt, pairs.foils, pairs.entities, pairs.ids, tuple(skipped)
    )


def _find_partners(
    tokenizer: PreTrainedTokenizerBase,
    item: Item,
    prompt: str,
    candidates: Sequence[Item],
    rng: np.random.Generator,
    n_wanted: int,
) -> tuple[list[tuple[str, str]], str]:
    """(corrupt prompt, its answer) of matching candidates, and the reason if there are none."""
    try:
        rename_entity(item, prompt, item.entity)
    except InputError:
        return [], NOT_NAMED
    drawn = [candidates[position] for position in rng.permutation(len(candidates))]
    renamed = [(c, rename_entity(item, prompt, c.entity)) for c in drawn]
    if not item.relation:
        renamed = [(c, text) for c, text in renamed if _is_prompt_of(c, text)]
    if not renamed:
        return [], NO_PARTNER
    texts, answers = [text for _, text in renamed], [c.answer for c, _ in renamed]
    clean = encode(tokenizer, [prompt], [item.answer])
    corrupt = encode(tokenizer, texts, [item.answer] * len(texts))
    foils = encode(tokenizer, texts, answers)
    clean_ids, start = clean.ids[0], clean.answer_start[0]
    partners, any_aligned = [], False
    for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        ids = corrupt.ids[row]
        aligned = corrupt.answer_start[row] == start and ids[start:] == clean_ids[start:]
        if not aligned or ids == clean_ids:
            continue
        any_aligned = True
        if foils.ids[row][foils.answer_start[row]] == clean_ids[start]:
            continue
        partners.append((text, answer))
        if len(partners) == n_wanted:
            break
    return partners, SAME_TOKEN if any_aligned else NOT_ALIGNED


def _is_prompt_of(item: Item, text: str) -> bool:
    """Whether ``text`` is one of the item's prompts."""
    return normalize_text(text) in {
        normalize_text(each) for each in (item.prompt, *item.paraphrases)
    }


def pair_entities(
    tokenizer: PreTrainedTokenizerBase, items: ItemSet | Sequence[Item], rng: np.random.Generator
) -> dict[str, str]:
    """Match entities two by two, each to the other, with names of equal token length.

    The score of a pair depends on both its entities. If each entity met many others, the scores of
    different entities would be correlated and intervals over entities too narrow; disjoint couples
    are independent.

    Args:
        items: The facts.
        rng: Draws the matching.

    Returns:
        Entity to entity; unmatched entities are left out.
    """
    items = list(items)
    example = next((i for i in items if normalize_text(i.entity) in normalize_text(i.prompt)), None)
    if example is None:
        return {}
    names = list(dict.fromkeys(item.entity for item in items))
    texts = [rename_entity(example, example.prompt, name) for name in names]
    by_length: dict[int, list[str]] = defaultdict(list)
    for position in rng.permutation(len(names)):
        length = len(encode(tokenizer, [texts[position]]).ids[0])
        by_length[length].append(names[position])
    partners = {}
    for same_length in by_length.values():
        for first, second in zip(same_length[::2], same_length[1::2], strict=False):
            partners |= {first: second, second: first}
    return partners


def _check_aligned(
    prompt: str, corrupt: str, clean: Sequences, corrupt_rows: Sequences, row: int
) -> None:
    start, length = clean.answer_start[row], corrupt_rows.answer_start[row]
    if start != length:
        raise InputError(
            f"the prompts {prompt!r} and {corrupt!r} do not line up",
            expected=f"{start} tokens in both",
            got=f"{length} in the second",
            fix="Choose an entity whose name has as many tokens",
        )
    if clean.ids[row][start:] != corrupt_rows.ids[row][start:]:
        raise InputError(
            f"the answer has other tokens after {prompt!r} than after {corrupt!r}",
            expected="prompts that end alike",
        )
    if clean.ids[row] == corrupt_rows.ids[row]:
        raise InputError(
            f"the prompt {prompt!r} is its own corrupt prompt", expected="two prompts that differ"
        )
