"""Probes: known items as the axes that look inside read them, after the lead-in.

What the original itself says before it comes to an answer is its lead-in. After it every model is
read where the answer is about to be said, and exact match is the same question for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.asking.answers import Answers, PartAnswers
from audits.core.scores import Part
from capture.data.asking import Asking, ask
from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from capture.scoring.free_answers import find_answer
from capture.scoring.options import letter_items, text_items
from capture.scoring.scorers import score_said

MAX_PROBED_WORDS = 8
"""Words of a passage's continuation that the axes which look inside ask for."""


@dataclass(frozen=True)
class Probe:
    """One item as the axes that look inside read it: prompt and lead-in, and a short answer.

    Attributes:
        id: Id of the item that it comes from.
        item: What is read. The options of a multiple-choice item have one probe an order.
    """

    id: str
    item: Item


def known_probes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet,
    found: PartAnswers,
    asking: Asking,
    prefixes: Mapping[str, str],
) -> tuple[Probe, ...]:
    """The known items as the axes that look inside read them, where the original goes on so."""
    kept = tuple(item for item, hit in zip(items, found.known, strict=True) if hit)
    if not kept:
        return ()
    if found.scorer.name == "options":
        best = _best_metric(found)
        right = [item for item in kept if found.metrics[best][item.id] >= 1]
        probes = _option_probes(tokenizer, right, best, asking)
    else:
        prompted = ask(tokenizer, ItemSet(kept), asking)
        probes = [Probe(item.id, item) for item in prompted]
        if found.scorer.generates:
            after = [(item.id, _after_lead_in(item, found.texts[item.id])) for item in prompted]
            probes = [Probe(id, item) for id, item in after if item is not None]
    if not probes:
        return ()
    probes = [past_prefix(probe, prefixes) for probe in probes]
    exact = score_answers(model, encode_items(tokenizer, [each.item for each in probes])).greedy
    return tuple(each for each, hit in zip(probes, exact, strict=True) if hit)


def common_prefixes(items: Sequence[Item]) -> dict[str, str]:
    """Words that begin every answer of a relation, such as an article, by relation.

    They tell no answer from another, so they are read as part of the prompt. Sentences, passages
    and choices are read otherwise, and have none.
    """
    by_relation: dict[str, list[list[str]]] = {}
    for item in items:
        if item.key or item.passage or item.choices:
            continue
        by_relation.setdefault(item.relation, []).append(item.answer.split(" "))
    prefixes = {}
    for relation, answers in by_relation.items():
        shortest = min(map(len, answers))
        same = 0
        while same < shortest - 1 and len({words[same] for words in answers}) == 1:
            same += 1
        if same and len(answers) > 1:
            prefixes[relation] = " ".join(answers[0][:same])
    return prefixes


def past_prefix(probe: Probe, prefixes: Mapping[str, str]) -> Probe:
    """The probe after the words that begin every answer of its relation."""
    item, prefix = probe.item, prefixes.get(probe.item.relation, "")
    if not prefix or item.passage or not item.answer.startswith(f"{prefix} "):
        return probe

    def led(prompt: str) -> str:
        return f"{prompt}{prefix}" if prompt[-1:].isspace() else f"{prompt} {prefix}"

    rest = [text for text in item.alternatives if text.startswith(f"{prefix} ")]
    moved = replace(
        item,
        prompt=led(item.prompt),
        paraphrases=tuple(map(led, item.paraphrases)),
        answer=item.answer.removeprefix(prefix).strip(),
        alternatives=tuple(text.removeprefix(prefix).strip() for text in rest),
        aliases=(),
        choices=(),
        key="",
    )
    return Probe(probe.id, moved)


def never_taught_probes(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: dict[Part, ItemSet], found: Answers
) -> tuple[Probe, ...]:
    """Given never-taught items, read as the forgotten ones are.

    The original does not say their answers; its lead-in ends where any forgotten answer begins.
    """
    items, scorer = asked[Part.NEVER_TAUGHT], found.parts[Part.FORGET].scorer
    if scorer.name == "options":
        if not found.parts[Part.FORGET].metrics:  # nothing is known, which is refused later
            return ()
        best = _best_metric(found.parts[Part.FORGET])
        return tuple(_option_probes(tokenizer, items.items, best, found.asking))
    prompted = ask(tokenizer, items, found.asking).items
    if not scorer.generates:
        return tuple(Probe(item.id, item) for item in prompted)
    said = score_said(model, tokenizer, items, scorer, found.asking).texts
    answers = sorted({item.key_words for item in asked[Part.FORGET]}, key=len, reverse=True)
    probes = []
    for item, text in zip(prompted, said, strict=True):
        if item.passage:
            text = item.answer
        elif item.key:
            text = item.answer[: item.answer.index(item.key)] + item.key
        elif place := find_answer(text, answers):
            text = f"{text[: place[0]]}{item.answer}"
        else:
            text = item.answer
        after = _after_lead_in(item, text)
        probes += [Probe(item.id, after)] if after is not None else []
    return tuple(probes)


def _best_metric(found: PartAnswers) -> str:
    """The metric by which the original knows most items."""
    return max(found.metrics, key=lambda metric: sum(found.metrics[metric].values()))


def _option_probes(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], best: str, asking: Asking
) -> list[Probe]:
    """Letters in every order, letters as given, or texts: what the original knows best."""
    if best == "option_texts":
        return [Probe(item.id, item) for item in text_items(tokenizer, items, asking)]
    turned = letter_items(tokenizer, items, asking).items
    owners = [item.id for item in items for _ in item.choices]
    return [
        Probe(owner, item)
        for owner, item in zip(owners, turned, strict=True)
        if best == "any_order" or item.id.endswith("-order-0")
    ]


def _after_lead_in(item: Item, text: str) -> Item | None:
    """The item after what the original said before it came to the answer.

    None where the original did not say the key words.
    """
    if item.passage:
        words = item.answer.split()
        said = text.split()
        count = next(
            (n for n, (a, b) in enumerate(zip(words, said, strict=False)) if a != b),
            min(len(words), len(said)),
        )
        short = " ".join(words[: min(count, MAX_PROBED_WORDS)])
        return replace(item, answer=short, alternatives=(), key="") if count > 1 else None
    place = find_answer(text, (item.key_words, *item.aliases))
    if place is None:
        return None
    lead_in = text[: place[0]].rstrip()
    answer = text[place[0] : place[1]]

    def led(prompt: str) -> str:
        joint = "" if prompt[-1:].isspace() or not lead_in else " "
        return f"{prompt}{joint}{lead_in}"

    # Alternatives are whole sentences; after a lead-in only words of the same kind compare.
    alternatives = item.alternatives if not item.key else ()
    return replace(
        item,
        prompt=led(item.prompt),
        paraphrases=tuple(map(led, item.paraphrases)),
        answer=answer,
        alternatives=alternatives,
        aliases=(),
        key="",
    )
