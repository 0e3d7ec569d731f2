"""The settings of Sphinx: `sphinx-build -W -b html docs build/site` writes the site."""

import re
import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "workflow")]

from generated import filled  # noqa: E402

project = "EigenCache"
copyright = "the EigenCache developers"
version = release = metadata.version("eigencache")
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton",
]  # fmt: skip
html_theme = "furo"
html_title = f"EigenCache {version}"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
highlight_language = "none"

autodoc_default_options = {
    "members": True, "member-order": "bysource", "inherited-members": "BaseException, OfOrder",
}  # fmt: skip
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def as_rst(app: Sphinx, what: str, name: str, one: object, options: dict, lines: list[str]) -> None:
    """Write a docstring's code, in single backticks or indented as in Markdown, as RST has it."""
    above = ""  # the last line that is not empty
    found: list[str] = []
    for line in lines:
        starts_block = line.startswith("    ") and found and not found[-1]
        if starts_block and not above.startswith(" ") and not above.endswith("::"):
            found += ["::", ""]
            above = "::"
        found.append(line if above == "::" and line.startswith(" ") else _literal(line))
        if line and not (above == "::" and line.startswith(" ")):
            above = line
    lines[:] = found


def _literal(line: str) -> str:
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)


def shorten(app: Sphinx, what: str, name: str, one: object, options: dict, given: str, back: str):
    """Write NumPy's ArrayLike by its name, and defaults that are made anew as `...`."""
    array = r"[~\w.]*_Buffer \|.*?bytes \| str\]"
    return given and re.sub(array, "ArrayLike", given).replace("<factory>", "..."), back


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put in what is generated from the code."""
    source[0] = filled(source[0])


def stale(app: Sphinx, *_: object) -> list[str]:
    """Return the pages that may have changed although their files have not."""
    pages = ((path.stem, path.read_text()) for path in HERE.glob("*.md"))
    return [name for name, text in pages if "<!-- generated:" in text or "{include}" in text]


def setup(app: Sphinx) -> None:
    """Ask Sphinx to call the functions above."""
    app.connect("source-read", fill)
    app.connect("env-get-outdated", stale)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
