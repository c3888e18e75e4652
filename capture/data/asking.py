"""How items are put to a model: as plain text or as a chat, with or without a first token.

The result is an item set whose prompts are what the model reads, so that nothing downstream has
to know how it was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from capture.checkpoints.schemas.library_errors import library_errors
from capture.data.facts.prompts import choice_prompt, choice_question, question_of
from capture.data.items import Item, ItemSet
from evidence.errors import InputError

ChatMode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Asking:
    """How items are put to a model.

    Attributes:
        chat: Whether prompts are turns in the tokenizer's chat template.
        system: System prompt of the chat; the template's own where empty.
        bos: Whether the beginning-of-sequence token is written before every prompt, for a
            tokenizer that does not add it by itself.
    """

    chat: bool = False
    system: str = ""
    bos: bool = False

    def __str__(self) -> str:
        words = "in the chat template" if self.chat else "as plain text"
        if self.system:
            words += " with a system prompt"
        return words + (", after the beginning-of-sequence token" if self.bos else "")


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer belongs to a chat model."""
    return bool(getattr(tokenizer, "chat_template", None))


def lacks_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a beginning-of-sequence token that it does not add to text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] != [bos]


def is_rendered(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether a prompt is already what the model reads: it holds a special token."""
    return any(token in prompt for token in tokenizer.all_special_tokens if len(token) > 2)


def asks_questions(tokenizer: PreTrainedTokenizerBase, items: ItemSet) -> bool:
    """Whether most items are questions that a chat could ask, rather than text to continue."""
    asked = [
        bool(item.messages or item.choices)
        or (question_of(item.prompt) is not None and not is_rendered(tokenizer, item.prompt))
        for item in items
    ]
    return 2 * sum(asked) > len(asked)


def ask(tokenizer: PreTrainedTokenizerBase, items: ItemSet, asking: Asking) -> ItemSet:
    """The items with the prompts that a model reads; those already rendered stay as they are.

    A multiple-choice question shows its lettered choices. A continuation becomes a turn of the
    user when ``asking.chat`` is set.

    Raises:
        InputError: there is no chat template, or it cannot render the conversation.
    """
    if asking.chat and not has_chat_template(tokenizer):
        raise InputError(
            "the tokenizer has no chat template",
            expected="chat_template.jinja beside the tokenizer, or one in its configuration",
            fix="Pass --chat off, or the tokenizer of the chat model",
        )
    if asking == Asking() and not any(item.choices for item in items):
        return items
    asked = [_asked(tokenizer, item, asking) for item in items]
    return ItemSet(tuple(asked), items.name, items.format)


def _asked(tokenizer: PreTrainedTokenizerBase, item: Item, asking: Asking) -> Item:
    def rendered(prompt: str, turns: Sequence[tuple[str, str]] = ()) -> str:
        if is_rendered(tokenizer, prompt):
            return prompt
        question = question_of(prompt)
        if item.choices:
            question = choice_question(question or prompt, item.choices)
        if asking.chat:
            conversation = list(turns) or [("user", question or prompt)]
            if asking.system and conversation[0][0] != "system":
                conversation.insert(0, ("system", asking.system))
            return chat_prompt(tokenizer, conversation)
        text = choice_prompt(question or prompt) if item.choices else prompt
        return f"{tokenizer.bos_token}{text}" if asking.bos else text

    return replace(
        item,
        prompt=rendered(item.prompt, item.messages),
        paraphrases=tuple(map(rendered, item.paraphrases)),
        messages=(),
    )


def chat_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> str:
    """A conversation up to where the assistant's answer begins, in the chat template.

    Raises:
        InputError: the template refuses the conversation.
    """
    messages: list[Any] = [{"role": role, "content": text} for role, text in turns]
    with library_errors("the chat template cannot render a conversation"):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text
