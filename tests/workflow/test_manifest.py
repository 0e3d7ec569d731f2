"""Manifests: where results came from, damage noticed, merge's refusals, and `verify`."""

import argparse
import ast
import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import flow_timesteps, kernel_of, pythonpath, random_trajectories

from eigencache._files import read_arrays, replacing, sha256, write_arrays
from eigencache.kernel import Kernel
from eigencache.plan import Plan, PlanError
from reproduction.provenance import code, facts, manifest, record
from reproduction.provenance.manifest import ManifestError
from reproduction.provenance.verify import verify
from reproduction.stages import plan as plan_stage
from reproduction.stages.merge import MergeError, refuse_strangers
from reproduction.tables.tables import write_table

ROOT = Path(__file__).parents[2]
KERNEL, PLAN, SHARD = "kernel.safetensors", "plans/3.safetensors", "shards/000.csv"
MODEL, PROMPTS = "models/m/manifest.json", "prompts.txt"
STAGES = sorted((ROOT / "workflow/reproduction/stages").glob("[!_]*.py"))
STAGES += sorted((ROOT / "workflow/reproduction/figures").glob("[!_]*.py"))


def vouch(path, stage="calibrate", models=(), sources=(), inputs=(), **settings):
    """Write the manifest of a result, as if a stage had made it with these settings."""
    names = {"inputs": list(inputs), "sources": list(sources), "models": list(models)}
    shared = record.begin(
        plan_stage.main, argparse.Namespace(**settings, **names), outputs=[],
        inputs=["inputs"], sources=["sources"], models=["models"],
    )  # fmt: skip
    for name in names:
        del shared["settings"][name]
    shared["stage"] = f"reproduction.stages.{stage}"
    if "seed" in settings:
        shared["seeds"][stage] = shared["seeds"].pop("plan")
    record.write(path, shared)


def run_stage(monkeypatch, module, *arguments):
    """Run a stage by its own command line."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    monkeypatch.delitem(sys.modules, f"reproduction.{module}", raising=False)
    runpy.run_module(f"reproduction.{module}", run_name="__main__")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a model, prompts, a kernel, a shard of two images, and their manifests."""
    monkeypatch.chdir(tmp_path)
    weights = Path("models/m/weights.safetensors")
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    files = {"weights.safetensors": {"bytes": 7, "sha256": sha256(weights), "source": "hf://a/b@1"}}
    Path(MODEL).write_text(json.dumps(files))
    Path(PROMPTS).write_text("a cat\na dog\n")
    timesteps = flow_timesteps(8)
    kernel_of(random_trajectories(timesteps), timesteps).save(KERNEL)
    vouch(KERNEL, seed=7, models=[MODEL], sources=[PROMPTS])
    rows = []
    for index in range(2):
        image = Path(f"images/x-03/{index}.png")
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"image %d" % index)
        rows.append(("x-03", "x", index, image.as_posix(), sha256(image)))
    table = pd.DataFrame(rows, columns=["run", "method", "prompt_index", "image", "sha256"])
    write_table(table, SHARD)
    vouch(SHARD, "sample", [MODEL], [PROMPTS], [KERNEL], seed=2026, budgets=[3], shard=0)
    return tmp_path


def make_plan(monkeypatch):
    method = json.dumps({"method": "EigenCache-design"})
    run_stage(
        monkeypatch, "stages.plan", "--kernel", KERNEL, "--method", method, "--plans", PLAN
    )  # fmt: skip


def merge(monkeypatch, **settings):
    run_stage(
        monkeypatch, "stages.merge", "--shards", SHARD, "--label", "x", "--count", 2,
        "--settings", json.dumps(settings), "--records", "records.csv",
    )  # fmt: skip


def flipped(path):
    contents = bytearray(Path(path).read_bytes())
    contents[len(contents) // 2] ^= 1
    Path(path).write_bytes(contents)


def truncated(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-1])


def missing(path):
    Path(path).unlink()


# ---- What a manifest says


def test_a_result_says_where_it_came_from(project, monkeypatch):
    make_plan(monkeypatch)
    about = json.loads(Path(f"{PLAN}.json").read_text())
    plan = Path(PLAN).read_bytes()
    assert (about["bytes"], about["sha256"]) == (len(plan), hashlib.sha256(plan).hexdigest())
    assert about["stage"] == "reproduction.stages.plan"
    assert about["code"] == code.source_hash("reproduction.stages.plan")
    assert about["settings"] == {"kernel": KERNEL, "method": {"method": "EigenCache-design"}}
    assert about["inputs"] == {KERNEL: sha256(KERNEL)}
    assert about["libraries"]["numpy"] == np.__version__
    assert about["libraries"]["pandas"] == pd.__version__
    assert about["package"]["version"] == "0.1.0"
    assert about["devices"] == [facts.device()] and about["devices"][0]
    # What the kernel came from.
    assert about["models"] == {MODEL: {"sha256": sha256(MODEL), "revision": "hf://a/b@1"}}
    assert about["seeds"] == {"calibrate": 7}


