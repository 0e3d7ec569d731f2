"""A result depends on the code that made it, and on no other."""

import pytest

from eigencache import provenance
from eigencache.provenance import source_files, source_hash


def names(module):
    return {path.relative_to(provenance.ROOT).as_posix() for path in source_files(module)}


def test_imports_are_followed():
    planning = names("eigencache.stages.plan")
    assert {"stages/plan.py", "design.py", "predictors/_kriging.py"} <= planning


def test_what_is_not_imported_does_not_count():
    sampling = names("eigencache.stages.sample")
    assert "runtime.py" in sampling
    assert not {"predictors/__init__.py", "design.py", "_psnr.py", "closed_loop.py"} & sampling


def test_unknown_module_is_refused():
    with pytest.raises(ModuleNotFoundError, match=r"eigencache\.none"):
        source_files("eigencache.none")


def test_edit_of_an_imported_file_changes_the_hash(tmp_path, monkeypatch):
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from toy.b import x\n")
    (package / "b.py").write_text("x = 1\n")
    (package / "c.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "ROOT", package)

    def digest():
        source_files.cache_clear()
        return source_hash("toy.a")

    before = digest()
    (package / "c.py").write_text("x = 2\n")
    assert digest() == before
    (package / "b.py").write_text("x = 2\n")
    assert digest() != before
    source_files.cache_clear()
