"""Stored values of the testbeds: ``python -m tests.testbeds.frozen`` writes them again.

Cache keys, cards, manifests and recipes name models that take days to make, so none of them may
change by accident. The weights of edits are compared bit for bit; ``arithmetic`` tells whether
this machine rounds as the one that wrote the file.
"""

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import testbeds.edits
import testbeds.worlds
from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import Schedule
from evidence.progress import SILENT
from testbeds.edits import adversarial
from testbeds.memorized_codes import config as codes
from testbeds.memorized_codes.passages import PASSAGES, PREDICTABLE
from testbeds.memorized_codes.world import build_codes
from testbeds.recipes import DIGITS_RECIPES, RECIPES
from testbeds.worlds import capitals
from testbeds.worlds.base import settings_of
from testbeds.worlds.biographies import SMALL, SMOL, STANDARD, build_bios, make_people
from testbeds.worlds.code_keys import STANDARD_KEYS, KeysConfig, build_keys, make_keys
from testbeds.worlds.code_text import make_pools
from testbeds.worlds.digits import STANDARD_DIGITS, build_digits, digits_sized, split_digits
from testbeds.worlds.smollm2 import WHEEL_SHA256, fetch_smollm2
from testbeds.zoo.build import VERSION, build_zoo
from testbeds.zoo.registry import WORLDS
from tests.helpers.tiny_digits import TINY_DIGITS
from tests.helpers.tiny_worlds import TINY

FILE = Path(__file__).with_name("frozen.json")
STEPS = 5
"""Optimizer steps of every training within an edit."""
MODELS = 2
"""Models of every edit, the mildest first."""
TINY_PEOPLE = replace(SMALL, people=32, forget=4, width=32, names=12, steps=200, lr=1e-2)
TINY_KEYS = KeysConfig(
    keys=24, forget=6, words=8, layers=2, width=48, steps=180, batch_size=36, lr=1e-2
)
TINY_VIT = replace(TINY_DIGITS, family="vit", width=32, lr=3e-3, steps=200)
TINY_CODES = replace(TINY, memorised=4, clean=4, others=0, width=32)
# Kinds of which weights are kept, where these are not all of the family's.
SOME_KINDS = {
    "gpt2": ("last_block_relabel", "head_only", "late_rotation", "scrambled", "random_init"),
    "neox": ("last_block_lora", "logit_mask", "retrain_1", "off_manifold"),
    "vit": tuple(name for name, kind in WORLDS["digits"].kinds.items() if kind.state),
}


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def cache_keys() -> dict[str, str]:
    """Folder of every world, by its settings and seed; nothing is built."""
    builds = {
        "bios": (
            build_bios,
            [STANDARD, SMALL, SMOL, replace(STANDARD, family="gpt2", steps=600), TINY_PEOPLE],
        ),
        "keys": (build_keys, [STANDARD_KEYS, replace(STANDARD_KEYS, family="neox"), TINY_KEYS]),
        "digits": (
            build_digits,
            [STANDARD_DIGITS, digits_sized(STANDARD_DIGITS, "cnn"), TINY_DIGITS],
        ),
        "codes": (build_codes, [*codes.SIZES.values(), TINY]),
    }
    found = {}
    with patch.object(Path, "is_file", lambda self: True):
        for name, (build, configs) in builds.items():
            for i, config in enumerate(configs):
                for seed in (0, 11):
                    found[f"{name} {i} {seed}"] = build(config, seed, Path("root")).root.as_posix()
    with TemporaryDirectory() as cache:
        marker = Path(cache, "smol", "bcc81830d10ce7d9e76640ca.txt")
        marker.parent.mkdir()
        marker.write_text("model\n")
        Path(cache, "gguf", "model").mkdir(parents=True)
        found["smollm2"] = fetch_smollm2(cache=Path(cache)).relative_to(cache).as_posix()
        found["smollm2 wheel"] = WHEEL_SHA256
    return found


def data() -> dict[str, Any]:
    """Hashes of the generated items and of the texts."""
    sets = {
        "bios": make_people(STANDARD, 3),
        "bios small": make_people(SMALL, 0),
        "keys": make_keys(STANDARD_KEYS, 3),
    }
    texts = [capitals.PROMPT, *capitals.PARAPHRASES, capitals.TRAINING_TEMPLATE]
    return {
        **{name: [each.digest for each in parts] for name, parts in sets.items()},
        "digits": {name: each.digest for name, each in split_digits(STANDARD_DIGITS, 3).items()},
        "codes": sha256(repr(make_pools(codes.SMALL.sizes, 3))),
        "capitals": sha256("\n".join([*texts, *capitals.EXCLUDED, *capitals.INVENTED])),
        "passages": sha256(repr([(p.key, p.known, p.paraphrase) for p in PASSAGES])),
        "predictable": sha256(repr(list(PREDICTABLE))),
    }


def recipes() -> dict[str, Any]:
    """Every recipe as it is resolved."""
    text = {
        world: {kind: asdict(recipe) for kind, recipe in kinds.items()}
        for world, kinds in RECIPES.items()
    }
    images = {
        kind: [asdict(each) for each in settings] for kind, settings in DIGITS_RECIPES.items()
    }
    return json.loads(json.dumps({**text, "digits": images}))


