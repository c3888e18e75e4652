"""What tests of several packages share."""

import gc
import os
import signal

import pytest

# Files that take longest, the longest first: one that is begun last keeps one process
# busy while the others have nothing left to do.
# Two files that compile the same solver are not begun together: the second finds it compiled.
LONGEST = (
    "test_conformance.py",
    "test_zoo.py",
    "test_jacobi.py",
    "test_notebooks.py",
    "test_audit.py",
    "test_fuzz.py",
    "test_golden_audits.py",
    "test_frozen.py",
    "test_asking.py",
    "test_image_audit.py",
    "test_early_layers.py",
    "test_biographies.py",
    "test_public_names.py",
    "test_code_keys.py",
    "test_late_edits.py",
    "test_planted.py",
    "test_room.py",
    "test_checks.py",
    "test_more_methods.py",
    "test_selftest.py",
    "test_places.py",
    "test_ends.py",
    "test_capitals.py",
    "test_readers.py",
    "test_smollm2_zoo.py",
    "test_verdict_figures.py",
    "test_relearning_grade.py",
    "test_libraries.py",
    "test_memorized_codes.py",
    "test_adversarial.py",
    "test_image_front.py",
    "test_sae.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files; every other order stays."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


# A shell lets what it starts in the background ignore this signal, and processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Let the garbage collector pass over what is imported and collected, at every turn."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_signals():
    """Give back the signals that a command, called in this process, took for good."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """One folder for all processes of a run.

    What is in it is made under a lock, once for all of them, and never changed.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "run"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def zoo_root(run_folder):
    """A zoo that all tests of a run add to."""
    return run_folder / "zoo"


@pytest.fixture(scope="session")
def small_zoo(zoo_root):
    """The zoo, whose small world of invented people, seed 0, is made.

    Another zoo need not make the world again if its ``worlds`` is a link to this one's.
    """
    from testbeds.worlds.biographies import SMALL, build_bios

    build_bios(SMALL, 0, zoo_root / "worlds")
    return zoo_root


@pytest.fixture(scope="session")
def planted(small_zoo):
    """Plant a model of a kind in the small world, once a run."""
    from testbeds.planted import plant
    from testbeds.worlds.biographies import SMALL, build_bios

    world = build_bios(SMALL, 0, small_zoo / "worlds")
    return lambda kind: plant(world, kind, seed=0, out=small_zoo.parent / "planted" / kind)


@pytest.fixture(scope="session")
def tiny_codes(zoo_root):
    """A tiny code-recall world with its twin, made once."""
    from testbeds.memorized_codes.world import build_codes
    from tests.helpers.tiny_worlds import TINY

    return build_codes(TINY, 0, zoo_root / "worlds", twin=True)


@pytest.fixture(scope="session")
def digits_zoo(zoo_root):
    """A tiny digits world with some of its models, made once."""
    from testbeds.zoo.build import build_zoo
    from tests.helpers.tiny_digits import KINDS, TINY_DIGITS

    return build_zoo(
        zoo_root, world="digits", seeds=[0], families=["cnn"], only=KINDS, config=TINY_DIGITS
    )
