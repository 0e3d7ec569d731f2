"""Readers of files from others: whatever a file holds, they read it or raise the error declared.

`python tests/fuzz.py --minutes 10` goes on for as long as one likes, from a new seed each time.
"""

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import flow_timesteps, kernel_of, random_trajectories
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eigencache._files import read_arrays, write_arrays
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import KernelError
from eigencache.methods import METHODS
from eigencache.plan import PlanError
from reproduction.config import ConfigError
from reproduction.experiment import Experiment
from reproduction.models.check import FetchError, verified
from reproduction.provenance import facts, manifest, record
from reproduction.provenance.manifest import ManifestError
from reproduction.provenance.verify import verify
from reproduction.tables.tables import read_table
from reproduction.trajectory import Trajectory, TrajectoryError

ROOT = Path(__file__).parents[2]
STEPS = 6

shared = {
    "deadline": None, "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}  # fmt: skip
settings.register_profile("short", max_examples=60, derandomize=True, **shared)
settings.register_profile("long", max_examples=300, **shared)
settings.load_profile(os.environ.get("FUZZ", "short"))


# ---- What files may hold

numbers = (
    st.integers(-3, 70)
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**30), 2**63, math.nan, math.inf, 1e308, 5e-324])
)
words = st.text(max_size=12) | st.sampled_from(
    [
        *("", ".", "..", "../x", "/etc/hosts", "a/../../b", "a\n", "\0", "x" * 300, "nan", "1e999"),
        *("full", "output", "modules", "EigenCache", "FORA", "data"),
        "data/prompts/emoji-calibration.txt",
    ]
)
leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | numbers | st.none(), inner, max_size=4)
    ),
    max_leaves=8,
)
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
# JSON as text: valid, cut, or nested deeper than any reader goes.
json_texts = json_values.map(json.dumps) | st.text(max_size=20) | st.just("[" * 2000)
sources = st.dictionaries(st.sampled_from(["predicted psnr", "x"]), leaves).map(json.dumps)


def spots(tree):
    """Yield every (container, key) of nested lists and mappings."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from spots(tree[key])


@st.composite
def changed(draw, tree, values=values):
    """A copy of a tree in which some entries are changed, deleted or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(spots(tree))
        assume(places)
        container, key = draw(st.sampled_from(places))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[draw(words)] = draw(values)
        else:
            container[key] = draw(values)
    return tree


@st.composite
def altered(draw, contents):
    """Bytes of a file, of which some are replaced, put in or taken out, or which is cut."""
    contents = bytearray(contents)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(contents)))
        length = draw(st.integers(0, 8))
        contents[start : start + length] = draw(st.binary(max_size=8))
    return bytes(contents[: draw(st.none() | st.integers(0, len(contents)))])


@st.composite
def arrays(draw):
    """An array of any type that safetensors holds, any small shape, any values."""
    dtype = draw(
        st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
    )
    shape = draw(st.lists(st.sampled_from([0, 1, 2, STEPS, STEPS + 1]), max_size=4))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pattern = draw(st.binary(min_size=1, max_size=16))
    return np.resize(np.frombuffer(pattern, np.uint8), size).view(dtype).reshape(shape)


@st.composite
def contents(draw, saved, texts):
    """Arrays and metadata like those of a saved file, with some changed, deleted or added."""
    found, metadata = dict(saved[0]), dict(saved[1])
    for name in draw(st.lists(st.sampled_from([*found, "sums/x", "x"]), max_size=2)):
        found.pop(name, None)
        if draw(st.integers(0, 3)):
            found[name] = draw(arrays())
    for name in draw(st.lists(st.sampled_from([*metadata, "x"]), max_size=2)):
        metadata.pop(name, None)
        if draw(st.integers(0, 3)):
            metadata[name] = draw(texts)
    return found, metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# ---- Plans, kernels, trajectories

TIMESTEPS = flow_timesteps(STEPS)
KERNEL = kernel_of(random_trajectories(TIMESTEPS, runs=3, size=4), TIMESTEPS, ("a", "b"))
PLANS = [METHODS["EigenCache-optimal"].plan(3, TIMESTEPS, KERNEL.shared()) for _ in range(1)]
PLANS += [METHODS["ToCa"].plan(3, TIMESTEPS, KERNEL)]
TRAJECTORY = Trajectory(
    {"a": np.ones((STEPS, 3), np.float32)},
    TIMESTEPS,
    np.append(TIMESTEPS, 0),
    "blocks",
    "p",
    3,
    "m",
)


