"""Plans on a model hub, against one on loopback: fetched, pushed, and their cards."""

import base64
import json
import math
import re
import runpy
import sys
from dataclasses import replace

import loopback
import numpy as np
import pytest
from helpers import arguments_of, flow_timesteps, kernel_of, random_trajectories, tiny_pipeline
from huggingface_hub import constants
from loopback import COMMIT, REPOSITORY, TOKEN, serving

import eigencache
from eigencache import cli
from eigencache.methods import METHODS
from eigencache.sharing import card, is_hub_id, load_kernel

LATER = "b" * 40


class Handler(loopback.Handler):
    """It takes commits too: the newest is LATER."""

    def do_POST(self):
        state, path = self.server.hub, self.path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            said = {"errors": [], "warnings": []}
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401)
        elif path == "/api/repos/create":
            state.made.append(json.loads(body))
            said = {"url": f"{constants.ENDPOINT}/{REPOSITORY}", "id": REPOSITORY}
        elif path == f"/api/models/{REPOSITORY}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            said = {"files": [{"path": name} | regular for name in names]}
        else:
            assert path == f"/api/models/{REPOSITORY}/commit/main"
            lines = [json.loads(line) for line in body.splitlines()]
            for line in (line["value"] for line in lines if line["key"] == "file"):
                state.files[line["path"]] = base64.b64decode(line["content"])
            state.commits |= {"main": LATER, LATER: LATER}
            said = {"commitUrl": f"{constants.ENDPOINT}/{REPOSITORY}", "commitOid": LATER}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    state = loopback.Hub()
    state.files, state.made = {}, []
    with serving(state, monkeypatch, Handler):
        yield state


@pytest.fixture(scope="module")
def kernel():
    timesteps = flow_timesteps(12)
    made = kernel_of(random_trajectories(timesteps), timesteps, source={"dtype": "float32"})
    stated = {"num_inference_steps": 12, "height": 16, "width": 16}
    return replace(made, arguments=stated, pipeline="FluxPipeline", scheduler="DDIMScheduler")


@pytest.fixture(scope="module")
def plan(kernel):
    made = METHODS["EigenCache-design"].plan(4, kernel.timesteps, kernel)
    return replace(made, predicted_psnr=48.76, scheduler="FlowMatchEulerDiscreteScheduler")


@pytest.fixture
def held(server, plan, tmp_path):
    """A hub that has the plan."""
    plan.save(tmp_path / "held.safetensors")
    server.files["plan.safetensors"] = (tmp_path / "held.safetensors").read_bytes()
    return server


def run(*line):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eigencache", *map(str, line)])
        cli.main()


def test_a_plan_is_fetched_from_the_hub(held, plan):
    assert eigencache.load_plan(REPOSITORY).digest == plan.digest
    asked = len(held.requests)
    held.commits = {COMMIT: COMMIT}  # there is no main branch any more
    for found in (
        eigencache.load_plan(REPOSITORY, revision=COMMIT),
        eigencache.load_plan(f"{REPOSITORY}@{COMMIT}"),
    ):
        assert found.digest == plan.digest
    assert len(held.requests) == asked  # a commit that was fetched is not asked for again


