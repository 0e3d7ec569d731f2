"""Fetching from a model hub, against a hub on loopback that speaks Hugging Face's protocol."""

import contextlib
import errno
import functools
import hashlib
import json
import re
import shutil
from http.server import ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import snakemake
from huggingface_hub import constants
from loopback import COMMIT, FILES, INDEX, REPOSITORY, TOKEN, WEIGHTS, Handler, Hub, serving

from eigencache._files import sha256
from eigencache.commands.prompts import read_prompts
from reproduction.config import ConfigError
from reproduction.experiment import Experiment
from reproduction.models import hub
from reproduction.models.check import FetchError, verified
from reproduction.models.hub import HubError
from reproduction.prompts import refuse_overlap
from reproduction.stages.fetch import check_call, fetch

ROOT = Path(__file__).parents[2]
LATER = "b" * 40
WANTED = ["model_index.json", "scheduler/*", "transformer/*"]
FETCHED = sorted(name for name in FILES if "/" in name or name == "model_index.json")


@pytest.fixture
def server(monkeypatch):
    """The hub; nobody waits before asking it again."""
    monkeypatch.setattr(hub.patiently, "sleep", lambda seconds: None)
    with serving(Hub(), monkeypatch) as state:
        yield state


@pytest.fixture
def tiny(tmp_path, server):
    """Fetch the hub's model into a folder; the source and pins are those given."""

    class Tiny:
        folder = tmp_path / "models" / "tiny"
        manifest = folder / "manifest.json"

        def fetch(
            self, source=f"hf://{REPOSITORY}@{COMMIT}", wanted=WANTED, pins=None, check=None
        ):  # fmt: skip
            rows = [("tiny", source, path, None, None) for path in wanted]
            rows += [("tiny", source, path, None, pin) for path, pin in (pins or {}).items()]
            table = tmp_path / "models.tsv"
            columns = ["model", "source", "path", "bytes", "sha256"]
            pd.DataFrame(rows, columns=columns).to_csv(table, sep="\t", index=False)
            fetch(table, "tiny", self.folder, check=check)

        def here(self):
            """The files in place, without the manifest."""
            found = (p for p in self.folder.rglob("*") if p.is_file() and ".parts" not in p.parts)
            return sorted(
                p.relative_to(self.folder).as_posix() for p in found if p != self.manifest
            )

    return Tiny()


def test_the_wanted_files_are_fetched_checked_and_recorded(tiny, server):
    tiny.fetch()
    assert tiny.here() == FETCHED
    manifest = json.loads(tiny.manifest.read_text())
    for name in FETCHED:
        assert (tiny.folder / name).read_bytes() == FILES[name]
        assert manifest[name] == {
            "bytes": len(FILES[name]), "sha256": hashlib.sha256(FILES[name]).hexdigest(),
            "source": f"hf://{REPOSITORY}@{COMMIT}",
        }  # fmt: skip
    assert sorted(manifest) == FETCHED
    assert verified(tiny.manifest) == tiny.folder
    assert not (tiny.folder / ".parts").exists()
    assert not server.asked_for("single-file.safetensors")


def test_a_second_fetch_asks_the_hub_nothing(tiny, server):
    tiny.fetch()
    server.requests.clear()
    tiny.fetch()
    assert server.requests == []


@pytest.mark.parametrize("manifest", ["kept", "deleted"])
def test_only_what_is_not_right_is_fetched_again(tiny, server, manifest):
    tiny.fetch()
    if manifest == "deleted":
        tiny.manifest.unlink()
    (tiny.folder / "transformer/config.json").write_bytes(b'{"a": 2}')
    server.requests.clear()
    tiny.fetch()
    assert [r["path"].split("/")[-1] for r in server.requests if r["data"]] == ["config.json"]
    assert verified(tiny.manifest)


