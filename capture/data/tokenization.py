"""Tokenization of prompts and answers with a known start of the answer."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from capture.checkpoints.schemas.library_errors import library_errors
from capture.data.items import Item, ItemSet
from capture.data.sequences import Sequences
from evidence.errors import InputError

CJK_CHARACTERS = (
    "\u2e80-\u2fff\u3001-\u303f"  # radicals, Chinese and Japanese punctuation
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # kana
    "\u3100-\u312f\u31a0-\u31bf\ua000-\ua4cf"  # Bopomofo, Yi
    "\u31c0-\u31ef\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffee"  # full width
)
"""Chinese and Japanese characters, as in a class of a regular expression; Korean has spaces."""
UNSPACED_CHARACTERS = CJK_CHARACTERS + (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai to Burmese
    "\u1780-\u17ff\u19e0-\u19ff\u1950-\u19df\u1a20-\u1aaf"  # Khmer, Tai
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
)
"""The same of all scripts without spaces between words."""
_CJK = re.compile(f"[{CJK_CHARACTERS}]")
_UNSPACED = re.compile(f"[{UNSPACED_CHARACTERS}]")
_WORD = re.compile(rf"[{UNSPACED_CHARACTERS}]|[^\s{UNSPACED_CHARACTERS}]+")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    answers: str | Sequence[str] | None = None,
) -> Sequences:
    """Tokenize prompts, each followed by its answer, if given.

    Prompt and answer are joined as ``joining_space`` says. The prompt tokens equal those of the
    prompt alone, as in generation. If the joined text is tokenized differently (most tokenizers
    merge a trailing space of the prompt with the next word), the answer is tokenized separately.

    Special tokens are those that the tokenizer adds to plain text, without a final
    end-of-sequence token. A text that begins with the beginning-of-sequence token gets no
    second one.

    Args:
        tokenizer: A fast or slow Hugging Face tokenizer.
        prompts: One text per row; a text alone is one row.
        answers: One text per row, or None for prompts only; a text alone goes with a prompt alone.

    Raises:
        InputError: prompts and answers differ in number, a prompt has no tokens, or an answer is
            empty or has unknown tokens.

    Examples:
        >>> exhume.encode(tokenizer, ["Tessa Aalto was born in"], ["Lisbon"])
        Sequences(1 rows of 6 to 6 tokens, with answers)
        >>> exhume.encode(tokenizer, ["Tessa Aalto was born in"]).ids
        ((21, 68, 82, 83, 84),)
    """
    if isinstance(prompts, str):
        prompts = [prompts]
        answers = [answers] if isinstance(answers, str) else answers
    prompts = _texts("prompts", prompts)
    answers = None if answers is None else _texts("answers", answers)
    prompt_ids = _token_ids(tokenizer, prompts)
    for prompt, ids in zip(prompts, prompt_ids, strict=True):
        if not ids:
            raise InputError(
                f"the prompt {prompt!r} has no tokens",
                expected="a prompt of at least one token",
                fix="Put some text before the answer",
            )
    if answers is None:
        rows = tuple(tuple(ids) for ids in prompt_ids)
        return Sequences(rows, tuple(len(row) for row in rows))
    if len(answers) != len(prompts):
        raise InputError(
            "prompts and answers differ in number",
            expected=f"{len(prompts)} answers",
            got=str(len(answers)),
        )
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer.strip():
            raise InputError(
                f"the answer to {prompt!r} is empty",
                expected="an answer with at least one character",
                got=repr(answer),
                fix="Fill in the answer, or leave the item out",
            )
    tails = [joining_space(p, a) + a for p, a in zip(prompts, answers, strict=True)]
    joined = _token_ids(tokenizer, [p + t for p, t in zip(prompts, tails, strict=True)])
    rows = []
    for row, (prompt, full) in enumerate(zip(prompt_ids, joined, strict=True)):
        answer_ids = full[len(prompt) :]
        if full[: len(prompt)] != prompt or not answer_ids:
            answer_ids = _answer_alone(tokenizer, prompt, tails[row], full)
        _check_answer(tokenizer, prompts[row], answers[row], answer_ids)
        rows.append((*prompt, *answer_ids))
    return Sequences(tuple(rows), tuple(len(ids) for ids in prompt_ids))


def _texts(name: str, values: Sequence[str]) -> list[str]:
    """A list of texts, from a list, a tuple, an array or a column of a table.

    Raises:
        InputError: it is something else.
    """
    texts = [values] if isinstance(values, str) or not isinstance(values, Iterable) else values
    listed = list(texts)
    if isinstance(values, str) or not all(isinstance(text, str) for text in listed):
        raise InputError(f"the {name} are not a list of texts", got=repr(values)[:80])
    return [str(text) for text in listed]


def skip_joining_space(tokenizer: PreTrainedTokenizerBase, rows: Sequences) -> Sequences:
    """Move a joining space that is the first token of every answer to the prompt.

    Some tokenizers have a separate token for the space before a number or character. It is the
    same for all answers, so answers differ first at the next token, and in the state after the
    space. Rows are unchanged if an answer starts with another token or has a single token.
    """
    answers = [i[s:] for i, s in zip(rows.ids, rows.answer_start, strict=True)]
    if not answers or min(map(len, answers)) < 2:
        return rows
    if any(_decode(tokenizer, [first]).strip() for first in {a[0] for a in answers}):
        return rows
    return Sequences(rows.ids, tuple(start + 1 for start in rows.answer_start))


def encode_items(
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    prompt_index: int | None = None,
) -> Sequences:
    """Tokenize the prompt and the answer of each item.

    Args:
        prompt_index: None for ``Item.prompt``, else an index into ``Item.paraphrases``.

    Raises:
        InputError: as ``encode``; or an item lacks the paraphrase.

    Examples:
        >>> exhume.encode_items(tokenizer, exhume.read_items("forget.jsonl"))
        Sequences(60 rows of 5 to 6 tokens, with answers)
        >>> exhume.encode_items(tokenizer, births, prompt_index=0)
        Sequences(76 rows of 7 to 7 tokens, with answers)
    """
    return encode(
        tokenizer,
        [prompt_of(item, prompt_index) for item in items],
        [item.answer for item in items],
    )


def prompt_of(item: Item, prompt_index: int | None) -> str:
    """The item's prompt, or its paraphrase at ``prompt_index``.

    Raises:
        InputError: the item lacks the paraphrase.
    """
    if prompt_index is None:
        return item.prompt
    if not 0 <= prompt_index < len(item.paraphrases):
        raise InputError(
            f"item {item.id!r} has no paraphrase {prompt_index}",
            expected=f"an index from 0 to {len(item.paraphrases) - 1}"
            if item.paraphrases
            else "an item with paraphrases",
            fix="Add paraphrases to every item, or ask for the main prompt",
        )
    return item.paraphrases[prompt_index]


def subject_ends(
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    prompt_index: int | None = None,
) -> tuple[int, ...]:
    """Index of the last token of the entity's last mention in each prompt.

    Raises:
        InputError: a prompt does not name its entity, or the tokenizer is slow and has no
            character offsets.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "this tokenizer has no character offsets",
            expected="a fast tokenizer",
            got=type(tokenizer).__name__,
        )
    ends = []
    for item in items:
        prompt = prompt_of(item, prompt_index)
        start = prompt.casefold().rfind(item.entity.casefold())
        if start < 0:
            raise InputError(
                f"the prompt of item {item.id!r} does not name its entity",
                expected=f"{item.entity!r} in the prompt",
                got=repr(prompt),
            )
        last = start + len(item.entity) - 1
        encoded = tokenizer(prompt, return_offsets_mapping=True)
        skipped = int(_starts_twice(tokenizer, encoded["input_ids"]))
        offsets = encoded["offset_mapping"][skipped:]
        ends.append(max(i for i, (low, high) in enumerate(offsets) if low <= last < high))
    return tuple(ends)


