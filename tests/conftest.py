"""What tests of several packages share."""

import signal

import pytest

# Files that take longest, the longest first: one that is begun last keeps one process
# busy while the others have nothing left to do.
LONGEST = (
    "test_zoo.py",
    "test_notebooks.py",
    "test_audit.py",
    "test_golden_audits.py",
    "test_late_edits.py",
    "test_image_audit.py",
    "test_smollm2_zoo.py",
    "test_code_keys.py",
    "test_frozen.py",
    "test_memorized_codes.py",
    "test_adversarial.py",
    "test_libraries.py",
    "test_sae.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files; every other order stays."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def own_signals():
    """Give back the signals that a command, called in this process, took for good."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_codes(tmp_path_factory):
    """A tiny code-recall world with its twin, made once."""
    from testbeds.memorized_codes.world import build_codes
    from tests.helpers.tiny_worlds import TINY

    return build_codes(TINY, 0, tmp_path_factory.mktemp("codes"), twin=True)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """Where the tiny digits zoo is kept for the session."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="session")
def digits_zoo(digits_root):
    """A tiny digits world with some of its models, made once."""
    from testbeds.zoo.build import build_zoo
    from tests.helpers.tiny_digits import KINDS, TINY_DIGITS

    return build_zoo(
        digits_root, world="digits", seeds=[0], families=["cnn"], only=KINDS, config=TINY_DIGITS
    )