def test_another_revision_is_another_model(tiny, server):
    tiny.fetch()
    server.commits[LATER] = LATER
    server.files[WEIGHTS] = bytes(100)
    tiny.fetch(f"hf://{REPOSITORY}@{LATER}")
    assert (tiny.folder / WEIGHTS).read_bytes() == bytes(100)


def test_a_cut_connection_is_taken_up_where_it_was_cut(tiny, server):
    server.cuts = [50_000, 70_000]
    tiny.fetch()
    assert (tiny.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert server.sent[WEIGHTS] == len(FILES[WEIGHTS])  # no byte twice
    assert server.asked_for(WEIGHTS) == [None, "bytes=50000-", "bytes=120000-"]


def test_a_fetch_that_failed_goes_on_in_the_next_run(tiny, server, monkeypatch):
    server.cuts = [30_000] + 4 * [0]
    with pytest.raises(HubError, match="cannot be reached"):
        tiny.fetch()
    assert not (tiny.folder / WEIGHTS).exists() and not tiny.manifest.exists()
    tiny.fetch()
    assert server.asked_for(WEIGHTS)[-1] == "bytes=30000-"
    assert server.sent[WEIGHTS] == len(FILES[WEIGHTS])
    assert verified(tiny.manifest)


def test_a_busy_hub_is_asked_again(tiny, server):
    server.busy = 3
    tiny.fetch()
    assert verified(tiny.manifest)


def test_a_hub_that_stays_busy_is_given_up(tiny, server):
    server.busy = 99
    with pytest.raises(HubError, match="the hub answers 503"):
        tiny.fetch()
    assert len(server.requests) == 5


@pytest.mark.parametrize("name", [WEIGHTS, "transformer/config.json"])
def test_wrong_bytes_are_thrown_away(tiny, server, name):
    server.damaged = {name}
    with pytest.raises(HubError, match=rf"{name}: its hash is not .*, which the hub states"):
        tiny.fetch()
    assert name not in tiny.here() and not tiny.manifest.exists()
    assert list((tiny.folder / ".parts").iterdir()) == []
    server.damaged = set()
    tiny.fetch()
    assert verified(tiny.manifest)


def test_what_the_table_pins_besides_must_hold(tiny, server):
    right = {name: hashlib.sha256(FILES[name]).hexdigest() for name in FETCHED}
    tiny.fetch(pins=right)
    server.requests.clear()
    with pytest.raises(HubError, match=f"the hub states .* for {WEIGHTS}, the table .* pins 000"):
        tiny.fetch(pins={WEIGHTS: 64 * "0"})
    assert not any(request["data"] for request in server.requests)
    (tiny.folder / "transformer/config.json").unlink()
    with pytest.raises(HubError, match=r"config\.json: its sha256 is not the pinned 000"):
        tiny.fetch(pins={"transformer/config.json": 64 * "0"})
    assert "transformer/config.json" not in tiny.here()


def test_an_open_revision_is_resolved_once_and_said_to_be_open(tiny, server, capsys):
    tiny.fetch(f"hf://{REPOSITORY}")
    assert re.search(rf"not pinned; it is {COMMIT} now.*@{COMMIT}", capsys.readouterr().out)
    server.commits = {"main": LATER, LATER: LATER}
    tiny.fetch(f"hf://{REPOSITORY}")
    manifest = json.loads(tiny.manifest.read_text())
    assert {facts["source"] for facts in manifest.values()} == {f"hf://{REPOSITORY}@{COMMIT}"}


@pytest.mark.parametrize("token", [None, "hf_of_someone_else"])
def test_a_gated_model_says_how_to_get_it(tiny, server, monkeypatch, token):
    server.gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = "HF_TOKEN is set" if token else "HF_TOKEN is not set"
    with pytest.raises(HubError, match=f"{REPOSITORY}.*{said}.*accept the licence.*HF_TOKEN="):
        tiny.fetch()
    assert tiny.here() == [] and not tiny.manifest.exists()


def test_the_token_goes_to_the_hub_alone(tiny, server, monkeypatch, capfd):
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    tiny.fetch()
    at_hub = [r for r in server.requests if not r["cdn"]]
    elsewhere = [r for r in server.requests if r["cdn"]]
    assert all(r["token"] == f"Bearer {TOKEN}" for r in at_hub) and at_hub
    assert all(r["token"] is None for r in elsewhere) and elsewhere
    out, err = capfd.readouterr()
    assert TOKEN not in out + err
    assert not any(TOKEN.encode() in p.read_bytes() for p in tiny.folder.rglob("*") if p.is_file())


def test_a_wrong_repository_revision_or_path_is_named(tiny):
    with pytest.raises(HubError, match="someone/else: no such repository"):
        tiny.fetch(f"hf://someone/else@{COMMIT}")
    with pytest.raises(HubError, match=f"has no revision '{LATER}'"):
        tiny.fetch(f"hf://{REPOSITORY}@{LATER}")
    with pytest.raises(HubError, match=r"has no file vae/\*"):
        tiny.fetch(wanted=[*WANTED, "vae/*"])
    assert tiny.here() == []


def test_a_path_that_leads_out_is_refused(tiny, server):
    server.files["transformer/../../../out.json"] = b"{}"
    with pytest.raises(HubError, match="leads out of the repository"):
        tiny.fetch()
    assert tiny.here() == []


@pytest.mark.parametrize("name", ["transformer/config.json", WEIGHTS])
@pytest.mark.parametrize("digest", ["../../victim.txt", "", "A" * 40, None])
def test_a_hash_that_is_none_is_refused_and_nothing_is_touched(tiny, server, name, digest):
    """It names the file that a part is kept in: a hub could have changed and deleted any other."""
    victim = tiny.folder.parent / "victim.txt"
    tiny.folder.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(b"mine")
    server.stated[name] = digest
    with pytest.raises(HubError, match=rf"no hash for {name}, but"):
        tiny.fetch()
    assert tiny.here() == [] and victim.read_bytes() == b"mine"


def test_without_a_connection_it_says_what_to_put_where(tiny, server, monkeypatch):
    with contextlib.closing(ThreadingHTTPServer(("127.0.0.1", 0), Handler).socket) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    said = f"{port} cannot be reached .*copy {tiny.folder} .*model_path.*{REPOSITORY}@{COMMIT}"
    with pytest.raises(HubError, match=said):
        tiny.fetch()


def test_too_small_a_disk_is_told_before_anything_is_fetched(tiny, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 0, 1000))
    with pytest.raises(HubError, match=r"0\.00 GB are still to be fetched.*make room.*goes on"):
        tiny.fetch()
    assert not any(request["data"] for request in server.requests)


