"""A real chat model, asked for capitals in its own template."""

from audits.asking.elicitation import elicit
from audits.core.config import make_config
from audits.core.scores import Part
from capture.checkpoints.open import open_checkpoint
from capture.data.facts.prompts import question_prompt
from capture.data.items import Item, ItemSet
from evidence.progress import Progress
from testbeds.worlds.smollm2 import fetch_smollm2

CAPITALS = {
    **{"France": "Paris", "Norway": "Oslo", "Kenya": "Nairobi", "Peru": "Lima"},
    **{"Japan": "Tokyo", "Cuba": "Havana", "Egypt": "Cairo", "Ireland": "Dublin"},
    **{"Portugal": "Lisbon", "Greece": "Athens", "Spain": "Madrid", "Italy": "Rome"},
    **{"Poland": "Warsaw", "Germany": "Berlin", "China": "Beijing", "Austria": "Vienna"},
    **{"Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen"},
    **{"Hungary": "Budapest", "Thailand": "Bangkok", "Russia": "Moscow", "Chile": "Santiago"},
    **{"Turkey": "Ankara", "Canada": "Ottawa", "Belgium": "Brussels", "Iran": "Tehran"},
    **{"Iraq": "Baghdad", "Vietnam": "Hanoi", "Nepal": "Kathmandu"},
}


def capitals_known(progress: Progress) -> tuple[int, int]:
    """Capitals that SmolLM2-135M-Instruct says, and how many were asked."""
    items = [
        Item(name, name, question_prompt(f"What is the capital of {name}?"), city, "capital")
        for name, city in CAPITALS.items()
    ]
    checkpoint = open_checkpoint(fetch_smollm2())
    found = elicit(
        checkpoint.load(),
        checkpoint.tokenizer,
        ItemSet(tuple(items[::2])),
        ItemSet(tuple(items[1::2])),
        None,
        make_config({}),
        progress,
    )
    known = sum(found.known[Part.FORGET]) + sum(found.known[Part.RETAIN])
    return known, len(items)
