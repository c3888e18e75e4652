"""Prompt pairs: a clean prompt, and a corrupt one that differs in the entity alone.

Attribution compares a position of one prompt with the same position of the other, so
both must have the same tokens up to the entity and after it. Pairs that do not line up
are refused, or left out and counted, never padded into line.
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


@dataclass(frozen=True)
class PromptPairs:
    """Aligned pairs of prompts.

    Attributes:
        clean: Prompt and answer, one row a pair.
        corrupt: The corrupt prompt and the same answer, token for token as long.
        foils: (pair,) first token of the corrupt prompt's own answer.
        entities: (pair,) whom the clean prompt is about.
        ids: (pair,) name of each pair.
        skipped: Items that could not be paired, with the reason.
    """

    clean: Sequences
    corrupt: Sequences
    foils: tuple[int, ...]
    entities: tuple[str, ...]
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.foils)

    def __getitem__(self, rows: Sequence[int]) -> "PromptPairs":
        """The pairs asked for, in the order asked for."""
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
    """Pairs from texts.

    Args:
        tokenizer: The model's tokenizer.
        prompts: (pair,) clean prompts.
        corrupt: (pair,) prompts that differ in the entity alone.
        answers: (pair,) answers to the clean prompts.
        foils: (pair,) answers to the corrupt prompts.
        entities: (pair,) whom the clean prompts are about; numbers by default.
        ids: (pair,) names of the pairs; numbers by default.

    Raises:
        InputError: lists of unequal length, a pair that does not line up or does not
            differ, an answer that begins with the token of its foil; or as ``encode``.
    """
    count = len(prompts)
    if count == 0 or any(len(x) != count for x in (corrupt, answers, foils)):
        raise InputError(
            "prompts, corrupt prompts, answers and foils must be of one number",
            expected="one or more of each, as many of one as of the other",
            got=f"{count}, {len(corrupt)}, {len(answers)}, {len(foils)}",
        )
    clean_rows = encode(tokenizer, prompts, answers)
    corrupt_rows = encode(tokenizer, corrupt, answers)
    other = encode(tokenizer, corrupt, foils)
    firsts = []
    for row in range(count):
        _check_aligned(prompts[row], corrupt[row], clean_rows, corrupt_rows, row)
        first = other.ids[row][other.answer_start[row]]
        if first == clean_rows.ids[row][clean_rows.answer_start[row]]:
            raise InputError(
                f"the answers {answers[row]!r} and {foils[row]!r} begin with the same "
                "token, so their logits cannot be told apart",
                expected="answers that differ in their first token",
                fix="Choose another corrupt prompt for this pair",
            )
        firsts.append(first)
    names = [str(row) for row in range(count)]
    return PromptPairs(
        clean_rows,
        corrupt_rows,
        tuple(firsts),
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
    """Pair each item's prompt with itself about another entity of the same set.

    The other entity has an item of the same relation (of the same prompt but for the
    name, where items have none) with another answer, and a name of as many tokens, in
    its place. Both entities come from ``items``, so that what was forgotten is
    forgotten on both sides.

    Args:
        tokenizer: The model's tokenizer.
        items: The facts.
        rng: Chooses among the entities that fit.
        prompt_indices: None for an item's own prompt, or which paraphrase; one pair
            each.
        per_prompt: Corrupt prompts for each clean one, fewer where fewer fit.
        partners: Entity to the only one it may be paired with, as ``pair_entities`` gives;
            by default any.

    Raises:
        InputError: not one item could be paired, with the reasons counted.
    """
    items = list(items)
    by_relation: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_relation[item.relation].append(item)
    rows: list[tuple[Item, str, str, str]] = []
    left_out: list[tuple[str, str]] = []
    for item in items:
        rivals = [
            other
            for other in by_relation[item.relation]
            if normalize_text(other.entity) != normalize_text(item.entity)
            and normalize_text(other.answer) != normalize_text(item.answer)
            and (partners is None or partners.get(item.entity) == other.entity)
        ]
        for index in prompt_indices:
            prompt = prompt_of(item, index)
            found, why = _find_partners(
                tokenizer, item, prompt, rivals, rng, per_prompt
            )
            rows += [(item, prompt, text, foil) for text, foil in found]
            if not found:
                left_out.append((item.id, why))
    if not rows:
        reasons = Counter(why for _, why in left_out)
        counted = "; ".join(f"{why} ({n})" for why, n in reasons.most_common())
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
        ids=[f"{item.id}/{place}" for place, (item, _, _, _) in enumerate(rows)],
    )
    return PromptPairs(
        pairs.clean,
        pairs.corrupt,
        pairs.foils,
        pairs.entities,
        pairs.ids,
        tuple(left_out),
    )


def _find_partners(
    tokenizer: PreTrainedTokenizerBase,
    item: Item,
    prompt: str,
    rivals: Sequence[Item],
    rng: np.random.Generator,
    wanted: int,
) -> tuple[list[tuple[str, str]], str]:
    """(corrupt prompt, its answer) of rivals that fit, and why there are none."""
    try:
        rename_entity(item, prompt, item.entity)
    except InputError:
        return [], NOT_NAMED
    drawn = [rivals[place] for place in rng.permutation(len(rivals))]
    named = [(o, rename_entity(item, prompt, o.entity)) for o in drawn]
    if not item.relation:
        named = [(o, text) for o, text in named if _is_prompt_of(o, text)]
    if not named:
        return [], NO_PARTNER
    order, texts = [o for o, _ in named], [text for _, text in named]
    size = len(order)
    rows = encode(tokenizer, [prompt, *texts], [item.answer] * (size + 1))
    others = encode(tokenizer, texts, [other.answer for other in order])
    own, start = rows.ids[0], rows.answer_start[0]
    found, aligned = [], False
    for place, other in enumerate(order):
        ids = rows.ids[place + 1]
        fits = rows.answer_start[place + 1] == start and ids[start:] == own[start:]
        if not fits or ids == own:
            continue
        aligned = True
        if others.ids[place][others.answer_start[place]] == own[start]:
            continue
        found.append((texts[place], other.answer))
        if len(found) == wanted:
            break
    return found, SAME_TOKEN if aligned else NOT_ALIGNED


def _is_prompt_of(item: Item, text: str) -> bool:
    """Whether ``text`` is one of the item's own prompts."""
    return normalize_text(text) in {
        normalize_text(each) for each in (item.prompt, *item.paraphrases)
    }


