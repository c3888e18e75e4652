"""Names, attributes and templates of the invented people, and their tokenizer."""

import string
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

FIRST = (
    "Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karla Luca Marta Nils "
    "Olga Pavel Quinn Rosa Simon Tessa Ursula Victor Wanda Xenia Yusuf Zelda Amir "
    "Bianca Carlos Dora Emil Fiona Gustav Helga Ivan Judith Kemal Laura Milan Nadia"
).split()
LAST = (
    "Abbot Berger Costa Dumont Eriksen Fischer Garcia Holm Ivanov Jansen Keller Lopez "
    "Moretti Novak Olsen Petrov Quist Rossi Schmidt Turner Ulrich Varga Weber Xiang "
    "Yilmaz Zeman Aalto Bauer Carver Dietrich Egger Falk Gruber Haas Iversen Juhl "
    "Kovacs Lang Marek Nagy"
).split()


@dataclass(frozen=True)
class Relation:
    """One attribute: its values and the prompts that ask for it.

    Attributes:
        name: Name in the items.
        templates: Prompts with ``{}`` for the person; the first is an item's prompt, the others its
            paraphrases.
        values: Possible answers, one word each.
    """

    name: str
    templates: tuple[str, ...]
    values: tuple[str, ...]


RELATIONS = (
    Relation(
        "birthplace",
        (
            "{} was born in",
            "The birthplace of {} is",
            "The native city of {} is",
            "{} first saw light in",
        ),
        tuple(
            "Lisbon Vienna Oslo Athens Dublin Warsaw Prague Madrid Rome Berlin Geneva "
            "Tallinn Riga Bergen Porto Seville Naples Krakow Zurich Malmo Ghent Turku "
            "Split Varna".split()
        ),
    ),
    Relation(
        "occupation",
        (
            "{} works as a",
            "The occupation of {} is",
            "The trade that feeds {} is",
            "{} earns a living as a",
        ),
        tuple(
            "baker carpenter dentist farmer gardener judge lawyer miner nurse painter "
            "pilot plumber potter sailor surgeon tailor teacher waiter welder writer "
            "barber dancer fisher librarian".split()
        ),
    ),
    Relation(
        "instrument",
        (
            "{} plays the",
            "The instrument of {} is the",
            "On stage people hear {} on the",
            "{} took lessons on the",
        ),
        tuple(
            "cello flute guitar harp horn lute oboe piano trumpet viola violin tuba "
            "banjo bassoon clarinet drum fiddle organ trombone zither accordion bugle "
            "mandolin sitar".split()
        ),
    ),
)


def vocabulary() -> list[str]:
    """All words of this world, in a fixed order."""
    templates = [" ".join(r.templates).replace("{}", "") for r in RELATIONS]
    words = " ".join([*FIRST, *LAST, *templates]).split()
    words += [value for r in RELATIONS for value in r.values]
    return list(dict.fromkeys(words))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of this world; other words are tokenized by letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    characters = string.ascii_letters + string.digits + string.punctuation
    tokens = ["<unk>", "<pad>", *vocabulary(), *characters]
    tokens += [f"##{sign}" for sign in characters]
    ids = {entry: i for i, entry in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=64
    )
