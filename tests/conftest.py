"""Fixtures that several test files share; `helpers` has the functions."""

import os

import pytest
from helpers import pythonpath, tiny_flux

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported
os.environ["PYTHONPATH"] = pythonpath()  # programs that tests start import the same code


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep together, on one worker of pytest-xdist, what shares fixtures that take long to make.

    These are the tests of one pipeline of the zoo, and else those of one file. The longest groups
    come first, so that no worker is left alone with one of them at the end.
    """
    items.sort(key=lambda item: item.path.parent.name != "end_to_end")
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        pipeline = parameters.get("measured")
        group = f"pipeline-{pipeline}" if isinstance(pipeline, str) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def flux():
    """Return a FLUX transformer of two double and two single blocks with random weights."""
    return tiny_flux()
