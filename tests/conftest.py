"""Fixtures that several test files share; `helpers` has the functions."""

import os

import pytest
from helpers import pythonpath, tiny_flux

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is first imported
os.environ["PYTHONPATH"] = pythonpath()  # programs that tests start import the same code


@pytest.fixture
def flux():
    """Return a FLUX transformer of two double and two single blocks with random weights."""
    return tiny_flux()