def joining_space(prompt: str, answer: str) -> str:
    """What a writer puts between a prompt and its answer: a space, or nothing.

    Nothing beside whitespace, after an opening bracket or quotation mark, after full-width signs,
    and within text of a script without spaces: between letters of such scripts, and between
    Chinese or Japanese and other letters or digits. A prompt without such letters, as in
    "Answer: 巴黎", keeps its space.
    """
    before, after = prompt[-1:], answer[:1]
    if not before or not after:
        return " "
    if before.isspace() or after.isspace() or _opens(prompt) or _CJK.match(before):
        return ""
    if _UNSPACED.match(before):
        return "" if _UNSPACED.match(after) else " "
    within_cjk = before.isalnum() and _CJK.match(after) and _CJK.search(prompt)
    return "" if within_cjk else " "


def _opens(prompt: str) -> bool:
    """Whether a prompt ends in an opening bracket or quotation mark."""
    before = prompt[-1]
    if before in "\"'":  # the same sign closes
        return len(prompt) == 1 or prompt[-2].isspace()
    return unicodedata.category(before) in ("Ps", "Pi")


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script without spaces between words."""
    return bool(_UNSPACED.search(text))


def split_words(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, the characters."""
    return _WORD.findall(text)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without a final end-of-sequence token."""
    if not texts:
        return []
    # A tokenizer without an unknown token raises for unknown text.
    with library_errors("the tokenizer cannot encode every text"):
        rows = tokenizer(list(texts), verbose=False)["input_ids"]
    rows = [row[1:] if _starts_twice(tokenizer, row) else row for row in rows]
    end = tokenizer.eos_token_id
    # Encoders such as RoBERTa, recognized by their classification token, need their
    # final end-of-sequence token.
    if end is None or tokenizer.cls_token_id is not None:
        return rows
    bare = tokenizer(list(texts), verbose=False, add_special_tokens=False)["input_ids"]
    return [
        row[:-1] if row[-1:] == [end] and plain[-1:] != [end] else row
        for row, plain in zip(rows, bare, strict=True)
    ]


def _starts_twice(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a text that begins with the beginning-of-sequence token got another one.

    A rendered chat prompt holds the token that the tokenizer adds to every text.
    """
    bos = tokenizer.bos_token_id
    return bos is not None and list(ids[:2]) == [bos, bos]


