"""What the tests of exported files share."""

import pytest


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """A folder as `make_place` fills it."""
    from tests.support.exported import make_place  # not before it is settled how kernels run

    folder = tmp_path_factory.mktemp("place")
    make_place(folder)
    return folder
