"""Every public name says what it takes, in which shapes and units, and what it raises."""

import ast
import inspect
import re
import textwrap

import pytest

import eigencache
from eigencache import predictors, schedules, tokens
from eigencache._records import Record
from eigencache.closed_loop import ClosedLoop
from eigencache.kernel import KernelUse
from eigencache.methods import METHODS, Gate

PROTOCOLS = (predictors.Predictor, schedules.Schedule, tokens.Rule)
PARTS = [
    *(getattr(predictors, name) for name in predictors.__all__ if name != "Predictor"),
    *(getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"),
    *tokens.RULES.values(), Gate, ClosedLoop, KernelUse, Record,
]  # fmt: skip
PUBLIC = {name: getattr(eigencache, name) for name in eigencache.__all__ if name[0].isalpha()}
del PUBLIC["METHODS"]
PUBLIC |= {f"{part.__module__}.{part.__name__}": part for part in PARTS}


def documented(text, *sections):
    """Return the names that sections such as Args list in a docstring."""
    names = set()
    for section in sections:
        found = re.search(rf"^{section}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
        for entry in re.findall(r"^    ([\w, ]+):", found[1] if found else "", re.MULTILINE):
            names |= {name.strip() for name in entry.split(",")}
    return names


def methods_of(kind):
    """Return the public methods that a class defines itself, by name."""
    return {
        name: getattr(value, "__func__", value)
        for name, value in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(getattr(value, "__func__", value))
    }


def callables():
    for name, value in PUBLIC.items():
        if inspect.isclass(value):
            for method, function in methods_of(value).items():
                yield f"{name}.{method}", function
        else:
            yield name, inspect.unwrap(value)


def raises(function):
    """Whether a function's own code raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


@pytest.mark.parametrize("name", PUBLIC)
def test_classes_list_every_attribute(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text and text[0].isupper() and text.split("\n")[0].endswith((".", "?"))
    if inspect.isclass(value) and not issubclass(value, Exception):
        taken = set(inspect.signature(value).parameters) - {"plan"}
        assert taken <= documented(text, "Attributes", "Args")
        checks = vars(value).get("__post_init__") or getattr(value, "__post_init__", None)
        assert checks is None or "Raises" in text


@pytest.mark.parametrize("name", dict(callables()))
def test_functions_say_what_they_take_and_raise(name):
    function = dict(callables())[name]
    for protocol in PROTOCOLS:  # what they ask of every part is said once, where they ask it
        function = vars(protocol).get(function.__name__, function)
    text = inspect.getdoc(function)
    assert text, name
    taken = set(inspect.signature(function).parameters) - {"self", "cls"}
    assert taken <= documented(text, "Args")
    if raises(function):
        assert "Raises:" in text


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_their_source(name):
    method = METHODS[name]
    assert method.cite
    for kind in (method.schedule, method.predictor):
        assert re.search(r"arXiv|EigenCache|eigencache\.|Newton|FORA", inspect.getdoc(kind)), kind
