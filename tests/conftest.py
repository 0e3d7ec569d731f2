"""Fixtures that several test files share; `helpers` has the functions."""

import os

import pytest
from helpers import pythonpath, tiny_flux

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported
os.environ["PYTHONPATH"] = pythonpath()  # programs that tests start import the same code


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what needs a browser, and begin with the longest files, so that none is left at the end.

    pytest-xdist keeps the tests of a file on one worker, since they share fixtures that take long.
    """
    items.sort(key=lambda item: item.path.parent.name not in ("end_to_end", "tests"))
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Return the folder of a whole FLUX pipeline with random weights, for images of 16 pixels."""
    from pipelines.stand_ins import save

    folder = tmp_path_factory.mktemp("models") / "tiny-flux"
    save("FLUX.1-dev", folder)
    return folder


@pytest.fixture
def flux():
    """Return a FLUX transformer of two double and two single blocks with random weights."""
    return tiny_flux()
