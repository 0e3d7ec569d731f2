"""Files from others run no code here: weights are safetensors, or loaded as weights alone."""

import ast
import shutil
from pathlib import Path

import pytest

from eigencache.metrics._clip_score import ClipScore

ROOT = Path(__file__).parents[2]
FOLDERS = ("eigencache", "benchmarks", "workflow", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# They unpickle whatever a file holds.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# These do so unless a keyword has this value.
KEYWORDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
UNSAFE = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "eval", "exec"}
# Loading by folder, which takes pickled weights where it finds no others.
LOADERS = {
    f"{name}.from_pretrained"
    for name in ("DiffusionPipeline", "FluxPipeline", "AutoencoderKL", "FluxTransformer2DModel")
}


def faults(tree):
    """Yield the imports and calls by which a module could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            stated = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if called in UNSAFE:
                yield called
            elif called in KEYWORDS:
                keyword, value = KEYWORDS[called]
                if stated.get(keyword) is not value:
                    yield f"{called} without {keyword}={value}"
            elif called in LOADERS and stated.get("use_safetensors") is not True:
                yield f"{called} without use_safetensors=True"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "yaml.load(text)",
        "torch.load(path, weights_only=False)", "np.load(path)", "eval(text)",
        "FluxPipeline.from_pretrained(path)", "pd.read_pickle(path)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert list(faults(ast.parse(line)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_unpickles(path):
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")))) == []


class Trap:
    """What, unpickled, leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def trapped(folder, name, sprung):
    """Put pickled weights that spring a trap in the place of a model's safetensors."""
    import torch

    (folder / name).with_suffix(".safetensors").unlink()
    torch.save({"weight": Trap(sprung)}, folder / name)


@pytest.mark.parametrize(
    "name", ["transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"]
)
def test_pickled_weights_of_a_pipeline_are_not_loaded(tmp_path, name):
    from eigencache.calibration.sampler import load_pipeline

    folder = shutil.copytree(ROOT / "data/emoji-flux", tmp_path / "model")
    if name.startswith("text"):
        (folder / "text_encoder/model.safetensors").rename(
            folder / "text_encoder/pytorch_model.safetensors"
        )
    trapped(folder, name, tmp_path / "sprung")
    with pytest.raises(OSError):
        load_pipeline(folder, "float32", "cpu")
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_of_a_clip_are_not_run(tmp_path):
    folder = shutil.copytree(ROOT / "data/emoji-clip", tmp_path / "model")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.safetensors")
    trapped(folder, "open_clip_pytorch_model.bin", tmp_path / "sprung")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        ClipScore(folder)
    assert not (tmp_path / "sprung").exists()
