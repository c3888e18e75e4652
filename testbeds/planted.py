"""Planted models: copies of an original with a known state.

Made from a world and its original model: an unmodified copy, a suppression that cannot have reached
the earlier layers, one of the embedding's rows that read the names, a collapse, and models from
published methods. The state of the latter is unknown and left open in their cards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.items import Item, ItemSet, read_items, split_entities
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, encode_items
from capture.scoring.answers import score_answers
from erasure.unlearning.run import UnlearnLog, unlearn_
from evidence import moved
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng, stage_seed
from evidence.storage.files import MAX_JSON_BYTES
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import is_file, read_text
from testbeds.known_facts.checks import redirect_checks
from testbeds.known_facts.redirect import other_name_tokens, redirect_names
from testbeds.known_facts.world import own_tokens
from testbeds.recipes import RECIPES, Recipe
from testbeds.worlds.base import save_model
from testbeds.worlds.biographies import BiosWorld
from testbeds.worlds.capitals import CapitalWorld

STATES: dict[str, str | None] = {
    "noop": "not_unlearned",
    "last_block_relabel": "suppressed",
    "embedding_redirect": "suppressed",
    "collapse": "damaged",
    "npo": None,
    "grad_diff": None,
    "relabel": None,
    "rmu": None,
}
# Made without training, and so without settings.
UNTRAINED = ("noop", "embedding_redirect")
# Accuracy on the forget and the retain facts of a redirect of certain state.
MOST_SAID, LEAST_KEPT = 0.1, 0.9


@dataclass(frozen=True)
class Facts:
    """A world's facts, as an unlearning run uses them.

    Attributes:
        forget: Facts to forget.
        retain: Facts trained on to keep them.
        held_out: Retain facts that training never sees, to measure side effects; None if all are
            used.
    """

    forget: ItemSet
    retain: ItemSet
    held_out: ItemSet | None


def plant(
    world: BiosWorld | CapitalWorld,
    kind: str,
    *,
    seed: int,
    out: Path,
    recipe: Recipe | None = None,
    progress: Progress = AUTO,
) -> Path:
    """Make a model of a known kind from a world's original.

    Args:
        world: Source of the original and its facts.
        kind: One of ``STATES``.
        seed: Seed of the held-out facts, the wrong answers and the run.
        out: Folder of the new model. Its ``card.json`` records how it was made, its state if that
            is known, and measurements. If the folder has the same model already, nothing is done.
        recipe: Settings in place of the world's own for this kind.
        progress: One unit a training step.

    Raises:
        InputError: an unknown kind or one without settings, a world without an original on disk, or
            a folder with something else.

    Examples:
        >>> from pathlib import Path
        >>> world = exhume.build_bios(small_world, 1, Path("zoo/worlds"))
        >>> late = exhume.plant(world, "last_block_relabel", seed=0, out=Path("late"))
        >>> exhume.open_checkpoint(late)
        Checkpoint('late', LlamaForCausalLM, weights ..., from 'late')
    """
    if kind not in STATES:
        raise InputError(
            "this kind of model cannot be planted", expected=", ".join(STATES), got=repr(kind)
        )
    family = "bios" if isinstance(world, BiosWorld) else "capitals"
    if recipe is None and kind not in UNTRAINED:
        recipe = _preset(family, kind)
    forget, retain = _world_sets(world)
    if world.original is None:
        raise InputError(
            "the world's original is not on disk",
            expected="a world made from a folder, a hub id or a GGUF file",
        )
    checkpoint = open_checkpoint(world.original, progress=progress)
    card: dict[str, object] = {
        "kind": kind,
        # A redirect's state is decided on the finished model.
        **({} if kind == "embedding_redirect" else {"state": STATES[kind]}),
        "world": family,
        "seed": seed,
        "recipe": None if recipe is None else asdict(recipe),
        "original": checkpoint.weights_hash,
        "forget": forget.digest,
        "retain": retain.digest,
    }
    if out.exists():
        check_card(out, card)
        return out
    with creation_lock(out, progress):
        if out.exists():
            check_card(out, card)
        else:
            _plant(checkpoint, (forget, retain), recipe, card, out, seed, progress)
    return out


def _plant(
    checkpoint: Checkpoint,
    sets: tuple[ItemSet, ItemSet],
    recipe: Recipe | None,
    card: dict[str, object],
    out: Path,
    seed: int,
    progress: Progress,
) -> None:
    model = checkpoint.load()
    if card["kind"] == "embedding_redirect":
        card |= _redirect(model, checkpoint, sets, seed, progress)
    elif recipe is not None:
        facts = hold_out(*sets, recipe.hold_out, seed)
        log = unlearn_with(model, checkpoint, facts, recipe, seed=seed, progress=progress)
        card["log"] = list(log.rows)
        card["stopped"] = log.stopped
        card["measured"] = measure(model, checkpoint, facts)
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    save_model(model, out, checkpoint.tokenizer, {"card.json": text})  # pyright: ignore


def _redirect(
    model: nn.Module,
    checkpoint: Checkpoint,
    sets: tuple[ItemSet, ItemSet],
    seed: int,
    progress: Progress,
) -> dict[str, object]:
    """Redirect the forgotten names in ``model``, in place; returns the card's further entries."""
    tokenizer, (forget, retain) = checkpoint.tokenizer, sets
    redirect = redirect_names(
        model,
        tokenizer,
        forget,
        own_tokens(tokenizer, (*forget, *retain)),
        other_name_tokens(tokenizer, sets),
        seed=seed,
        progress=progress,
    )
    checks = redirect_checks(model, checkpoint.load(), tokenizer, sets, redirect)
    measured = measure(model, checkpoint, Facts(forget, retain, None))
    said, kept = measured["forget"]["prompt"], measured["retain"]["prompt"]
    silent = said <= MOST_SAID and kept >= LEAST_KEPT
    why = checks.why() if silent else f"to be graded: it says {said:.2f} and keeps {kept:.2f}"
    return {
        "state": STATES["embedding_redirect"] if silent and not checks.failures else None,
        "why": why,
        "redirected": {name: list(tokens) for name, tokens in redirect.names.items()},
        "front": checks.to_json(),
        "measured": measured,
    }


