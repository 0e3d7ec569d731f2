"""The configuration: its defaults, and a message for every mistake."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from eigencache.methods import METHODS
from reproduction.commands import schema
from reproduction.config import ConfigError
from reproduction.experiment import Experiment, retyped

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def experiment(config):
    return Experiment(config)


def test_default_config_is_valid_and_full_comes_first(config):
    ours = experiment(config)
    assert ours.labels == ["full", *config["methods"]]
    assert set(ours.planned) == set(config["methods"]) - {"fewer-steps"}


@pytest.mark.parametrize(
    "path", [ROOT / "config.yaml", *sorted((ROOT / "workflow/config").glob("*.yaml"))],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_schedules_without_a_kernel_give_every_budget_that_is_shipped(path, monkeypatch):
    """A fixed interval gives some numbers of full steps only, as the job that plans would find."""
    monkeypatch.chdir(ROOT)
    ours = experiment(yaml.safe_load(path.read_text()))
    steps = np.arange(ours.config.arguments.num_inference_steps)
    for label in set(ours.planned) - set(ours.bounded):
        method, options = METHODS[ours.spec(label)["method"]], ours.config.methods[label].options
        for budget in [] if method.schedule.kernel else ours.config.budgets:
            parts = method.parts(budget, **options)
            assert parts.schedule.full(steps, parts.predictor).sum() == budget, label


def test_every_evaluation_prompt_is_left_out_of_calibration(config):
    ours = experiment(config)
    assert len(ours.prompts) >= 12
    assert not set(ours.prompts) & set(ours.calibration_prompts)


@pytest.fixture
def own(config, tmp_path, monkeypatch):
    """Return a function that reads the configuration with other prompts, `[file, lines]` each."""
    monkeypatch.chdir(tmp_path)
    wanted = {"c.txt": [f"{i} dogs" for i in range(32)]}

    def read(evaluation):
        for name, lines in (wanted | {"e.jsonl": map(json.dumps, evaluation)}).items():
            Path(name).write_text("".join(f"{line}\n" for line in lines))
        config["prompts"], config["calibration"]["prompts"] = "e.jsonl", "c.txt"
        config["num_prompts"] = 12
        return experiment(config)

    return read


def test_a_leak_is_found_whatever_else_a_call_states(own):
    cats = [{"prompt": f"{i} cats", "negative_prompt": "bad"} for i in range(12)]
    assert len(own(cats).prompts) == 12
    with pytest.raises(ValueError, match=r"1 calibration prompts are evaluation .*'3 dogs'"):
        own([*cats[:-1], {"prompt": "3 dogs", "negative_prompt": "bad"}])


@pytest.mark.parametrize("name", ["num_inference_steps", "timesteps", "sigmas"])
def test_a_prompt_may_not_have_steps_of_its_own(own, name):
    cats = [{"prompt": f"{i} cats"} for i in range(12)]
    with pytest.raises(ValueError, match=rf"e\.jsonl, prompt 2: {name} is the same for all"):
        own([cats[0], cats[1] | {name: 3}, *cats[2:]])


def test_defaults_are_filled_in(config):
    for key in ("num_prompts", "shards", "threads", "timed_prompts"):
        del config[key]
    assert experiment(config).config.shards == 1


def test_baseline_is_the_first_of_fewer_steps_unless_another_is_named(config):
    assert experiment(config).baseline == "fewer-steps"
    config["methods"] = {"a": {"method": "FORA"}, "b": {"method": "fewer-steps"},
                         "c": {"method": "fewer-steps"}}  # fmt: skip
    assert experiment(config).baseline == "b"
    config["baseline"] = "a"
    assert experiment(config).baseline == "a"
    config["methods"] = {"a": {"method": "FORA"}}
    assert experiment(config | {"baseline": None}).baseline is None


def test_tables_are_among_the_targets(config):
    names = ["scores.csv", "scores.parquet", "summary.csv", "table.csv", "table.md", "table.tex"]
    wanted = {f"results/emoji-flux/{name}" for name in names}
    assert wanted == set(experiment(config).tables)


def test_config_given_is_not_changed(config):
    before = copy.deepcopy(config)
    experiment(config)
    assert config == before


def test_kernel_is_calibrated_at_the_tap_that_a_method_uses(config):
    config["methods"] = {
        "a": {"method": "EigenCache-published"},
        "b": {"method": "EigenCache-published", "tap": "output"},
        "c": {"method": "TaylorSeer"},
    }
    ours = experiment(config)
    assert ours.kernel("a") == "modules.token-mean.cosine"
    assert ours.kernel("b") == "output.token-mean.cosine"
    assert ours.kernel("c") == "output.full.second-moment"
    assert set(ours.kernels) == {ours.kernel(label) for label in "abc"}


def test_no_kernel_is_calibrated_for_a_closed_loop(config):
    config["methods"] = {
        "a": {"method": "EigenCache", "features": "stride-8"},
        "b": {"method": "EigenCache", "psnr": 40, "runs": 2},
        "c": {"method": "EigenCache-design", "psnr": 40, "runs": 3},
    }
    outputs = "output.full.second-moment"
    assert experiment(config).kernels == [outputs, f"{outputs}.3"]


def test_any_run_of_a_known_budget_can_be_a_reference(config):
    config["methods"]["EigenCache-50dB"] = {"method": "EigenCache", "psnr": 50}
    config["references"] = ["TaylorSeer-1-09", "full", "TaylorSeer-1-12"]
    ours = experiment(config)
    assert ours.reference_labels == ["TaylorSeer-1", "full"]
    assert len(ours.runs) == 1 + len(ours.config.budgets) * (len(config["methods"]) - 1)
    assert not any("50dB" in run for run in ours.runs)


def test_any_method_with_plans_can_be_asked_for_quality(config):
    """Such plans are tried on the network, so their jobs are those that lease a GPU."""
    names = ("EigenCache", "EigenCache-design", "FORA")
    config["methods"] = {n: {"method": n} for n in names} | {
        f"{n}-40dB": {"method": n, "psnr": 40} for n in names
    }
    ours = experiment(config)
    bounded = [f"{n}-40dB" for n in names]
    assert ours.bounded == bounded and ours.refined == ["EigenCache", *bounded]
    assert [k for k in ours.planned if ours.is_closed(k)] == ["EigenCache", "EigenCache-40dB"]
    assert ours.plans("FORA-40dB") == ["results/emoji-flux/plans/FORA-40dB/psnr.safetensors"]
    for label in bounded:
        assert ours.groups[label] == [label] and ours.budgets(label) == []


def test_a_quality_needs_prompts_to_judge_by(config):
    config["methods"] = {"d": {"method": "EigenCache-design", "psnr": 40}}
    config["calibration"]["num_prompts"] = 1
    with pytest.raises(ConfigError, match=r"methods\.d: psnr: state two prompts"):
        experiment(config)
    config["methods"] = {"d": {"method": "FORA", "psnr": 40}}  # a formula is not fitted
    experiment(config)


def test_a_metric_names_the_models_it_needs(config):
    config["metrics"] = ["psnr", "clip_score", "image_reward"]
    assert experiment(config).metrics == {
        "psnr": [], "clip_score": ["emoji-clip"],
        "image_reward": ["ImageReward", "bert-base-uncased"],
    }  # fmt: skip


def change(config, path, value):
    *parents, last = path.split("/")
    for key in parents:
        config = config[key]
    config[last] = value


MISTAKES = [
    (
        "baseline",
        "TaylorSeer-3",
        r"baseline: 'TaylorSeer-3' is not one of \['fewer.*mean 'TaylorSeer-1'\?",
    ),
    ("baseline", "full", "baseline: 'full' is not one of"),
    (
        "figures/sample",
        {},
        r"figures: unknown key 'sample'; there are .* mean 'samples'\?",
    ),
    (
        "arguments/num_inference_steps",
        "fifty",
        "arguments.num_inference_steps: 'fifty' is not allowed",
    ),
    ("dtype", "int8", r"dtype: 'int8' is not allowed.*bfloat16"),
    ("shards", 0, "shards: 0 is not allowed.*greater than or equal to 1"),
    ("budgets", [7, 70], "budgets.1: 70 exceeds the 50 of arguments.num_inference_steps"),
    (
        "methods/FORA/method",
        "Fora",
        r"methods.FORA.method: 'Fora' is not allowed.*mean 'FORA'\?",
    ),
    ("methods/FORA/order", 2, "methods.FORA.order: FORA has no such option"),
    (
        "methods/FORA/tap",
        "attic",
        "methods.FORA.tap: 'attic' is not allowed; it must be one of",
    ),
    ("methods/TaylorSeer-1/order", -1, "methods.TaylorSeer-1.order: -1 is not allowed"),
    ("methods/TaylorSeer-1/order", "x", "methods.TaylorSeer-1.order: 'x' is not allowed"),
    ("methods/fewer-steps/order", 1, "methods.fewer-steps.order: fewer-steps has no such option"),
    ("methods/bad label", {"method": "FORA"}, "bad label"),
    ("calibration/seed", 2026, "calibration.seed: 2026 is the seed of the evaluation too"),
    (
        "methods/EigenCache/held_out",
        99,
        "methods.EigenCache: 16 calibration prompts leave",
    ),
    # 8 of the 16 judge the closed loop.
    ("methods/EigenCache/runs", 9, "methods.EigenCache: runs=9: there are only 8 prompts"),
    (
        "methods/EigenCache-design/runs",
        17,
        "methods.EigenCache-design: runs=17: there are only 16 prompts",
    ),
    ("methods/EigenCache/rank", 99, "methods.EigenCache.rank: 99 exceeds the 50"),
    ("methods/fewer-steps/psnr", 40, "methods.fewer-steps.psnr: fewer-steps makes no plans"),
    ("methods/fewer-steps/tap", "output", "methods.fewer-steps.tap: fewer-steps has no such"),
    ("figures/samples/prompts", [99], "figures.samples.prompts: 99 is none of the 12"),
    ("experiment", "..", "experiment: '..' is not allowed"),
    ("shards", 2.0, "shards: 2.0 is not allowed.*integer"),
    ("methods/EigenCache", {"method": "EigenCache", 1: 2}, "EigenCache: the key 1 is no text"),
    ("experiment", "a\n", "experiment: .* is not allowed"),
    ("model", "../../x", "model: '../../x' is not allowed"),
    ("clip", "/models/x", "clip: '/models/x' is not allowed"),
    ("methods/..", {"method": "FORA"}, "methods: '..' is not allowed"),
    ("methods/-x", {"method": "FORA"}, "methods: '-x' is not allowed"),
    (
        "prompts",
        "../prompts.txt",
        r"prompts: '\.\./prompts\.txt' is not allowed.* out of the",
    ),
    ("prompts", "data/../../x", "prompts: 'data/../../x' is not allowed.* out of the project"),
    (
        "calibration/prompts",
        "/etc/hosts",
        "calibration.prompts: '/etc/hosts' is not allowed.* out",
    ),
    ("model", "emoji-fux", r"model: 'emoji-fux' is not one of the models of .*mean 'emoji-flux'\?"),
    ("clip", "nope", "clip: 'nope' is not one of the models of data/models.tsv, .*'emoji-clip'"),
    ("metrics", ["ssim"], r"metrics: \['ssim'\] lacks psnr"),
    ("metrics", ["psnr", "lpips"], "metrics.1: 'lpips' is not allowed.*lpips_alex"),
    ("metric_models", {"LPIPS-alex": "data"}, "metric_models.LPIPS-alex: no metric needs it"),
    ("metric_models", {"ST-LPIPS-alex": "nowhere"}, "ST-LPIPS-alex: 'nowhere' is no folder"),
    ("references", [], "references: .* is not allowed"),
    ("references", ["full", "FORA-08"], r"references.1: 'FORA-08' is not one of .*'FORA-09'"),
    ("figures/pareto/highlight", ["Fora"], "figures.pareto.highlight: 'Fora' is not one of"),
    ("figures/samples/methods", ["x; y"], "figures.samples.methods.0: 'x; y' is not allowed"),
    ("figures/samples/zoom", "all", "figures.samples.zoom: 'all' is not allowed"),
    ("figures/samples/zoom", [1, 2], "figures.samples.zoom: .* is not allowed.*at least 3 items"),
    ("figures/samples/zoom", [120, 0, 16], "figures.samples.zoom: .* of 128 x 128 pixels"),
    ("figures/samples/budget", 8, "figures.samples.budget: 8 is not one of .5, 9"),
    ("figures/errors/budget", 8, "figures.errors.budget: 8 is not one of"),
    ("figures/errors/prompts", [99], "figures.errors.prompts: 99 is none of the 12 evaluation"),
    ("figures/errors/prompts", [1, 1], r"figures.errors.prompts: \[1, 1\] is not allowed"),
    ("figures/costs/images", 0, "figures.costs.images: 0 is not allowed"),
    (
        "figures/calibration",
        {"factors": ["runs"]},
        "figures.calibration.factors: 'runs' is not one of",
    ),
    ("figures/gallery/budgets", [9, 8], "figures.gallery.budgets.1: 8 is not one of"),
    ("figures/gallery/prompts", [0, 99], "figures.gallery.prompts: 99 is none of the 12"),
    (
        "figures/gallery/prompts",
        0,
        "figures.gallery.prompts: 0 is not allowed.*equal to 1",
    ),
    ("arguments/strength", {"a": 1}, "arguments.strength: {'a': 1} is not allowed"),
    ("arguments/height", 65, "arguments.height: 65 is not allowed; it must be a multiple of 8"),
    ("arguments/width", 10**9, "arguments.width: 1000000000 is not allowed; it must be less than"),
    (
        "arguments/num_inference_steps",
        10**9,
        "arguments.num_inference_steps: 1000000000 is not allowed",
    ),
    ("arguments/guidance_scale", float("nan"), "guidance_scale: nan is not allowed.*finite"),
    ("arguments/guidance_scale", float("inf"), "guidance_scale: inf is not allowed.*finite"),
    ("threads", 10**6, "threads: 1000000 is not allowed"),
    ("seed", -1, "seed: -1 is not allowed"),
    ("experiment", 300 * "a", "experiment: 'aaa.*... is not allowed.*at most 100 characters"),
    ("methods/" + 300 * "a", {"method": "FORA"}, "methods: 'aaa.* is not allowed.*at most 100"),
    ("ablation", {"{label}": {}}, "ablation: '{label}' is not allowed; it has a curly bracket"),
    ("model_path", "{wildcards}", "model_path: '{wildcards}' is not allowed"),
    ("prompts", "data/$(touch pwned).txt", "prompts: .*pwned.* is not allowed; it must be a path"),
    ("prompts", "data/a;b.txt", "prompts: 'data/a;b.txt' is not allowed; it must be a path"),
    ("calibration/prompts", "--images", "calibration.prompts: '--images' is not allowed"),
    ("calibration/prompts", "data/-x.txt", "calibration.prompts: 'data/-x.txt' is not allowed"),
    ("num_prompts", "8", "num_prompts: '8' is not allowed; it must be a valid integer"),
    ("num_prompts", True, "num_prompts: True is not allowed; it must be a valid integer"),
    ("figures/gallery/size", 8, "figures.gallery.size: 8 is not allowed.*to 16"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_mistake_names_key_value_and_what_is_allowed(config, path, value, message):
    change(config, path, value)
    with pytest.raises(ConfigError, match=message):
        experiment(config)


def test_a_model_that_is_not_fetched_may_have_any_name(config, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    experiment(config | {"model": "mine", "model_path": str(tmp_path)})
    experiment(config | {"clip": "none", "metrics": ["psnr", "ssim"]})  # no metric needs it


def test_trajectory_is_of_a_method_that_has_plans(config):
    plan = "results/emoji-flux/plans/{}/9.safetensors"
    assert experiment(config).trajectory_plan == [plan.format("FORA")]
    config["figures"]["trajectory"]["label"] = "HiCache"
    assert experiment(config).trajectory_plan == [plan.format("HiCache")]
    for label in ("fewer-steps", "none"):
        config["figures"]["trajectory"]["label"] = label
        with pytest.raises(ConfigError, match=f"figures.trajectory.label: '{label}' is not one"):
            experiment(config)
    del config["figures"]["trajectory"]
    config["methods"] = {"fewer-steps": {"method": "fewer-steps"}}
    assert experiment(config).trajectory_plan == []


def test_figures_follow_the_experiment(config):
    shown = experiment(config).config.figures
    assert shown.plans.budget == shown.errors.budget == 9, "the middle one"
    assert shown.samples.budget == shown.strip.budget == 5, "the smallest shows most"
    assert shown.samples.prompts == shown.strip.prompts == [0, 6]
    assert shown.errors.prompts == [0, 3, 6, 9]
    assert shown.gallery.budgets == [5, 9, 12] and shown.gallery.prompts is None
    shown = experiment(config | {"num_prompts": 2, "budgets": [30, 5]}).config.figures
    assert shown.samples.budget == shown.costs.budget == shown.trajectory.budget == 5
    assert shown.samples.prompts == shown.errors.prompts == [0, 1]


def test_every_mistake_is_named_at_once(config):
    change(config, "arguments/height", 65)
    change(config, "shards", 0)
    with pytest.raises(ConfigError, match=r"shards: 0 .*; arguments\.height: 65 "):
        experiment(config)


def test_a_prompt_file_may_have_a_space_in_its_name(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my prompts.txt").write_text("a cat\n")
    Path("calibration.txt").write_text("\n".join(map(str, range(40))))
    config["calibration"]["prompts"] = "calibration.txt"
    config |= {"prompts": "my prompts.txt", "num_prompts": None, "shards": 1}
    assert experiment(config).prompts == ["a cat"]


def test_types_that_the_command_line_loses_are_read_again():
    config = {"budgets": ["5", "11"], "seed": 3, "methods": {"a": {"order": "2", "method": "x: y"}},
              "collect": {"streams": {"blocks": ["1"]}}}  # fmt: skip
    assert retyped(config, ["budgets", "methods", "seed"]) == config | {
        "budgets": [5, 11], "methods": {"a": {"order": 2, "method": "x: y"}},
    }  # fmt: skip


def test_the_schema_for_editors_is_up_to_date(config):
    written = schema.SCHEMA.read_text()
    assert written == schema.text(), "run python -m reproduction.commands.schema"
    validator = Draft202012Validator(json.loads(written))
    for path in (ROOT / "config.yaml", *sorted((ROOT / "workflow/config").glob("*.yaml"))):
        validator.validate(yaml.safe_load(path.read_text()))
    with pytest.raises(ValidationError, match="sampler"):
        validator.validate(config | {"sampler": {}})


def test_missing_key_is_named(config):
    del config["arguments"]["num_inference_steps"]
    with pytest.raises(ConfigError, match=r"arguments\.num_inference_steps: missing"):
        experiment(config)


def test_missing_prompt_file_is_named(config):
    config["prompts"] = "data/prompts/none.txt"
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such prompt file"):
        experiment(config)


def test_prompt_in_both_files_is_an_error(config, tmp_path, monkeypatch):
    prompts = "\n".join(experiment(config).calibration_prompts)
    monkeypatch.chdir(tmp_path)
    Path("calibration.txt").write_text(prompts)
    Path("both.txt").write_text(f"{prompts}\nand one more\n")
    config["calibration"]["prompts"] = "calibration.txt"
    config["prompts"] = "both.txt"
    config["num_prompts"] = 1
    with pytest.raises(ValueError, match="calibration must never see evaluation prompts"):
        experiment(config)


def test_every_method_has_its_options_checked(config):
    for name, method in METHODS.items():
        config["methods"] = {"x": {"method": name, "nonsense": 1}}
        with pytest.raises(ConfigError, match="has no such option"):
            experiment(config)
        assert method.cite