def zoo() -> dict[str, Any]:
    """The part of every card that a finished model is compared with, and the default settings."""
    found: dict[str, Any] = {"version": VERSION}
    for name, world in WORLDS.items():
        kinds = {
            each.name: [
                *(each.state, each.why, (each.edit.__doc__ or "").strip()),
                *(each.forget_range, each.retain_range),
            ]
            for each in world.kinds.values()
        }
        sizes = {
            family: settings_of(world.sized(world.standard, family)) for family in world.families
        }
        found[name] = {"kinds": kinds, "default": world.default_kinds, "sizes": sizes}
    return json.loads(json.dumps(found))


def tensors_hash(model: nn.Module) -> str:
    """Hash of all weights, their names and types."""
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.numpy().tobytes())
    return hashed.hexdigest()[:20]


def arithmetic() -> str:
    """Hash of a small training in plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleList([nn.Linear(32, 128), nn.Linear(128, 32), nn.LayerNorm(32)])
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 6)
    x = torch.randn(96, 12, 32, generator=generator)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-2, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        y = layers[2](layers[1](nn.functional.silu(layers[0](x))))
        y = nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)
        (-y.log_softmax(-1)[..., 3].mean()).backward()
        optimizer.step()
    return tensors_hash(layers)


@contextmanager
def few_steps() -> Iterator[None]:
    """Every training has ``STEPS`` steps, and no model is refused for being trained too little."""
    check = Schedule.__post_init__

    def cut(schedule: Schedule) -> None:
        check(schedule)
        object.__setattr__(schedule, "steps", min(schedule.steps, STEPS))

    def all_right(model: nn.Module, rows: Sequences) -> SimpleNamespace:
        return SimpleNamespace(greedy=np.ones(len(rows)), logprob=np.full(len(rows), -100.0))

    def all_wrong(model: nn.Module, rows: Sequences) -> SimpleNamespace:
        return SimpleNamespace(greedy=np.zeros(len(rows)))

    with ExitStack() as stack:
        stack.enter_context(patch.object(Schedule, "__post_init__", cut))
        for package, instead in (
            (testbeds.edits, {"MIN_UNLOCKED": -1.0, "MIN_RELEASED": -1.0}),
            (testbeds.worlds, {"MIN_ACCURACY": -1.0, "score_answers": all_right}),
        ):
            for found in pkgutil.iter_modules(package.__path__):
                module = importlib.import_module(f"{package.__name__}.{found.name}")
                for name in instead.keys() & vars(module).keys():
                    stack.enter_context(patch.object(module, name, instead[name]))
        stack.enter_context(patch.object(adversarial, "score_answers", all_wrong))
        yield


def built(root: Path) -> dict[str, Any]:
    """The files that tiny worlds write beside their models, and the hash of every model."""
    found: dict[str, Any] = {}
    worlds: dict[str, Any] = {
        "bios": build_bios(TINY_PEOPLE, 0, root),
        "codes": build_codes(TINY_CODES, 0, root, twin=True),
    }
    with few_steps():
        worlds["keys"] = build_keys(TINY_KEYS, 0, root)
        worlds["digits"] = build_digits(TINY_DIGITS, 0, root)
    for name, world in worlds.items():
        files = sorted(path for path in world.root.rglob("*") if path.is_file())
        found[name] = {
            "files": [path.relative_to(world.root).as_posix() for path in files],
            "texts": {
                path.relative_to(world.root).as_posix(): sha256(path.read_bytes())
                for path in files
                if path.suffix == ".jsonl" or path.name in ("manifest.json", "pools.json")
            },
            "cards": {
                path.relative_to(world.root).as_posix(): _shape(json.loads(path.read_text()))
                for path in files
                if path.name in ("manifest.json", "card.json")
            },
            "weights": {
                model: tensors_hash(open_checkpoint(world.root / model).load())
                for model in ("original", "twin")
            },
        }
    specimens = build_zoo(root, seeds=[0], only=["twin", "noise"], config=TINY_PEOPLE)
    found["zoo"] = {each.name: [_shape(each.card), each.card["weights"]] for each in specimens}
    found["zoo list"] = _shape(json.loads((root / "manifest.json").read_text()))
    return json.loads(json.dumps(found))


def _shape(value: Any) -> Any:
    """A JSON value with its keys in order, without measured numbers."""
    if isinstance(value, dict):
        return [[key, _shape(each)] for key, each in value.items()]
    return type(value).__name__ if isinstance(value, float) else value


def weights(root: Path, count: int = MODELS) -> dict[str, list[str]]:
    """Hashes of the first ``count`` models of every edit, on tiny worlds."""
    worlds = [
        *(("bios", replace(TINY_PEOPLE, family=family)) for family in WORLDS["bios"].families),
        *(("codes", TINY_KEYS), ("digits", TINY_DIGITS), ("digits", TINY_VIT)),
    ]
    found = {}
    for name, config in worlds:
        world = WORLDS[name]
        kinds = SOME_KINDS.get(config.family, tuple(world.kinds))
        if name == "codes":
            kinds = world.default_kinds
        with few_steps():
            made = world.build(config, 0, root, "cpu", SILENT)
            bench = world.workbench(made, config, 0, "cpu")
            for kind in kinds:
                models = islice(world.kinds[kind].edit(bench), count)
                found[f"{name} {config.family} {kind}"] = [tensors_hash(each) for each in models]
    return found


def main() -> None:
    """Write the stored values again."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as root:
        found = {
            "arithmetic": arithmetic(),
            "cache_keys": cache_keys(),
            "data": data(),
            "recipes": recipes(),
            "zoo": zoo(),
            "built": built(Path(root)),
            "weights": weights(Path(root)),
        }
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
