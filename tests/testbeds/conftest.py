import pytest

from testbeds.bios import SMALL, build_bios


@pytest.fixture(scope="session")
def bios(tmp_path_factory):
    """The small world of invented people, built once."""
    return build_bios(SMALL, 0, tmp_path_factory.mktemp("worlds"))