def test_what_was_fetched_serves_offline(held, plan, monkeypatch):
    eigencache.load_plan(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert eigencache.load_plan(REPOSITORY).digest == plan.digest


def test_a_file_goes_before_the_hub(held, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    other = replace(plan, method="mine")
    other.save(tmp_path / REPOSITORY)
    assert eigencache.load_plan(REPOSITORY).digest == other.digest
    with pytest.raises(ValueError, match="it is a file; only a repository has revisions"):
        eigencache.load_plan(REPOSITORY, revision="main")


@pytest.mark.parametrize(
    "name",
    ["none", "./none", "/no/where", "a/b/c", "plans/plan.safetensors", "../a/b", "a/", "a b/c"],
)
def test_what_can_be_no_repository_is_not_asked_for(server, name):
    with pytest.raises(FileNotFoundError, match="no such file, nor can it be a repository"):
        eigencache.load_plan(name)
    assert not is_hub_id(name) and not server.requests


def test_errors_of_the_hub_say_what_is_wrong(held, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"a/b: no such file, and no such repository on h"):
        eigencache.load_plan("a/b")
    with pytest.raises(FileNotFoundError, match="has no such revision"):
        eigencache.load_plan(REPOSITORY, revision="c" * 40)
    with pytest.raises(FileNotFoundError, match=f"{REPOSITORY}: the repository has no kernel"):
        load_kernel(REPOSITORY)
    held.gated = True
    with pytest.raises(FileNotFoundError, match="that you may use; `hf auth login`"):
        eigencache.load_plan(REPOSITORY)
    held.gated, held.files["plan.safetensors"] = False, b"<html>"
    with pytest.raises(eigencache.PlanError, match=f"^{REPOSITORY}: .*not safetensors"):
        eigencache.load_plan(REPOSITORY)


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_a_hub_it_says_so(held, monkeypatch, how):
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # it tries again for 20 seconds
    with pytest.raises(OSError, match=f"{REPOSITORY}: no such file, and the hub .* cannot be re"):
        eigencache.load_plan(REPOSITORY)


def test_a_push_without_a_hub_says_so(held, plan, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=rf"{REPOSITORY}: the hub http://127.0.0.1:9 cannot be re"):
        plan.push_to_hub(REPOSITORY)


def test_a_kernel_that_is_no_plan_is_named(server, kernel, tmp_path):
    kernel.save(tmp_path / "kernel.safetensors")
    server.files["plan.safetensors"] = (tmp_path / "kernel.safetensors").read_bytes()
    with pytest.raises(eigencache.PlanError, match=f"^{REPOSITORY}: .*eigencache-kernel-2"):
        eigencache.load_plan(REPOSITORY)


def test_what_is_pushed_comes_back(server, plan, kernel, monkeypatch):
    with pytest.raises(OSError, match=f"{REPOSITORY}: the hub .* refuses"):
        plan.push_to_hub(REPOSITORY)
    assert not server.files
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert plan.push_to_hub(REPOSITORY, kernel=kernel, model="a/model", private=True) == LATER
    made = server.made[-1]
    assert made["name"] == "tiny-flux" and made["organization"] == "someone", made
    assert made["visibility"] == "private"
    assert sorted(server.files) == ["README.md", "kernel.safetensors", "plan.safetensors"]
    assert eigencache.load_plan(REPOSITORY, revision=LATER).digest == plan.digest
    assert np.array_equal(load_kernel(REPOSITORY).timesteps, kernel.timesteps)
    assert server.files["README.md"].decode() == card(plan, REPOSITORY, "a/model")
    with pytest.raises(ValueError, match="not the id of a repository"):
        plan.push_to_hub("plan")


def test_the_commands_push_show_and_refuse(server, plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    plan.save(tmp_path / "plan.safetensors")
    run("push", "--plan", tmp_path / "plan.safetensors", "--repo", REPOSITORY)
    assert capsys.readouterr().out == f"{REPOSITORY}@{LATER}\n"
    run("show", f"{REPOSITORY}@{LATER}")
    assert plan.digest in capsys.readouterr().out
    with pytest.raises(SystemExit, match="FileNotFoundError: a/b: no such file"):
        run("show", "a/b")


def scores(path, *rows):
    path.write_text("run,file,psnr\n" + "".join(f"{name},x.png,{psnr}\n" for name, psnr in rows))
    return path


def test_a_card_says_what_the_plan_is(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan.save("plan.safetensors")
    scores(tmp_path / "scores.csv", ("cached", 47), ("cached", 50))
    run("card", "--plan", "plan.safetensors", "--model", "a/model", "--scores", "scores.csv")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nbase_model: a/model\nlibrary_name: eigencache\ntags:\n")
    for name, value in {
        "model": "a/model", "pipeline": "FluxPipeline", "steps": "12", "tap": "output",
        "scheduler": "FlowMatchEulerDiscreteScheduler", "method": "EigenCache-design",
        "arguments": "height=16, num_inference_steps=12, width=16", "dtype": "float32",
        "predicted PSNR": "48.8 dB", "measured PSNR": "48.5 dB, a mean over 2 images",
        "hash": plan.digest,
    }.items():  # fmt: skip
        assert f"| {name} | {value} |" in text, name
    assert f"4 full steps: {', '.join(map(str, plan.full_steps))} |" in text
    assert plan.source["predictor"] in text and f"eigencache {eigencache.__version__}" in text
    bare = card(replace(plan, predicted_psnr=math.nan, arguments={}, pipeline=None))
    assert "PSNR |" not in bare and "num_inference_steps=12" in bare and "MODEL" in bare
    for rows in ([], [("a", 1), ("b", 2)]):
        with pytest.raises(ValueError, match="not the scores of one set of images"):
            card(plan, scores=scores(tmp_path / "scores.csv", *rows))


def test_the_example_of_a_card_runs(tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    timesteps = []
    arguments = {"height": 16, "width": 16, "num_inference_steps": 6}
    plan = eigencache.calibrate(pipe, [arguments_of(0)], 3, method="FORA", **arguments)
    plan.save(tmp_path / "plan.safetensors")
    text = card(plan, str(tmp_path / "plan.safetensors"), "model")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace('prompt="..."', "**prompt")
    monkeypatch.setattr(type(pipe), "from_pretrained", lambda name: timesteps.append(name) or pipe)
    (tmp_path / "example.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "example.py"), {"prompt": arguments_of(1)})
    assert timesteps == ["model"] and names["made"].images[0].size == (16, 16)
