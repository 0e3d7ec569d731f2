"""A result depends on the code that made it, and on no other."""

import pytest

from reproduction.provenance import code as provenance
from reproduction.provenance.code import source_files, source_hash


def names(module):
    return {provenance.module_of(path) for path in source_files(module)}


def test_imports_are_followed():
    planning = names("reproduction.stages.plan")
    assert {
        "reproduction.stages.plan", "eigencache.design", "eigencache.predictors._kriging",
    } <= planning  # fmt: skip


def test_what_is_not_imported_does_not_count():
    sampling = names("reproduction.stages.sample")
    assert "eigencache.runtime.__init__" in sampling
    assert not sampling & {
        "eigencache.predictors.__init__", "eigencache.design", "eigencache.closed_loop",
        "eigencache.metrics._psnr", "reproduction.models.hub", "reproduction.stages.fetch",
    }  # fmt: skip


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
    monkeypatch.setattr(provenance, "PACKAGES", {"toy": package})

    def digest():
        source_files.cache_clear()
        return source_hash("toy.a")

    before = digest()
    (package / "c.py").write_text("x = 2\n")
    assert digest() == before
    (package / "b.py").write_text("x = 2\n")
    assert digest() != before
    source_files.cache_clear()