def pair_entities(
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    rng: np.random.Generator,
) -> dict[str, str]:
    """Entities two by two, each to the other, with names of as many tokens.

    A pair's score speaks of both its entities. Where each entity meets many others,
    scores of different entities depend on each other, and intervals over entities
    come out too narrow; couples are independent of each other.

    Args:
        tokenizer: The model's tokenizer.
        items: The facts.
        rng: Chooses who goes with whom.

    Returns:
        Entity to entity; those without a match are left out.
    """
    items = list(items)
    first = next(
        (i for i in items if normalize_text(i.entity) in normalize_text(i.prompt)), None
    )
    if first is None:
        return {}
    names = list(dict.fromkeys(item.entity for item in items))
    texts = [rename_entity(first, first.prompt, name) for name in names]
    by_length: dict[int, list[str]] = defaultdict(list)
    for place in rng.permutation(len(names)):
        length = len(encode(tokenizer, [texts[place]]).ids[0])
        by_length[length].append(names[place])
    found = {}
    for alike in by_length.values():
        for one, other in zip(alike[::2], alike[1::2], strict=False):
            found |= {one: other, other: one}
    return found


def _check_aligned(
    prompt: str, corrupt: str, clean: Sequences, other: Sequences, row: int
) -> None:
    start, length = clean.answer_start[row], other.answer_start[row]
    if start != length:
        raise InputError(
            f"the prompts {prompt!r} and {corrupt!r} do not line up",
            expected=f"{start} tokens in both",
            got=f"{length} in the second",
            fix="Choose an entity whose name has as many tokens",
        )
    if clean.ids[row][start:] != other.ids[row][start:]:
        raise InputError(
            f"the answer has other tokens after {prompt!r} than after {corrupt!r}",
            expected="prompts that end alike",
        )
    if clean.ids[row] == other.ids[row]:
        raise InputError(
            f"the prompt {prompt!r} is its own corrupt prompt",
            expected="two prompts that differ",
        )