def test_a_disk_that_fills_up_keeps_what_there_is(tiny, server, monkeypatch):
    opened = Path.open

    class Full:
        """A file on a disk that is full after 40,000 bytes."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            self.file.write(data[:40_000])
            raise OSError(errno.ENOSPC, "No space left on device")

    def on_full_disk(path, mode="r", *arguments, **options):
        file = opened(path, mode, *arguments, **options)
        weights = path.name == hashlib.sha256(FILES[WEIGHTS]).hexdigest()
        return Full(file) if weights and mode in ("ab", "wb") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", on_full_disk)
        with pytest.raises(HubError, match="No space left on device"):
            tiny.fetch()
    assert not (tiny.folder / WEIGHTS).exists() and not tiny.manifest.exists()
    tiny.fetch()
    assert server.asked_for(WEIGHTS)[-1] == "bytes=40000-"
    assert verified(tiny.manifest)


# ---- How it is called


def whole_index():
    """Return the index of a pipeline whose class finds all its parts."""
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return json.dumps(INDEX | {name: [None, None] for name in parts}).encode()


@pytest.mark.parametrize("wanted", [WANTED, ["*"]])
def test_a_misspelt_argument_is_told_before_large_files_are_fetched(tiny, server, wanted):
    server.files["model_index.json"] = whole_index()
    wrong = functools.partial(check_call, pipeline=None, names=["hight"])
    right = functools.partial(check_call, pipeline="FluxPipeline", names=["height", "width"])
    with pytest.raises(FetchError, match="FluxPipeline takes no argument 'hight'; did you mean"):
        tiny.fetch(wanted=wanted, check=wrong)
    assert tiny.here() == ["model_index.json"] and not server.asked_for(WEIGHTS)
    tiny.fetch(wanted=wanted, check=right)
    assert len(server.asked_for("model_index.json")) == 1 and verified(tiny.manifest)
    server.requests.clear()
    tiny.fetch(wanted=wanted, check=right)
    with pytest.raises(FetchError, match=r"'hight'; did you mean 'height'.*in the configuration"):
        tiny.fetch(wanted=wanted, check=wrong)
    assert server.requests == []


def test_a_wrong_class_is_told_before_files_of_ones_own_are_hashed(own, monkeypatch):
    source, folder = own
    (source / "model_index.json").write_bytes(whole_index())
    monkeypatch.setattr("reproduction.stages.fetch.sha256", lambda path: pytest.fail("hashed"))
    check = functools.partial(check_call, pipeline="FluxPipelin", names=["height"])
    with pytest.raises(FetchError, match="no pipeline 'FluxPipelin'; did you mean 'FluxPipeline'"):
        fetch("no table", "mine", folder, source, check)
    assert not folder.exists()


# ---- A model of one's own


@pytest.fixture
def own(tmp_path):
    """Return (folder of a pipeline, folder to adopt it into)."""
    source = tmp_path / "own"
    for name, data in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    return source, tmp_path / "models" / "mine"


def adopt(own, source=None):
    fetch("no table", "mine", own[1], source or own[0])
    return own[1] / "manifest.json"


def test_a_model_of_ones_own_is_linked_and_verified(own):
    source, folder = own
    manifest = adopt(own)
    assert verified(manifest) == folder
    assert sorted(json.loads(manifest.read_text())) == FETCHED
    assert all((folder / name).readlink() == source / name for name in FETCHED)
    (source / WEIGHTS).write_bytes(b"\1" + FILES[WEIGHTS][1:])
    with pytest.raises(FetchError, match="sha256 is not the pinned"):
        verified(manifest)
    assert verified(adopt(own))


def test_another_model_of_ones_own_takes_the_place_of_the_first(own, tmp_path):
    adopt(own)
    other = shutil.copytree(own[0], tmp_path / "other")
    (other / WEIGHTS).rename(other / "transformer/others.safetensors")
    adopt(own, other)
    assert not (own[1] / WEIGHTS).is_symlink()
    assert (own[1] / "transformer/others.safetensors").readlink().is_relative_to(other)


def test_a_model_put_into_models_by_hand_needs_no_links(own):
    source, _ = own
    fetch("no table", "mine", source, source)
    assert verified(source / "manifest.json") == source
    assert not any(path.is_symlink() for path in source.rglob("*"))


def test_a_fetched_model_is_not_replaced_by_ones_own(own, tiny):
    tiny.fetch()
    with pytest.raises(FetchError, match=r"model_index\.json: fetched before.*another name"):
        fetch("no table", "tiny", tiny.folder, own[0])
    assert verified(tiny.manifest)


def test_a_folder_that_is_no_pipeline_is_refused(own):
    source, folder = own
    shutil.rmtree(source / "transformer")
    with pytest.raises(FetchError, match=r"own/transformer: missing or empty"):
        adopt(own)
    (source / "model_index.json").unlink()
    with pytest.raises(FetchError, match=r"model_index\.json.*folder of a diffusers pipeline"):
        adopt(own)
    assert not (folder / "manifest.json").exists()


def test_model_path_is_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(Path("config.yaml").read_text()) | {"model_path": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"model_path: .*not the folder of a diffusers pipeline"):
        Experiment(config)


# ---- What the project pins, and the workflow


def test_every_model_of_a_hub_is_pinned_or_says_that_it_is_open():
    table = pd.read_csv(ROOT / "data/models.tsv", sep="\t", dtype=str)
    of_hub = table[table["source"].str.startswith(hub.SCHEME)]
    assert set(of_hub["model"]) == {
        "FLUX.1-dev", "FLUX.1-schnell", "FLUX.1-Kontext-dev", "FLUX.2-dev", "FLUX.2-klein-4B",
        "Qwen-Image", "Qwen-Image-Edit", "Z-Image", "SD3.5-large", "SDXL", "Wan2.2-TI2V-5B",
        "Wan2.2-T2V-A14B", "CLIP-ViT-B-32", "ImageReward", "bert-base-uncased",
    }  # fmt: skip
    assert (of_hub.groupby("model")["source"].nunique() == 1).all()
    assert of_hub["source"].str.fullmatch(r"hf://[\w-]+/[\w.-]+@[0-9a-f]{40}").all()
    assert of_hub["sha256"].dropna().str.fullmatch("[0-9a-f]{64}").all()
    assert of_hub["note"].notna().all()
    for model, rows in of_hub.groupby("model"):
        if model in ("FLUX.1-dev", "FLUX.1-schnell"):
            folders = set(rows["path"].str.split("/").str[0])
            assert folders == {
                "model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer",
                "tokenizer_2", "transformer", "vae",
            }  # fmt: skip


def test_prompts_for_real_models():
    folder = ROOT / "data/prompts"
    evaluation = read_prompts(folder / "scenes-evaluation.txt")
    calibration = read_prompts(folder / "scenes-calibration.txt")
    assert (len(evaluation), len(calibration)) == (200, 32)
    refuse_overlap(calibration, evaluation)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "emoji-flux", "emoji-clip")
    for name in ("workflow", "profiles", "envs", "eigencache", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_the_configurations_of_real_models_plan_their_jobs(project, name):
    printed = snakemake(project, "-n", "--configfile", f"workflow/config/{name}.yaml")
    config = yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text())
    jobs = re.search(r"^sample +(\d+)$", printed, re.MULTILINE)
    experiment = Experiment(config)
    assert int(jobs[1]) == len(experiment.groups) * len(experiment.shards)
    assert re.search(r"^fetch +5$", printed, re.MULTILINE)


@pytest.mark.slow
def test_the_workflow_goes_online_to_fetch_and_not_twice(project, server):
    rows = [("tiny", f"hf://{REPOSITORY}@{COMMIT}", path, "", "") for path in WANTED]
    with (project / "data/models.tsv").open("a") as table:
        table.writelines("\t".join(row) + "\t\n" for row in rows)
    server.gated = True
    target, environment = "models/tiny/manifest.json", {
        "HF_ENDPOINT": server.addresses[0], "HF_TOKEN": TOKEN, "HF_HOME": str(project / "home"),
    }  # fmt: skip
    printed = snakemake(project, "--cores", "1", target, environment=environment)
    assert sha256(project / "models/tiny" / WEIGHTS) == hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    log = (project / "logs/fetch/tiny.log").read_text()
    assert "100%" in log and TOKEN not in log + printed
    server.requests.clear()
    snakemake(project, "--cores", "1", "--forcerun", "fetch", "--", target, environment=environment)
    assert server.requests == []


@pytest.mark.slow
def test_a_misspelt_key_of_the_configuration_stops_the_fetch(project, tmp_path):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["model_path"] = str(ROOT / "data/emoji-flux")
    config["arguments"]["hight"] = 64
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    options = "--cores", "1", "--configfile", str(tmp_path / "config.yaml"), "--"
    printed = snakemake(project, *options, "models/emoji-flux/manifest.json", check=False)
    assert "no argument 'hight'; did you mean 'height'" in printed
    assert not (project / "models/emoji-flux/manifest.json").exists()
