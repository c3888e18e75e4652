"""Tiny models with the files to audit them, made once and kept in one archive.

Audits start from the very same weights on every machine and at every commit: what
changes in how models are trained changes no golden audit. Weights are kept in float16
and unpacked as float32; of a model made from the original only what differs is kept.
"""

import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save, save_file

ARCHIVE = Path(__file__).with_name("worlds.zip")
WEIGHTS = "model.safetensors"
NEVER = (1980, 1, 1, 0, 0, 0)  # the time of every file: equal contents, equal bytes


def make(root: Path) -> Iterator[tuple[str, Path]]:
    """Train the models with the testbeds of this tree: (name in the archive, place)."""
    from testbeds.worlds.biographies import SMALL
    from testbeds.zoo.build import build_zoo
    from tests.helpers.tiny_digits import TINY_DIGITS
    from tests.repository.golden.cases import CASES, ITEMS

    people = replace(SMALL, people=96, forget=20, names=32)
    sizes = {
        "bios": ("bios", replace(people, width=32, steps=300, lr=1e-2)),
        "bios_wide": ("bios", replace(people, width=48, steps=200)),
        "digits": ("digits", TINY_DIGITS),
    }
    for name, (world, config) in sizes.items():
        of_world = [case for case in CASES if case.world == name]
        wanted = {case.candidate for case in of_world}
        wanted |= {case.reference for case in of_world if case.reference}
        made = build_zoo(
            root / name,
            world=world,
            seeds=[0],
            families=[config.family],
            only=sorted(wanted - {"original"}),
            config=config,
        )
        yield f"{name}/original", made[0].world.original
        for each in made:
            yield f"{name}/{each.kind}", each.model
        for file in ITEMS[name]:
            yield f"{name}/{file}", made[0].world.root / file


def write(archive: Path = ARCHIVE) -> None:
    """Make the models again and pack them."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = list(make(Path(scratch)))
        base = {
            name.partition("/")[0]: load_file(place / WEIGHTS)
            for name, place in parts
            if name.endswith("/original")
        }
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as packed:
            for name, place in parts:
                world, _, model = name.partition("/")
                if place.is_file():
                    _add(packed, name, place.read_bytes())
                    continue
                tensors = load_file(place / WEIGHTS)
                if model != "original":
                    tensors = _changed(tensors, base[world])
                _add(packed, f"{name}/{WEIGHTS}", save(_half(tensors)))
                for file in sorted(place.glob("*.json")):
                    if file.name != "card.json":
                        _add(packed, f"{name}/{file.name}", file.read_bytes())


def unpack(root: Path, archive: Path = ARCHIVE) -> Path:
    """Write every world below ``root`` as ``audit`` reads them."""
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        for name in (each for each in names if not each.endswith(WEIGHTS)):
            packed.extract(name, root)
        base: dict[str, dict] = {}
        for name in (each for each in names if each.endswith(WEIGHTS)):
            world = name.split("/")[0]
            tensors = {k: v.float() for k, v in load(packed.read(name)).items()}
            # The original comes first of its world.
            base.setdefault(world, tensors)
            save_file(base[world] | tensors, root / name, metadata={"format": "pt"})
    return root


def _add(packed: zipfile.ZipFile, name: str, data: bytes) -> None:
    packed.writestr(zipfile.ZipInfo(name, NEVER), data, zipfile.ZIP_LZMA)


def _changed(tensors: dict, base: dict) -> dict:
    if tensors.keys() != base.keys():
        raise ValueError("a model has other tensors than its original")
    return {k: v for k, v in tensors.items() if not torch.equal(v, base[k])}


def _half(tensors: dict) -> dict:
    half = {name: value.half() for name, value in tensors.items()}
    if not all(bool(each.isfinite().all()) for each in half.values()):
        raise ValueError("weights do not fit into float16")
    return half
