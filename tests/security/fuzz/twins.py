"""Readers of the Python interface, each called as a user would call it.

They take what a case names, and print nothing; an ``ExhumeError`` is a refusal.
"""

from pathlib import Path


def open_model(folder: Path) -> None:
    """A checkpoint opened, loaded, its sites found and captured."""
    import torch

    from capture.checkpoints.open import open_checkpoint
    from capture.network.sites import find_sites

    model = open_checkpoint(folder).load()
    find_sites(model)
    with torch.no_grad():
        model(torch.ones(1, 4, dtype=torch.long))


def read_sets(forget: Path, retain: Path) -> None:
    """Two item files read and held against each other."""
    from capture.data.items import read_items
    from capture.scoring.set_validation import validate_items

    validate_items(read_items(forget), read_items(retain)).check()


def decide_again(folder: Path) -> None:
    """A finished audit decided again, and one axis left out."""
    from audits.run.api import load
    from audits.verdict.reevaluate import reevaluate

    found = load(folder)
    found.to_frame()
    repr(found)
    reevaluate(found.document)
    reevaluate(found.document, without=("relearning",))


def build_zoo(root: Path) -> None:
    """A zoo that is there already, listed again."""
    from testbeds.zoo.build import build_zoo as build
    from tests.security.fuzz.inputs.seeds import WORLD

    build(root, seeds=[0], only=["untouched"], config=WORLD)


def read_card(folder: Path) -> None:
    """The card of a planted model."""
    from testbeds.planted import check_card, read_card

    read_card(folder)
    check_card(folder, {"kind": "untouched", "seed": 0})


def load_sae(folder: Path) -> None:
    """An autoencoder read and used."""
    import torch

    from attribution.sae.files import load_sae as load

    sae = load(folder)
    repr(sae)
    sae.decode(sae.encode(torch.ones(2, sae.d_in)))


def read_eraser(file: Path) -> None:
    """An eraser read and used."""
    import torch

    from erasure.concept.leace import Leace

    Leace.load(file).transform(torch.ones(3, 6))


def read_projection(file: Path) -> None:
    """A fitted projection of MD-PGA, read back."""
    from erasure.concept.md_pga import MdPgaProjection

    MdPgaProjection.load(file)
