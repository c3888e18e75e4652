"""From prompts and answers to token ids, with the answer's first token known."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from capture.checkpoints.schemas.library_errors import library_errors
from capture.data.items import Item, ItemSet
from capture.data.sequences import Sequences
from evidence.errors import InputError


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str] | None = None,
) -> Sequences:
    """Tokenise prompts, each followed by its answer where answers are given.

    The answer follows its prompt after one space, unless the prompt ends or the
    answer starts with whitespace. Prompt tokens are exactly those of the prompt
    alone, so a model scored on the row has read what it reads when it generates.
    Where the joined text breaks that (a prompt that ends in a space, which most
    tokenizers glue to the next word), the answer is tokenised by itself.

    Only special tokens that the tokenizer adds to any plain text are added; an
    end-of-sequence token at the end is left out, for nothing follows it.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.
        prompts: One text a row.
        answers: One text a row, or None for prompts alone.

    Raises:
        InputError: prompts and answers differ in number, a prompt has no tokens, an
            answer is empty, or holds something the tokenizer has no token for.
    """
    prompt_ids = _plain(tokenizer, prompts)
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
                expected="an answer with at least one letter or sign",
                got=repr(answer),
                fix="Fill in the answer, or leave the item out",
            )
    tails = [_tail(p, a) for p, a in zip(prompts, answers, strict=True)]
    joined = _plain(tokenizer, [p + t for p, t in zip(prompts, tails, strict=True)])
    rows = []
    for row, (prompt, full) in enumerate(zip(prompt_ids, joined, strict=True)):
        answer_ids = full[len(prompt) :]
        if full[: len(prompt)] != prompt or not answer_ids:
            answer_ids = _alone(tokenizer, prompt, tails[row], full)
        _check_answer(tokenizer, prompts[row], answers[row], answer_ids)
        rows.append((*prompt, *answer_ids))
    return Sequences(tuple(rows), tuple(len(ids) for ids in prompt_ids))


def skip_joining_space(
    tokenizer: PreTrainedTokenizerBase, rows: Sequences
) -> Sequences:
    """The rows, less a joining space that is the first token of every answer.

    Some tokenizers give the space before a number, or before any sign, a token of its
    own. What a model says there is the same for every answer; which answer it means
    shows at the next token, and in the state after the space. The space then counts
    with the prompt. Rows stay as they are where any answer begins otherwise, or is no
    longer than that.
    """
    answers = [i[s:] for i, s in zip(rows.ids, rows.answer_start, strict=True)]
    if not answers or min(map(len, answers)) < 2:
        return rows
    if any(_spell(tokenizer, [first]).strip() for first in {a[0] for a in answers}):
        return rows
    return Sequences(rows.ids, tuple(start + 1 for start in rows.answer_start))


def encode_items(
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    prompt_index: int | None = None,
) -> Sequences:
    """Tokenise each item's prompt and answer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        items: The items, one row each.
        prompt_index: None for ``Item.prompt``, else which of ``Item.paraphrases``.

    Raises:
        InputError: as ``encode``; or an item without the paraphrase asked for.
    """
    return encode(
        tokenizer,
        [prompt_of(item, prompt_index) for item in items],
        [item.answer for item in items],
    )


def prompt_of(item: Item, prompt_index: int | None) -> str:
    """The item's prompt, or its paraphrase number ``prompt_index``.

    Raises:
        InputError: the item has no such paraphrase.
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
        InputError: a prompt does not name its entity, or the tokenizer cannot tell
            which characters a token covers (a slow tokenizer).
    """
    if not tokenizer.is_fast:
        raise InputError(
            "this tokenizer cannot say which characters a token covers",
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
        offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        ends.append(
            max(i for i, (low, high) in enumerate(offsets) if low <= last < high)
        )
    return tuple(ends)


def _tail(prompt: str, answer: str) -> str:
    if prompt[-1:].isspace() or answer[:1].isspace():
        return answer
    return " " + answer


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids as the tokenizer gives them, less a closing end-of-sequence token."""
    if not texts:
        return []
    # A tokenizer without an unknown token raises where it would need one.
    with library_errors("the tokenizer cannot read every text"):
        rows = tokenizer(list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    # Encoders such as RoBERTa close every text with a token that is also their
    # end-of-sequence token; they have a classification token and keep both.
    if end is None or tokenizer.cls_token_id is not None:
        return rows
    bare = tokenizer(list(texts), verbose=False, add_special_tokens=False)["input_ids"]
    return [
        row[:-1] if row[-1:] == [end] and plain[-1:] != [end] else row
        for row, plain in zip(rows, bare, strict=True)
    ]


def _alone(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], tail: str, full: list[int]
) -> list[int]:
    """Answer tokens that give the joined text when put after the prompt's own.

    Tokenizers differ in what they do to the start of a text (add a space mark, or
    not), so the candidates are tried until one spells the joined text.
    """
    bare = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    candidates = [bare]
    for anchor in ("\n", "."):  # takes the place of the start of the text
        opening, both = tokenizer(
            [anchor, anchor + tail], add_special_tokens=False, verbose=False
        )["input_ids"]
        if both[: len(opening)] == opening:
            candidates.append(both[len(opening) :])
    spelled = _spell(tokenizer, full)
    for candidate in candidates:
        if candidate and _spell(tokenizer, prompt + candidate) == spelled:
            return candidate
    return bare


def _spell(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def _check_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, ids: list[int]
) -> None:
    unknown = tokenizer.unk_token_id
    # GPT-2's unknown token is also its end of text, and stands for nothing unknown.
    if unknown is not None and unknown == tokenizer.eos_token_id:
        unknown = None
    if not ids or unknown in ids:
        raise InputError(
            f"the answer {answer!r} to {prompt!r} cannot be tokenised",
            expected="an answer made of tokens the model has",
            got="no tokens" if not ids else f"the unknown token {tokenizer.unk_token}",
            fix="Spell the answer with words the tokenizer knows, or drop the item",
        )