def _preset(family: str, kind: str) -> Recipe:
    if kind not in RECIPES[family]:
        raise InputError(
            f"there are no settings for {kind} in the {family} world",
            expected=", ".join(RECIPES[family]),
            fix="Pass a recipe",
        )
    return RECIPES[family][kind]


def read_card(model: Path) -> dict[str, Any]:
    """The card of a planted model.

    Raises:
        InputError: the folder has no planted model.
    """
    path = model / "card.json"
    if not is_file(path):
        raise InputError(f"{model} is not a planted model", expected="a card.json in it")
    try:
        # Losses of a deliberately damaged model may be NaN.
        card = json.loads(read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON", got=str(error)) from error
    if not isinstance(card, dict):
        raise InputError(f"{path} is not a card", got=type(card).__name__)
    return card


def check_card(out: Path, card: Mapping[str, object]) -> dict[str, object]:
    """The card in ``out``, which must contain the values of ``card``.

    Raises:
        InputError: the folder has no planted model, or another one.
    """
    stored = read_card(out)
    expected = json.loads(json.dumps(card))
    different = sorted(key for key in expected if stored.get(key) != expected[key])
    if different:
        raise InputError(
            f"{out} holds another planted model",
            expected="a new folder, or the same model",
            got=f"another {', '.join(different)}",
            fix="Delete it, or choose another folder",
        )
    return stored


def _world_sets(world: BiosWorld | CapitalWorld) -> tuple[ItemSet, ItemSet]:
    if isinstance(world, CapitalWorld):
        return world.forget, world.retain
    return read_items(world.forget), read_items(world.retain)


def hold_out(forget: ItemSet, retain: ItemSet, share: float, seed: int) -> Facts:
    """Split off ``share`` of the retain entities, which training never sees."""
    n_entities = len(retain.entities)
    n_held = round(share * n_entities)
    if n_held == 0:
        return Facts(forget, retain, None)
    rng = numpy_rng(seed, "planted", "held out")
    parts = split_entities(retain, [n_held, n_entities - n_held], rng)
    return Facts(forget, parts[1], parts[0])


def unlearn_with(
    model: nn.Module,
    checkpoint: Checkpoint,
    facts: Facts,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress = AUTO,
) -> UnlearnLog:
    """Unlearn ``facts.forget`` in ``model``, in place, by ``recipe``.

    Args:
        model: The original's weights, to be changed.
        checkpoint: Their checkpoint, for its tokenizer.
        facts: Facts to forget and to retain.
        recipe: Method, settings and training prompts.
        seed: Seed of wrong answers, order and adapters.
        progress: One unit a training step.
    """
    tokenizer = checkpoint.tokenizer
    forget = training_rows(tokenizer, facts.forget, recipe)
    retain = training_rows(tokenizer, facts.retain, recipe)
    wrong = mislabel(facts.forget, facts.retain, seed)

    def evaluate(now: nn.Module) -> dict[str, float]:
        return {"forget": float(score_answers(now, forget).greedy.mean())}

    return unlearn_(
        model,
        forget,
        retain,
        recipe.config,
        relabeled=training_rows(tokenizer, wrong, recipe),
        evaluate=None if recipe.config.stop_below is None else evaluate,
        seed=stage_seed(seed, "planted", recipe.config.method),
        progress=progress,
    )


def training_rows(tokenizer: PreTrainedTokenizerBase, items: ItemSet, recipe: Recipe) -> Sequences:
    """Training rows of a recipe: its prompts, each with every item's answer."""
    rows = encode_items(tokenizer, items)
    if recipe.paraphrases:
        for i_paraphrase in range(len(items.items[0].paraphrases)):
            rows = rows + encode_items(tokenizer, items, i_paraphrase)
    for template in recipe.templates:
        prompts = [template.replace("{}", item.entity) for item in items]
        rows = rows + encode(tokenizer, prompts, [item.answer for item in items])
    return rows


def mislabel(items: ItemSet, others: ItemSet, seed: int) -> ItemSet:
    """``items``, each with a wrong answer drawn from its relation's answers."""
    rng = numpy_rng(seed, "planted", "wrong answers")
    answers_of: dict[str, list[str]] = {}
    for item in (*items, *others):
        answers = answers_of.setdefault(item.relation, [])
        if item.answer not in answers:
            answers.append(item.answer)
    mislabeled = []
    for item in items:
        pool = [answer for answer in answers_of[item.relation] if answer != item.answer]
        if not pool:
            raise InputError(
                f"item {item.id!r} has no wrong answer to learn",
                expected="two different answers or more in its relation",
            )
        mislabeled.append(_with_answer(item, pool[rng.integers(len(pool))]))
    return ItemSet(tuple(mislabeled), items.name)


def _with_answer(item: Item, answer: str) -> Item:
    return Item(
        item.id,
        item.entity,
        item.prompt,
        answer,
        item.relation,
        item.alternatives,
        item.paraphrases,
    )


def measure(model: nn.Module, checkpoint: Checkpoint, facts: Facts) -> dict[str, dict[str, float]]:
    """Accuracy on each part, and on the paraphrases of the forget facts."""
    parts = {"forget": facts.forget, "retain": facts.retain, "held": facts.held_out}
    accuracies = {
        name: {"prompt": _accuracy(model, checkpoint, items, [None])}
        for name, items in parts.items()
        if items is not None
    }
    paraphrases = range(len(facts.forget.items[0].paraphrases))
    accuracies["forget"]["paraphrases"] = _accuracy(model, checkpoint, facts.forget, paraphrases)
    return accuracies


def _accuracy(
    model: nn.Module, checkpoint: Checkpoint, items: ItemSet, prompts: Sequence[int | None]
) -> float:
    exact_matches = [
        score_answers(model, encode_items(checkpoint.tokenizer, items, i_prompt)).greedy
        for i_prompt in prompts
    ]
    return float(np.mean(exact_matches)) if exact_matches else float("nan")


__getattr__ = moved.names_of("testbeds.planted")
