"""The folder in which the examples of docstrings are run, and what is there before.

Its models are the packed ones of the golden audits: small, trained, and the same
everywhere. ``SETUP`` is the setup that ``docs/reference/api.md`` shows.
"""

import shutil
from pathlib import Path

from tests.repository.golden import worlds

SETUP = """
>>> import numpy as np
>>> import torch
>>> import exhume
>>> checkpoint = exhume.open_checkpoint("original")
>>> model, tokenizer = checkpoint.load(), checkpoint.tokenizer
>>> retain = exhume.read_items("retain.jsonl")
>>> births = [item for item in retain if item.relation == "birthplace"]
>>> rows = exhume.encode_items(tokenizer, births)
>>> states = exhume.capture_activations(model, rows, ["resid.0", "resid.1"])
>>> cities = np.array([item.answer for item in births])
>>> people = np.array([item.entity for item in births])
>>> small_world = exhume.BiosConfig(
...     people=32, forget=8, names=16, values=8, layers=1, width=64, steps=120, lr=1e-2
... )
"""


def make_folder(folder: Path) -> None:
    """Models, items, two finished audits and an autoencoder, under short names."""
    import exhume

    packed = worlds.unpack(folder / "packed")
    people, digits = packed / "bios", packed / "digits"
    places = {
        "original": people / "original",
        "unlearned": people / "last_block_relabel",
        "forget.jsonl": people / "forget.jsonl",
        "retain.jsonl": people / "retain.jsonl",
        "never_taught.jsonl": people / "never_taught.jsonl",
        "classifier": digits / "original",
        "forget.npz": digits / "forget_test.npz",
        "retain.npz": digits / "retain_test.npz",
    }
    for name, place in places.items():
        place.rename(folder / name)
    pair = folder / "original", folder / "unlearned"
    sets = folder / "forget.jsonl", folder / "retain.jsonl"
    never = folder / "never_taught.jsonl"
    for name, axes in (
        ("finished", ["behaviour", "decodability"]),
        ("finished-behaviour", ["behaviour"]),
    ):
        exhume.audit(*pair, *sets, folder / name, never_taught=never, axes=axes)
    model = exhume.open_checkpoint(pair[0])
    rows = exhume.encode_items(model.tokenizer, exhume.read_items(sets[1]))
    states = exhume.capture_activations(model.load(), rows, ["resid.0"])
    config = exhume.SaeConfig(expansion=2, k=4, batch_size=16)
    root = folder / "saes"
    exhume.train_sae(states.site("resid.0"), "resid.0", root, config)
    (trained,) = root.iterdir()
    trained.rename(folder / "sae")
    shutil.rmtree(folder / "packed")
