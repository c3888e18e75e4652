"""How items are asked and answers are scored: decided once, on the original.

Every model of an audit is asked in the same way. What the original itself says before it comes to
an answer is its lead-in. The axes that look inside read the models after that lead-in, where the
answer is about to be said, and there exact match is the same question for every model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.asking.answers import original_answers
from audits.asking.probes import (
    Probe,
    common_prefixes,
    known_probes,
    never_taught_probes,
    past_prefix,
)
from audits.core.config import AuditConfig
from audits.core.scores import Part
from capture.data.asking import Asking, asks_questions, has_chat_template, lacks_bos
from capture.data.items import ItemSet
from capture.data.key_spans import key_spans
from capture.scoring.scorers import ScorerName, check_scorer, choose_scorer
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

KNOWN_ENOUGH = 0.9
"""Share of known items from which no other way of asking is tried."""
MIN_GAIN = 0.1
"""Share of the items that another way must add to be used instead."""


@dataclass(frozen=True)
class Tried:
    """A way of asking, and the numbers of items that the original answers then.

    Attributes:
        retain_asked: Number of retain items that were asked; of a large set, those within the
            budget where the model answers freely.
    """

    asking: Asking
    scorer: ScorerName
    forget: int
    retain: int
    retain_asked: int


@dataclass(frozen=True)
class Elicited:
    """How items are asked, and what the original knows then.

    Attributes:
        asking: The way of asking.
        scorer: Name of the scorer of the forget set.
        retain_scorer: That of the retain set, whose items may be of another kind.
        why: Why this scorer.
        tried: Every way that was tried.
        keys: Part to (item,) key words of the answer; "" for the whole of it.
        known: Part to (item,) 1 where the original gives the answer.
        prefixes: Words that begin every answer of a relation and are read with the prompt.
        probes: Part to the probes of known items that the original completes exactly.
    """

    asking: Asking
    scorer: ScorerName
    retain_scorer: ScorerName
    why: str
    tried: tuple[Tried, ...]
    keys: dict[Part, tuple[str, ...]]
    known: dict[Part, tuple[int, ...]]
    prefixes: tuple[str, ...]
    probes: dict[Part, tuple[Probe, ...]]

    @property
    def by_default(self) -> bool:
        """Whether items are asked as they are, and scored by exact match."""
        return self.asking == Asking() and self.scorer == "exact"


def elicit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet | None,
    config: AuditConfig,
    progress: Progress = AUTO,
) -> Elicited:
    """Decide how to ask, on the original.

    Never-taught items that were given are asked in the same way, and nothing is known of them.

    The tokenizer's chat template is used for questions to a chat model. Where the original then
    leaves more than a tenth of the items unanswered, the other ways are tried, and one that adds
    a tenth of the items is used instead.

    Args:
        model: The original.
        never_taught: Never-taught items, where they were given. All sets are as they were read.

    Raises:
        InputError: there is no chat template, or the scorer does not fit the items.
    """
    asked = {Part.FORGET: _with_keys(forget), Part.RETAIN: _with_keys(retain)}
    best = None
    tried: list[Tried] = []
    for asking, scorer in _ways(tokenizer, forget, config):
        found = original_answers(model, tokenizer, asked, asking, scorer, config, progress)
        counts = {part: int(each.known.sum()) for part, each in found.parts.items()}
        name = found.parts[Part.FORGET].scorer.name
        tried.append(
            Tried(
                asking,
                name,
                counts[Part.FORGET],
                counts[Part.RETAIN],
                found.parts[Part.RETAIN].n_asked,
            )
        )
        if best is None or found.share >= best.share + MIN_GAIN:
            best = found
        if best.share >= KNOWN_ENOUGH:
            break
    assert best is not None  # there is always one way
    prefixes = common_prefixes([*asked[Part.FORGET], *asked[Part.RETAIN]])
    probes = {
        part: known_probes(model, tokenizer, asked[part], each, best.asking, prefixes)
        for part, each in best.parts.items()
    }
    if never_taught is not None:
        check_scorer(best.parts[Part.FORGET].scorer, never_taught.items)
        asked[Part.NEVER_TAUGHT] = _with_keys(never_taught)
        found = never_taught_probes(model, tokenizer, asked, best)
        probes[Part.NEVER_TAUGHT] = tuple(past_prefix(probe, prefixes) for probe in found)
    return Elicited(
        best.asking,
        best.parts[Part.FORGET].scorer.name,
        best.parts[Part.RETAIN].scorer.name,
        best.why,
        tuple(tried),
        {part: tuple(item.key for item in items) for part, items in asked.items()},
        {part: tuple(map(int, each.known)) for part, each in best.parts.items()},
        tuple(sorted(set(prefixes.values()))),
        probes,
    )


def with_keys(items: ItemSet, keys: Sequence[str]) -> ItemSet:
    """The items with the key words that were found."""
    found = tuple(replace(item, key=key) for item, key in zip(items, keys, strict=True))
    return ItemSet(found, items.name, items.format)


def _with_keys(items: ItemSet) -> ItemSet:
    keys = []
    for item, span in zip(items, key_spans(items.items), strict=True):
        found = "" if span is None else item.answer[span[0] : span[1]]
        whole = item.key or item.choices or item.passage or found == item.answer
        keys.append(item.key if whole else found)
    return with_keys(items, keys)


def preferred_way(
    tokenizer: PreTrainedTokenizerBase, forget: ItemSet, config: AuditConfig
) -> tuple[Asking, ScorerName]:
    """The way of asking that is tried first, and its scorer; no model is run."""
    return _ways(tokenizer, forget, config)[0]


def _ways(
    tokenizer: PreTrainedTokenizerBase, forget: ItemSet, config: AuditConfig
) -> list[tuple[Asking, ScorerName]]:
    """Ways of asking and scorers, the preferred pair first."""
    plain, chat = Asking(), Asking(chat=True, system=config.system)
    if config.system and config.chat == "off":
        raise InputError(
            "a system prompt has no place outside a chat",
            expected="--chat auto or on, with --system",
            got="--chat off",
            fix="Leave --system out, or write it into the prompts",
        )
    if config.chat == "on":
        return [(chat, config.scorer)]
    ways: list[tuple[Asking, ScorerName]] = [(plain, config.scorer)]
    if lacks_bos(tokenizer):
        ways.append((Asking(bos=True), config.scorer))
    if config.scorer == "auto" and choose_scorer(forget.items, False)[0].name == "exact":
        # A base model may come to the answer a few words later.
        ways.append((plain, "contains"))
    if config.chat == "auto" and has_chat_template(tokenizer):
        if asks_questions(tokenizer, forget):
            ways.insert(0, (chat, config.scorer))
        elif not any(item.passage for item in forget):
            ways.append((chat, config.scorer))
    return ways
