"""Fixtures that several test files share; `helpers` has the functions."""

import gc
import os
import re

import pytest
from helpers import pythonpath, tiny_flux

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported
os.environ["PYTHONPATH"] = pythonpath()  # programs that tests start import the same code


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect the garbage of the tests alone, not what they import, which lives as long as they."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep on one worker what shares fixtures that take long. (`loadgroup` would do nothing:
    pytest-xdist 3.8 writes the groups where pytest 9.2 does not read them.)

    Those are the tests of a file, and those of a family of tiny pipelines in all files of the
    matrix: `tests/pipelines/test_matrix_inner.py::test_right_or_refused[flux-inpaint-hidden]` is of
    the family flux.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            family = re.match(r"tests/pipelines/test_matrix\w*\.py::\w+\[(\w+)", nodeid)
            return f"pipelines of {family[1]}" if family else nodeid.partition("::")[0]

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what needs a browser, and begin with the longest files, so that none is left at the end.

    The matrix is last: its families of pipelines are short.
    """
    order = {"end_to_end": 0, "tests": 0, "pipelines": 2}
    items.sort(key=lambda item: order.get(item.path.parent.name, 1))
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
