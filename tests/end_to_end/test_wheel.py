"""The wheel stands alone: it is built, unpacked outside the clone, and used there."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

pytestmark = pytest.mark.slow

# What only metrics and the workflow need; nothing else in the wheel may import it.
DATA = ("py.typed", "planned_scheduler.py.txt", "card.md.txt", "built_in.safetensors")
FOREIGN = "matplotlib pandas pyarrow pydantic scipy skimage snakemake timm torchmetrics open_clip"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel is installed beside nothing; the clone is not on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files behind
    shutil.copytree(ROOT / "eigencache", source / "eigencache")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("eigencache-*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, folder / "site", wheel], check=True)
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python where the wheel is the only eigencache, and nothing of the workflow is found."""
    (folder / "site/sitecustomize.py").write_text(BLOCK)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environment |= {"PYTHONPATH": str(folder / "site")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=work, text=True, capture_output=True,
        env=os.environ | environment,
    )  # fmt: skip


# An editable install of the clone must not step in, and what is not in the core must be missing.
BLOCK = f"""
import os
import sys
from importlib.machinery import PathFinder


class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in {FOREIGN.split()!r} and "WITH_METRICS" not in os.environ:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[:] = [
    Core if finder is PathFinder else finder
    for finder in sys.meta_path
    if "editable" not in getattr(finder, "__module__", "")
]
"""

NAMES = """
import importlib, pathlib, pkgutil
import eigencache

assert "site" in eigencache.__file__, eigencache.__file__
for name in eigencache.__all__:
    assert getattr(eigencache, name) is not None
for part in ("predictors", "schedules", "calibration"):
    module = importlib.import_module(f"eigencache.{part}")
    for name in module.__all__:
        getattr(module, name)
print(eigencache.__version__)
"""

TINY = """
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline
import eigencache

torch.manual_seed(0)
network = SD3Transformer2DModel(
    sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8,
    num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
    pooled_projection_dim=16, out_channels=4,
)
vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(4, 4), latent_channels=4, norm_num_groups=2, shift_factor=0.0,
    scaling_factor=1.0,
)
pipe = StableDiffusion3Pipeline(
    network.eval(), FlowMatchEulerDiscreteScheduler(), vae.eval(), *[None] * 6
)
pipe.set_progress_bar_config(disable=True)


def call(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(1, 4, 16, generator=draw),
        "pooled_prompt_embeds": torch.randn(1, 16, generator=draw),
    }


shared = {"height": 16, "width": 16, "num_inference_steps": 8, "guidance_scale": 1.0}
for method in ("EigenCache-design", "EigenCache", "TaylorSeer"):
    plan = eigencache.calibrate(
        pipe, [call(seed) for seed in range(4)], full_steps=4, method=method, **shared
    )
    plan.save("plan.safetensors")
    plan = eigencache.load_plan("plan.safetensors")
    with eigencache.cached(pipe, plan) as stats:
        image = pipe(**call(9), **shared).images[0]
    assert image.size == (16, 16), image.size
    assert stats.full == 4 and stats.skipped == 4, stats
    print(method, image.size)

with eigencache.cached(pipe, full_steps=3) as stats:
    image = pipe(**call(9), **shared).images[0]
assert stats.full == 3 and stats.skipped == 5, stats
"""


def test_the_wheel_has_the_library_and_nothing_else(installed):
    (wheel,) = installed.glob("eigencache-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {Path(name).parts[0].partition("-")[0] for name in names} == {"eigencache"}
    assert {f"eigencache/{name}" for name in DATA} <= {*names}
    assert not [n for n in names if n.endswith((".mplstyle", ".html", ".js", ".smk", ".yaml"))]


def test_the_sdist_has_every_file_of_the_project(tmp_path):
    pytest.importorskip("build", reason="needs the package build")
    if not (ROOT / ".git").exists():
        pytest.skip("only git says which files there are")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tracked = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, tmp_path / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("eigencache-*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - held == set()
    assert {name for name in held - tracked if name.endswith((".py", ".md", ".yaml"))} == set()


def test_every_public_name_is_imported_and_a_tiny_pipeline_calibrated_and_sampled(installed):
    done = run(installed, "-c", NAMES + TINY)
    assert done.returncode == 0, done.stderr
    version, *made = done.stdout.splitlines()
    assert version == "0.1.0" and len(made) == 3 and all("(16, 16)" in line for line in made)


@pytest.mark.parametrize("command", ["calibrate", "plan", "sample", "score", "export", "card"])
def test_every_command_explains_itself_without_the_workflow(installed, command):
    done = run(installed, "-m", "eigencache.cli", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"eigencache {command}" in done.stdout


def test_the_version_is_printed(installed):
    done = run(installed, "-m", "eigencache.cli", "--version")
    assert (done.returncode, done.stdout) == (0, "eigencache 0.1.0\n")


def test_scoring_without_the_extra_says_what_to_install(installed):
    work = installed / "work"
    work.mkdir(exist_ok=True)
    (work / "prompts.txt").write_text("a cat\n")
    (work / "full").mkdir(exist_ok=True)
    arguments = ["--reference", "full", "--images", "x=full", "--prompts", "prompts.txt"]
    done = run(installed, "-m", "eigencache.cli", "score", *arguments, "--out", "scores.csv")
    assert done.returncode == 1 and "pip install 'eigencache[metrics]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_extra_scores_folders(installed):
    work = installed / "work"
    for name, red in (("one", 9), ("two", 19)):
        (work / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (red, 9, 9)).save(work / name / "a.png")
    (work / "prompt.txt").write_text("a cat\n")
    arguments = ["score", "--reference", "one", "--images", "two=two", "--prompts", "prompt.txt"]
    done = run(
        installed, "-m", "eigencache.cli", *arguments, "--metrics", "psnr", "ssim", "--out",
        "scores.csv", WITH_METRICS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / "scores.csv").read_text().startswith("run,prompt_index,file,psnr,ssim\ntwo,0,a")