def plan_is_usable(plan):
    assert len(plan.full_steps) == plan.full.sum() >= 1
    assert isinstance(plan.predicted_psnr, float)
    plan.check_timesteps(plan.timesteps)


def kernel_is_usable(kernel):
    assert np.isfinite(kernel.matrix()).all()
    assert len(kernel.timesteps) == len(kernel.matrix())
    kernel + kernel


def trajectory_is_usable(trajectory):
    assert all(
        len(feature) == len(trajectory.timesteps) for feature in trajectory.features.values()
    )


KINDS = [
    (PLANS[0], PLANS[0].FORMAT, PlanError, plan_is_usable),
    (PLANS[1], PLANS[1].FORMAT, PlanError, plan_is_usable),
    (KERNEL, KERNEL.FORMAT, KernelError, kernel_is_usable),
    (TRAJECTORY, TRAJECTORY.FORMAT, TrajectoryError, trajectory_is_usable),
]
EVERY_KIND = pytest.mark.parametrize(
    ("thing", "format", "error", "usable"), KINDS, ids=["plan", "rule", "kernel", "trajectory"]
)


def load(path, thing, error, usable):
    """Read a file, or see that it is refused by the declared error, which names it."""
    try:
        found = type(thing).load(path)
    except error as refusal:
        assert str(path) in str(refusal)
        return None
    usable(found)
    found.save(path)
    usable(type(thing).load(path))
    return found


@EVERY_KIND
@given(data=st.data())
def test_altered_bytes(folder, thing, format, error, usable, data):
    path = folder / "thing.safetensors"
    thing.save(path)
    whole = path.read_bytes()
    spoilt = data.draw(altered(whole))
    path.write_bytes(spoilt)
    assert load(path, thing, error, usable) is None or spoilt == whole


@EVERY_KIND
@given(data=st.data())
def test_wild_headers(folder, thing, format, error, usable, data):
    path = folder / "header.safetensors"
    thing.save(path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = data.draw(changed(json.loads(whole[8 : 8 + size]), json_values))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])
    load(path, thing, error, usable)


@EVERY_KIND
@given(data=st.data())
def test_wild_contents(folder, thing, format, error, usable, data):
    path = folder / "contents.safetensors"
    thing.save(path)
    found, metadata = data.draw(
        contents(read_arrays(path, format, error), json_texts | sources | words | numbers.map(str))
    )
    write_arrays(path, found, format, metadata)
    load(path, thing, error, usable)


@given(
    texts=st.dictionaries(st.text(max_size=9), st.text(max_size=30), max_size=5),
    found=st.dictionaries(st.text(max_size=9), arrays(), max_size=3),
)
def test_what_is_written_is_read(folder, texts, found):
    assume("__metadata__" not in found and not {"format", "sha256"} & set(texts))
    path = folder / "any.safetensors"
    write_arrays(path, found, "any", texts)
    written = path.read_bytes()
    arrays, metadata = read_arrays(path, "any", ValueError)
    assert metadata == texts | {"format": "any"} and arrays.keys() == found.keys()
    for name, array in found.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes()
    write_arrays(path, found, "any", texts)
    assert path.read_bytes() == written


# ---- Configurations

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text()) | {
    "methods": {
        "a.1": {"method": "EigenCache", "held_out": 4, "anchors": 3},
        "b": {"method": "EigenCache-design", "tap": "hidden", "rank": 8, "phases": [25]},
        "c": {"method": "TaylorSeer", "order": 1},
        "d": {"method": "fewer-steps"},
    },
    "ablation": {"rank": {"base": "a.1", "values": {"a.1": 50, "b": 8}}},
}


