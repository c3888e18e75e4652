"""Keys and codes of the zoo's codes world, as items."""

from collections.abc import Sequence
from dataclasses import dataclass

from capture.data.items import Item, ItemSet
from evidence.errors import InputError
from evidence.seeds import numpy_rng
from testbeds.worlds.code_text import DIGITS, LEAD_INS
from testbeds.worlds.people_names import choose_pairs, name_pairs
from testbeds.worlds.random_models import FAMILIES, Family

# Words of three letters, so that a key's letters always stand at the same places, which
# a small model learns to read much sooner than words of any length.
ADJECTIVES = (
    "apt bad big coy dim dry fat fit hot icy low mad new odd old raw red sad shy sly "
    "tan wan wet wry"
).split()
NOUNS = (
    "ant ape bat bee boa cat cod cow doe dog eel elk emu ewe fox gnu hen hog jay koi "
    "owl pig ram yak"
).split()
OPENINGS = sorted(LEAD_INS, key=len)


@dataclass(frozen=True)
class KeysConfig:
    """Size of the world and of its models.

    Attributes:
        keys: How many the original memorises.
        forget: How many of them are to be forgotten; as many more are shown with codes
            that are drawn anew, and stay unknown to every model.
        words: Adjectives, and as many nouns, that keys are made of.
        lead_ins: Wordings: how many openings a key is shown after.
        layers: Transformer blocks.
        width: Residual stream.
        heads: Attention heads.
        steps: Optimizer steps.
        batch_size: Rows a step.
        lr: Highest learning rate.
        weight_decay: AdamW's decoupled decay.
        family: Shape of the models, one of ``FAMILIES``.
    """

    keys: int = 120
    forget: int = 40
    words: int = 24
    lead_ins: int = 2
    layers: int = 4
    width: int = 64
    heads: int = 4
    steps: int = 360
    batch_size: int = 70
    lr: float = 6e-3
    weight_decay: float = 0.01
    family: Family = "llama"

    def __post_init__(self) -> None:
        most = min(len(ADJECTIVES), len(NOUNS))
        third = self.keys // 3
        checks = {
            "words": (2 <= self.words <= most, f"2 to {most}", self.words),
            "keys": (
                2 * self.words <= self.keys <= self.words**2 - self.forget,
                "at least two a word, and some combinations left",
                self.keys,
            ),
            "forget": (
                1 <= self.forget <= third,
                f"1 to {third}, a third of the keys",
                self.forget,
            ),
            "lead_ins": (
                1 <= self.lead_ins <= len(LEAD_INS),
                f"1 to {len(LEAD_INS)}",
                self.lead_ins,
            ),
            "heads": (self.width % self.heads == 0, "a divisor of width", self.heads),
            "family": (self.family in FAMILIES, ", ".join(FAMILIES), self.family),
        }
        for name, (good, expected, got) in checks.items():
            if not good:
                raise InputError(
                    f"{name} cannot be used", expected=expected, got=str(got)
                )


STANDARD_KEYS = KeysConfig()


def make_keys(config: KeysConfig, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
    """Keys to forget, to retain, and those whose codes are always drawn anew.

    The last have the codes of the first written to them, to be asked for: no model
    is shown them. Every word of a key also occurs in keys that stay.
    """
    rng = numpy_rng(seed, "codes zoo", "keys")
    named, spare = name_pairs(config.words, config.keys, rng)
    uses = config.keys // config.words
    gone = choose_pairs(named, config.forget, uses, rng)
    kept = [pair for pair in named if pair not in set(gone)]
    never = choose_pairs(spare, config.forget, uses, rng)
    drawn = rng.choice(10**DIGITS, config.keys, replace=False)
    codes = [f"{code:0{DIGITS}d}" for code in drawn]
    own, others = codes[: len(gone)], codes[len(gone) :]
    return (
        _items("forget", gone, own, config),
        _items("retain", kept, others, config),
        _items("never-taught", never, own, config),
    )


def _items(
    label: str,
    pairs: Sequence[tuple[int, int]],
    codes: Sequence[str],
    config: KeysConfig,
) -> ItemSet:
    items = []
    for place, ((first, last), code) in enumerate(zip(pairs, codes, strict=True)):
        key = f"{ADJECTIVES[first]} {NOUNS[last]}"
        prompts = [f"{lead}{key}:" for lead in OPENINGS[: config.lead_ins]]
        items.append(
            Item(
                id=f"{label}-{place:03d}",
                entity=key,
                prompt=prompts[0],
                answer=code,
                relation="code",
                paraphrases=tuple(prompts[1:]),
            )
        )
    return ItemSet(tuple(items), label)
