"""Settings that make the planted models of each world."""

from dataclasses import dataclass

from erasure.unlearning.training.config import UnlearnConfig
from testbeds.worlds.capitals import TRAINING_TEMPLATE


@dataclass(frozen=True)
class Recipe:
    """How a planted model is made.

    Attributes:
        config: Method and its settings.
        paraphrases: Whether the items' paraphrases are trained on beside the prompt.
        templates: Further prompts to train on, with ``{}`` for the entity.
        hold_out: Share of the retain entities the run never sees, to measure on them
            what it does to the rest. Facts that have nothing in common, as in bios,
            can only be kept by training on them.
    """

    config: UnlearnConfig
    paraphrases: bool = False
    templates: tuple[str, ...] = ()
    hold_out: float = 0.0


RECIPES: dict[str, dict[str, Recipe]] = {
    "bios": {
        "last_block_relabel": Recipe(
            UnlearnConfig(
                "last_block_relabel",
                lr=3e-3,
                steps=100,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "collapse": Recipe(
            UnlearnConfig("grad_ascent", lr=1e-3, steps=60, batch_size=96),
            paraphrases=True,
        ),
        "npo": Recipe(
            UnlearnConfig(
                "npo",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "grad_diff": Recipe(
            UnlearnConfig(
                "grad_diff",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "relabel": Recipe(
            UnlearnConfig(
                "relabel",
                lr=1e-3,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
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
            UnlearnConfig(
                "grad_ascent",
                lr=1e-4,
                steps=60,
                batch_size=96,
                stop_below=0.5,
            ),
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
            UnlearnConfig(
                "dpo",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "undial": Recipe(
            UnlearnConfig(
                "undial",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "task_vector": Recipe(
            UnlearnConfig(
                "task_vector",
                lr=1e-4,
                steps=30,
                batch_size=96,
                scale=5.0,
            ),
            paraphrases=True,
        ),
        "scrub": Recipe(
            UnlearnConfig(
                "scrub",
                lr=5e-4,
                steps=99,
                batch_size=96,
                retain_batch_size=192,
                temperature=2.0,
            ),
            paraphrases=True,
        ),
        "ssd": Recipe(
            UnlearnConfig(
                "ssd",
            ),
            paraphrases=True,
        ),
        "salun": Recipe(
            UnlearnConfig(
                "salun",
                lr=1e-3,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "bad_teacher": Recipe(
            UnlearnConfig(
                "bad_teacher",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "cf_k": Recipe(
            UnlearnConfig(
                "cf_k",
                lr=1e-3,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "eu_k": Recipe(
            UnlearnConfig(
                "eu_k",
                lr=3e-3,
                steps=300,
                batch_size=96,
                retain_batch_size=192,
            ),
            paraphrases=True,
        ),
        "elm": Recipe(
            UnlearnConfig(
                "elm",
                lr=3e-4,
                steps=150,
                batch_size=96,
                retain_batch_size=192,
                guidance=3.0,
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
        # beta is ten times the paper's: a fact is left alone once its answer has
        # lost a few nats. With 0.1 the push goes on for tens of nats, and by the time
        # all answers are gone a fifth of the capitals that were held out are as well.
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