def test_the_config_hash_is_of_the_settings_and_of_nothing_else(project, monkeypatch):
    hashes = {}
    for name, changes in {"a": {}, "b": {}, "c": {"seed": 8}}.items():
        Path(name).write_text(name)
        vouch(name, **{"seed": 7, "budget": 3} | changes)
        hashes[name] = manifest.read(name)["config"]
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_a_repeated_run_gives_the_same_bytes(project, monkeypatch):
    written = []
    for _ in range(2):
        make_plan(monkeypatch)
        written.append([Path(PLAN).read_bytes(), Path(f"{PLAN}.json").read_bytes()])
        Path(PLAN).unlink()
    assert written[0] == written[1]


PROJECT = """[project]
version = "1.2.3"
"""


def test_the_commit_is_the_checkouts_and_says_if_it_is_dirty(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setattr(facts, "PROJECT", tmp_path)
    assert facts.package()["commit"] is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert facts.package()["commit"] == head
    (tmp_path / "pyproject.toml").write_text(PROJECT + "\n")
    assert facts.package()["commit"] == f"{head}-dirty"


def test_no_secret_of_the_environment_is_written(project, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    make_plan(monkeypatch)
    assert "hf_secret" not in Path(f"{PLAN}.json").read_text()
    assert "hf_secret" not in "".join(capfd.readouterr())


def run_call(path):
    """Return the keywords of a stage's call of `run`, and the names of its arguments."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "run"]
    if any(isinstance(c.func, ast.Name) and c.func.id == "add_pipeline" for c in calls):
        shared = ROOT / "workflow/reproduction/models/pipeline.py"
        calls += [n for n in ast.walk(ast.parse(shared.read_text())) if isinstance(n, ast.Call)]
    figures = ROOT / "workflow/reproduction/figures"
    for name, file in {"command": "pareto", "figure_parser": "_common"}.items():
        if any(name in (getattr(c.func, "id", ""), getattr(c.func, "attr", "")) for c in calls):
            tree = ast.parse((figures / f"{file}.py").read_text())
            (made,) = [n for n in tree.body if getattr(n, "name", "") == name]
            calls += [n for n in ast.walk(made) if isinstance(n, ast.Call)]
    options = {c.args[0].value for c in calls if getattr(c.func, "attr", "") == "add_argument"}
    names = {option.lstrip("-").replace("-", "_") for option in options}
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords}, names


@pytest.mark.parametrize("path", STAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stage_says_what_it_reads_and_writes(path):
    keywords, names = run_call(path)
    stated = {name for values in keywords.values() for name in values}
    assert stated <= names
    if path.stem in ("fetch", "timings"):  # the one writes a manifest itself, the other nothing
        return
    files = {"kernel", "kernels", "plan", "plans", "records", "reference_records", "scores", "sets",
             "summary", "table", "tidy", "parquet", "markdown", "latex", "trajectory", "shards",
             "prompts", "model", "models", "out"}  # fmt: skip
    files -= {"prompts"} if path.parent.name == "figures" else set()  # their indices
    files -= {"shards"} if path.stem == "sample" else set()  # how many
    files |= {"features", "reference_features"} if path.stem in ("score", "gather") else set()
    assert stated == names & files and keywords["outputs"]


# ---- Damage


@pytest.mark.parametrize(
    ("path", "spoil", "message"),
    [
        (KERNEL, flipped, r"kernel\.safetensors: damaged.*delete kernel"),
        (KERNEL, truncated, r"kernel\.safetensors: damaged.*delete kernel"),
        (KERNEL, missing, r"kernel\.safetensors: no such file"),
        (f"{KERNEL}.json", flipped, r"kernel\.safetensors\.json: damaged.*delete kernel"),
        (f"{KERNEL}.json", missing, r"there is no kernel\.safetensors\.json.*delete kernel"),
    ],
)
def test_a_damaged_input_is_refused_and_named(project, monkeypatch, path, spoil, message):
    spoil(path)
    with pytest.raises(SystemExit, match=message):
        make_plan(monkeypatch)
    assert not Path("plans").exists()


def test_every_flipped_bit_of_a_manifest_is_noticed(project):
    path, text = Path(f"{KERNEL}.json"), Path(f"{KERNEL}.json").read_bytes()
    for place in range(len(text) - 1):
        contents = bytearray(text)
        contents[place] ^= 1 << place % 7
        path.write_bytes(contents)
        with pytest.raises(ManifestError, match="delete kernel"):
            manifest.check(KERNEL)


def test_a_manifest_of_another_result_is_refused(project, monkeypatch):
    Path(f"{KERNEL}.json").write_bytes(Path(f"{SHARD}.json").read_bytes())
    with pytest.raises(SystemExit, match=r"kernel\.safetensors: damaged"):
        make_plan(monkeypatch)


@pytest.mark.parametrize(
    ("path", "load"), [(PLAN, Plan.load), (KERNEL, Kernel.load)], ids=["plan", "kernel"]
)
def test_every_flipped_bit_of_a_plan_or_kernel_is_noticed_without_a_manifest(
    project, monkeypatch, path, load
):
    make_plan(monkeypatch)
    Path(f"{path}.json").unlink()
    load(path)
    whole = Path(path).read_bytes()
    for place in range(len(whole)):
        contents = bytearray(whole)
        contents[place] ^= 1 << place % 8
        Path(path).write_bytes(contents)
        with pytest.raises(ValueError, match="safetensors"):
            load(path)


def test_a_plan_without_the_hash_of_its_contents_is_refused(project, monkeypatch):
    make_plan(monkeypatch)
    arrays, metadata = read_arrays(PLAN, Plan.FORMAT, PlanError)
    write_arrays(PLAN, arrays, Plan.FORMAT, metadata)
    Plan.load(PLAN)
    from safetensors.numpy import save_file

    save_file(arrays, PLAN, metadata)
    with pytest.raises(PlanError, match=r"damaged.*make it again"):
        Plan.load(PLAN)


def test_a_crash_before_the_manifest_leaves_what_is_refused_until_the_job_is_run_again(
    project, monkeypatch
):
    def killed(path, shared):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            make_plan(patch)
    assert Path(PLAN).is_file()
    with pytest.raises(ManifestError, match="delete plans/3"):
        manifest.check(PLAN)
    make_plan(monkeypatch)
    manifest.check(PLAN)


def test_a_result_that_another_process_replaces_meanwhile_has_its_own_manifest(
    project, monkeypatch
):
    other = [b"another's plan"]

    def replaced_after(path):
        found = sha256(path)
        if path == PLAN and other:
            Path(path).write_bytes(other.pop())
        return found

    monkeypatch.setattr(record, "sha256", replaced_after)
    make_plan(monkeypatch)
    assert Path(PLAN).read_bytes() == b"another's plan"
    assert manifest.read(PLAN)["sha256"] == sha256(PLAN)


def test_a_stage_that_fails_leaves_the_former_result_and_its_manifest(project, monkeypatch):
    make_plan(monkeypatch)
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(Plan, "save", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
        make_plan(patch)
    manifest.check(PLAN)


# ---- Merge


def test_merged_records_carry_the_provenance_of_their_shards(project, monkeypatch):
    merge(monkeypatch, seed=2026, budgets=[3])
    about = manifest.check("records.csv")
    assert about["seeds"] == {"calibrate": 7, "sample": 2026}
    assert about["models"] == manifest.check(SHARD)["models"]
    assert about["inputs"] == {SHARD: sha256(SHARD)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 2027}, "000.csv: from another configuration: seed is 2026, and 2027 in"),
        ({"budgets": [3, 4]}, r"000.csv: .*budgets is \[3\], and \[3, 4\]"),
        ({"dtype": "float16"}, "000.csv: .*dtype is None"),
    ],
)
def test_a_shard_of_another_configuration_is_named(project, monkeypatch, settings, message):
    with pytest.raises(SystemExit, match=message):
        merge(monkeypatch, **settings)
    assert not Path("records.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "001.csv: .*seed is 5, and 2026 in shards/000.csv"),
        ({"sources": ["other.txt"]}, "001.csv: .*other.txt is '.*', and None"),
        ({"models": []}, "001.csv: .*models/m/manifest.json is None"),
    ],
)
def test_shards_of_two_configurations_are_named(project, change, message):
    Path("other.txt").write_text("a fish\n")
    same = {"seed": 2026, "sources": [PROMPTS], "models": [MODEL], "inputs": [KERNEL]}
    paths = [SHARD, "shards/001.csv"]
    Path(paths[1]).write_bytes(Path(SHARD).read_bytes())
    vouch(paths[1], "sample", budgets=[3], shard=1, **same)
    refuse_strangers({path: manifest.check(path) for path in paths}, {"seed": 2026})
    vouch(paths[1], "sample", budgets=[3], shard=1, **same | change)
    if "models" in change:  # or it would come with the kernel
        about = manifest.read(paths[1]) | {"models": {}}
    else:
        about = manifest.read(paths[1])
    with pytest.raises(MergeError, match=message):
        refuse_strangers({SHARD: manifest.check(SHARD), paths[1]: about}, {})


def test_shards_of_prompts_that_have_changed_since_are_named(project, monkeypatch):
    Path(PROMPTS).write_text("a cow\n")
    with pytest.raises(SystemExit, match=r"000\.csv: sampled with another prompts\.txt"):
        merge(monkeypatch)


@pytest.mark.parametrize("spoil", [flipped, truncated, missing])
@pytest.mark.parametrize("path", [SHARD, "images/x-03/1.png"])
def test_a_damaged_shard_or_image_is_named(project, monkeypatch, path, spoil):
    spoil(path)
    with pytest.raises(SystemExit, match=rf"{path}.*"):
        merge(monkeypatch)
    assert not Path("records.csv").exists()


# ---- Verify


def test_verify_finds_no_fault_in_what_is_whole(project, monkeypatch):
    make_plan(monkeypatch)
    merge(monkeypatch)
    report = verify(["."])
    assert report.faults == [] and report.absent == set()
    assert (report.results, len(report.images), report.models) == (4, 2, 1)


@pytest.mark.parametrize("spoil", [flipped, missing])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (KERNEL, r"^kernel\.safetensors: "),
        (PLAN, r"^plans/3\.safetensors: "),
        ("records.csv", r"^records\.csv: "),
        ("images/x-03/1.png", r"^images/x-03/1\.png: .* delete the folder images and run again"),
        ("models/m/weights.safetensors", r"^models/m/weights\.safetensors: "),
        (f"{KERNEL}.json", r"kernel\.safetensors"),
        (PROMPTS, r"made from another prompts\.txt"),
    ],
)
def test_verify_names_what_is_spoilt(project, monkeypatch, path, spoil, message):
    make_plan(monkeypatch)
    merge(monkeypatch)
    spoil(path)
    report = verify(["."])
    if (path, spoil) == (PROMPTS, missing):
        assert report.faults == [] and report.absent == {PROMPTS}
        return
    assert any(pd.Series(report.faults).str.contains(message)), report.faults
    assert all("delete" in fault or "run again" in fault for fault in report.faults)


@pytest.mark.parametrize("name", ["records.csv", "table.csv", "gallery.html", "pareto.pdf"])
def test_verify_misses_a_manifest_that_is_gone(project, monkeypatch, name):
    """Of a result that nothing else is made from, too, and whatever became of the result."""
    make_plan(monkeypatch)
    merge(monkeypatch)
    for path in ("table.csv", "gallery.html", "pareto.pdf"):
        Path(path).write_text("run,psnr\na,1\n")
        vouch(path)
    assert verify(["."]).faults == []
    Path(f"{name}.json").unlink()
    faults = verify(["."]).faults
    assert any(fault.startswith(f"{name}: ") and "delete" in fault for fault in faults), faults


@pytest.mark.parametrize("name", ["table.csv", "pareto.pdf"])
def test_what_a_killed_job_was_writing_is_no_result(project, monkeypatch, name):
    make_plan(monkeypatch)
    merge(monkeypatch)
    Path(name).write_text("run,psnr\na,1\n")
    vouch(name)
    with replacing(name) as part:
        part.write_text("run,ps")
        assert part.is_file()
        assert verify(["."]).faults == []


def test_verify_says_where_there_is_nothing(project):
    Path("empty").mkdir()
    (fault,) = verify(["empty"]).faults
    assert fault.startswith("empty: no result with a manifest")


@pytest.mark.slow
def test_the_command_exits_with_one_on_a_fault_and_needs_no_torch(project):
    command = [sys.executable, "-X", "importtime", "-m", "reproduction.commands.verify", "."]
    environment = os.environ | {"PYTHONPATH": pythonpath()}

    def run():
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run()
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "2 results, 2 images, 1 models" in done.stdout
    assert "reproduction.provenance.verify" in done.stderr and "| torch\n" not in done.stderr
    flipped(KERNEL)
    done = run()
    assert done.returncode == 1
    assert "kernel.safetensors: damaged" in done.stdout