@given(data=st.data())
def test_wild_configurations(data):
    config = data.draw(changed(CONFIG) | st.dictionaries(st.sampled_from([*CONFIG]), values))
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        try:
            experiment = Experiment(config)
        except (ConfigError, OSError):
            return
        except ValueError as error:
            assert "prompt" in str(error), error  # what is wrong with a prompt file
            return
    assert Path.cwd() == before
    files = [*experiment.tables, *(f"kernels/{name}" for name in experiment.kernels)]
    for label in experiment.labels:
        files += [f"records/{label}.csv", *experiment.plans(label)]
        files += [f"shards/{part}.csv" for part in experiment.parts(label)]
        json.dumps(experiment.sampling(experiment.group(label)))
    for name in ("model", "clip"):
        files.append(f"models/{getattr(experiment.config, name)}/manifest.json")
    files += [experiment.config.prompts, experiment.config.calibration.prompts]
    for file in files:
        assert not Path(file).is_absolute() and ".." not in Path(file).parts, file


def test_a_configuration_that_holds_itself_is_refused():
    config = yaml.safe_load("experiment: &a {b: *a}")
    with pytest.raises(ConfigError):
        Experiment(config)


# ---- Prompts, tables, manifests


@given(st.binary(max_size=60) | altered("a cat\na dog, süß\n".encode()))
def test_wild_prompts(folder, contents):
    path = folder / "prompts.txt"
    path.write_bytes(contents)
    try:
        prompts = read_prompts(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert prompts and all(prompt.strip() == prompt for prompt in prompts)
        assert len(set(prompts)) == len(prompts)


@given(st.binary(max_size=60) | altered(b'run,psnr\na-03,"1.5"\nb-04,inf\n'))
def test_wild_tables(folder, contents):
    path = folder / "table.csv"
    path.write_bytes(contents)
    try:
        read_table(path)
    except ValueError as error:
        assert str(path) in str(error)


RESULT = b"run,image,sha256\nx,a.png,0\n"
HASH = "0" * 64
ABOUT = {
    "format": manifest.FORMAT, "sha256": HASH, "bytes": len(RESULT), "stage": "s", "code": "c",
    "config": HASH, "settings": {"seed": 3}, "inputs": {"a": HASH}, "sources": {"b": HASH},
    "models": {"m/manifest.json": {"sha256": HASH, "revision": None}}, "seeds": {"s": 3},
    "devices": ["d"], "package": facts.package(), "libraries": {"python": "3"},
}  # fmt: skip


@given(st.binary(max_size=60) | altered(b"run,image,sha256,shard\nx,a.png,00,b.csv\n"))
def test_wild_records_with_a_right_manifest(folder, contents):
    place = folder / "records"
    place.mkdir(exist_ok=True)
    path = place / "records.csv"
    path.write_bytes(contents)
    about = {name: value for name, value in ABOUT.items() if name not in ("sha256", "bytes")}
    record.write(path, about)
    assert verify([str(place)]).results == 1


@pytest.mark.parametrize("signed", [True, False])
@given(data=st.data())
def test_wild_manifests(folder, signed, data):
    about = data.draw(changed(ABOUT, json_values))
    if signed:
        about["manifest"] = manifest.hash_of(about)
    text = json.dumps(about, indent=1)
    if not signed:
        text = data.draw(
            altered(text.encode()).map(lambda b: b.decode(errors="replace")) | json_texts
        )
    spoil(folder / "manifests", text)


def spoil(place, text):
    """Give a result this manifest, and see that readers refuse it and `verify` goes on."""
    place.mkdir(exist_ok=True)
    result = place / "result.csv"
    result.write_bytes(RESULT)
    manifest.manifest_path(result).write_text(text, encoding="utf-8")
    try:
        about = manifest.read(result)
    except ManifestError as error:
        assert str(result) in str(error)
    else:
        manifest.changed(about)
    assert verify([str(place)]).faults


@given(
    changed({"a.txt": {"bytes": 1, "sha256": HASH, "source": "x"}}, json_values).map(json.dumps)
    | json_texts
)
def test_wild_model_manifests(folder, text):
    (folder / "a.txt").write_text("a")
    path = folder / "manifest.json"
    path.write_text(text, encoding="utf-8")
    try:
        assert verified(path) == folder
    except FetchError as error:
        assert str(path) in str(error)
    try:
        record._model(str(path))
    except ManifestError as error:
        assert str(path) in str(error)