def _answer_alone(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], tail: str, full: list[int]
) -> list[int]:
    """Answer tokens that, appended to the prompt tokens, decode to the joined text.

    Tokenizers differ in their treatment of the start of a text (such as a space marker), so
    several candidates are tried.
    """
    bare = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    candidates = [bare]
    for anchor in ("\n", "."):  # avoids the special treatment of the start of a text
        opening, joined = tokenizer(
            [anchor, anchor + tail], add_special_tokens=False, verbose=False
        )["input_ids"]
        if joined[: len(opening)] == opening:
            candidates.append(joined[len(opening) :])
    spelled = _decode(tokenizer, full)
    for candidate in candidates:
        if candidate and _decode(tokenizer, prompt + candidate) == spelled:
            return candidate
    return bare


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def _check_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, ids: list[int]
) -> None:
    unknown = tokenizer.unk_token_id
    # GPT-2's unknown token is its end-of-text token and does not occur for unknown text.
    if unknown is not None and unknown == tokenizer.eos_token_id:
        unknown = None
    if not ids or unknown in ids:
        raise InputError(
            f"the answer {answer!r} to {prompt!r} cannot be tokenized",
            expected="an answer made of tokens the model has",
            got="no tokens" if not ids else f"the unknown token {tokenizer.unk_token}",
            fix="Spell the answer with words the tokenizer knows, or drop the item",
        )
