"""What tests of several packages share."""

import pytest


@pytest.fixture(scope="session")
def tiny_codes(tmp_path_factory):
    """A tiny code-recall world with its twin, made once."""
    from testbeds.codes import build_codes
    from tests.testbeds.tiny_codes import TINY

    return build_codes(TINY, 0, tmp_path_factory.mktemp("codes"), twin=True)
