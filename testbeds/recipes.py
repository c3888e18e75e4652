"""Settings of the unlearning methods in each world."""

from collections.abc import Sequence
from dataclasses import dataclass

from erasure.unlearning.config import ImageUnlearnConfig, UnlearnConfig
from testbeds.worlds.capitals import TRAINING_TEMPLATE


@dataclass(frozen=True)
class Recipe:
    """Settings of a planted model.

    Attributes:
        config: Method and its settings.
        paraphrases: Whether to train on the items' paraphrases too.
        templates: More prompts to train on, with ``{}`` for the entity.
        hold_out: Share of the retain entities that training never sees, to measure side effects on
            them. Facts that have nothing in common, as in bios, can be kept only by training on
            them.
    """

    config: UnlearnConfig
    paraphrases: bool = False
    templates: tuple[str, ...] = ()
    hold_out: float = 0.0


RECIPES: dict[str, dict[str, Recipe]] = {
    "bios": {
        "last_block_relabel": Recipe(
            UnlearnConfig(
                "last_block_relabel", lr=3e-3, steps=100, batch_size=96, retain_batch_size=192
            ),
            paraphrases=True,
        ),
        "collapse": Recipe(
            UnlearnConfig("grad_ascent", lr=1e-3, steps=60, batch_size=96), paraphrases=True
        ),
        "npo": Recipe(
            UnlearnConfig("npo", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "grad_diff": Recipe(
            UnlearnConfig("grad_diff", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "relabel": Recipe(
            UnlearnConfig("relabel", lr=1e-3, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "rmu": Recipe(
            UnlearnConfig(
                "rmu",
                lr=3e-3,
                steps=200,
                batch_size=96,
                retain_batch_size=192,
                rmu_layer=1,
                rmu_coefficient=20.0,
                retain_weight=1.0,
            ),
            paraphrases=True,
        ),
        "grad_ascent": Recipe(
            UnlearnConfig("grad_ascent", lr=1e-4, steps=60, batch_size=96, stop_below=0.5),
            paraphrases=True,
        ),
        "simnpo": Recipe(
            UnlearnConfig(
                "simnpo",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
                beta=4.5,
                forget_weight=0.125,
            ),
            paraphrases=True,
        ),
        "dpo": Recipe(
            UnlearnConfig("dpo", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "undial": Recipe(
            UnlearnConfig("undial", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "task_vector": Recipe(
            UnlearnConfig("task_vector", lr=1e-4, steps=30, batch_size=96, scale=5.0),
            paraphrases=True,
        ),
        "scrub": Recipe(
            UnlearnConfig(
                "scrub", lr=5e-4, steps=99, batch_size=96, retain_batch_size=192, temperature=2.0
            ),
            paraphrases=True,
        ),
        "ssd": Recipe(UnlearnConfig("ssd"), paraphrases=True),
        "salun": Recipe(
            UnlearnConfig("salun", lr=1e-3, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "bad_teacher": Recipe(
            UnlearnConfig("bad_teacher", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "cf_k": Recipe(
            UnlearnConfig("cf_k", lr=1e-3, steps=150, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "eu_k": Recipe(
            UnlearnConfig("eu_k", lr=3e-3, steps=300, batch_size=96, retain_batch_size=192),
            paraphrases=True,
        ),
        "elm": Recipe(
            UnlearnConfig(
                "elm", lr=3e-4, steps=150, batch_size=96, retain_batch_size=192, guidance=3.0
            ),
            paraphrases=True,
        ),
    },
    "capitals": {
        "last_block_relabel": Recipe(
            UnlearnConfig(
                "last_block_relabel",
                lr=1e-3,
                steps=40,
                batch_size=20,
                retain_batch_size=30,
                retain_weight=3.0,
                weight_decay=0.0,
                stop_below=0.0,
                every=2,
            ),
            templates=(TRAINING_TEMPLATE,),
        ),
        "collapse": Recipe(
            UnlearnConfig("grad_ascent", lr=5e-5, steps=12, batch_size=20),
            templates=(TRAINING_TEMPLATE,),
        ),
        # beta is ten times the paper's: the loss saturates once an answer has lost a few
        # nats. With 0.1 it continues for tens of nats, and when all answers are forgotten,
        # so are a fifth of the held-out capitals.
        "npo": Recipe(
            UnlearnConfig(
                "npo",
                lr=5e-5,
                steps=20,
                batch_size=20,
                retain_batch_size=20,
                retain_weight=3.0,
                beta=1.0,
                warmup=3,
                stop_below=0.0,
                every=2,
            ),
            templates=(TRAINING_TEMPLATE,),
            hold_out=1 / 5,
        ),
    },
}

DIGITS_RECIPES: dict[str, Sequence[ImageUnlearnConfig]] = {
    "collapse": [ImageUnlearnConfig("grad_ascent", lr=r, steps=60) for r in (1e-3, 3e-3, 1e-2)],
    "grad_ascent": [ImageUnlearnConfig("grad_ascent", lr=r, steps=20) for r in (1e-4, 3e-4)],
    "grad_diff": [ImageUnlearnConfig("grad_diff", lr=r) for r in (3e-4, 1e-3)],
    "relabel": [ImageUnlearnConfig("relabel", lr=r) for r in (5e-4, 1e-3)],
    "salun": [ImageUnlearnConfig("salun", lr=r) for r in (5e-4, 1e-3)],
    # The authors' alpha is 10. With a tenth of the images in the forget set, every ratio of
    # importances is at most 10 and no weight would be dampened, so alpha is scaled.
    "ssd": [ImageUnlearnConfig("ssd", dampen_above=a) for a in (6.0, 4.0, 2.0)],
    "scrub": [
        ImageUnlearnConfig("scrub", lr=r, steps=60, retain_batch_size=128) for r in (5e-4, 1e-3)
    ],
    # Temperature 1 is the authors'.
    "bad_teacher": [ImageUnlearnConfig("bad_teacher", lr=r, temperature=1.0) for r in (5e-4, 1e-3)],
    "boundary_shrink": [
        ImageUnlearnConfig("boundary_shrink", lr=r, steps=20) for r in (1e-4, 2e-4, 4e-4)
    ],
    "duck": [ImageUnlearnConfig("duck", lr=r, retain_weight=1.4) for r in (4e-4, 1e-3)],
    "famr": [ImageUnlearnConfig("famr", lr=r, steps=20, anchor=0.01) for r in (2e-4, 4e-4, 8e-4)],
    "cf_k": [ImageUnlearnConfig("cf_k", lr=3e-3, steps=60)],
    "eu_k": [ImageUnlearnConfig("eu_k", lr=5e-3, steps=100)],
    "rmu": [
        ImageUnlearnConfig("rmu", coefficient=c, retain_weight=4.0, steps=40)
        for c in (1.0, 2.0, 4.0)
    ],
    "l1_sparse": [ImageUnlearnConfig("l1_sparse", lr=2e-3, steps=80, anchor=3e-4)],
}
"""Settings from the mildest, a list a method. The zoo takes the first model that names at most a
tenth of the forgotten class and at least nine tenths of the others, or the last one. The authors'
loss weights, temperatures and thresholds are kept; learning rates and step counts suit networks of
80 thousand weights under AdamW."""
