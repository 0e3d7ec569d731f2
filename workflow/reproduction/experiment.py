"""The experiment that a configuration describes: checked first, then asked for its parts."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from eigencache.commands.prompts import read_prompts
from eigencache.methods import METHODS
from eigencache.metrics import CLIP, METRICS
from eigencache.plan import BASELINES, FEWER_STEPS, FULL, TAPS
from reproduction.config import ConfigError, with_defaults
from reproduction.prompts import refuse_overlap
from reproduction.shards import plan_shards

# The kernel that every experiment has: of the network's output, as design wants it.
OUTPUT_KERNEL = "output.full.second-moment"
FIGURES = (
    "pareto", "budget", "samples", "plans", "schedules", "kernel", "quality", "errors", "costs",
)  # fmt: skip
FORMATS = (".pdf", ".png")
SCORES = ("scores.csv", "scores.parquet", "summary.csv")
TABLES, ABLATION_TABLES = (
    tuple(f"{name}{kind}" for kind in (".csv", ".md", ".tex")) for name in ("table", "ablation")
)
GALLERY = "gallery.html"


class Experiment:
    """One experiment, from a validated configuration.

    Args:
        config: as read from YAML; it is not changed.
        schema: path of the JSON schema, which also holds the defaults.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
        FileNotFoundError, ValueError: a prompt file is missing or faulty.
    """

    def __init__(self, config: Mapping, schema: str | Path) -> None:
        self.config = with_defaults(config, yaml.safe_load(Path(schema).read_text()))
        self._check_budgets()
        self._check_paths()
        self._check_model_path()
        self._check_metrics()
        for label, spec in self.config["methods"].items():
            _check_method(label, spec)
        self._check_baseline()
        self._check_ablation()
        self._check_figures()
        calibration = self.config["calibration"]
        self.prompts = read_prompts(self.config["prompts"], self.config["num_prompts"])
        self.calibration_prompts = read_prompts(calibration["prompts"], calibration["num_prompts"])
        if self.config["collect"]["prompt"] >= len(self.calibration_prompts):
            raise ConfigError(
                f"collect.prompt: {self.config['collect']['prompt']} is none of the "
                f"{len(self.calibration_prompts)} calibration prompts, which count from 0"
            )
        # Whole files are compared: another `num_prompts` must not turn a leak on or off.
        refuse_overlap(read_prompts(calibration["prompts"]), read_prompts(self.config["prompts"]))
        self.sharding = plan_shards(self.config, len(self.prompts))
        if calibration["seed"] == self.config["seed"]:
            raise ConfigError(
                f"calibration.seed: {calibration['seed']} is the seed of the evaluation too; "
                "choose another, so that calibration never sees evaluation noise"
            )
        self._check_prompts_suffice()

    @property
    def labels(self) -> list[str]:
        """What the methods are called here, the full run first."""
        return [FULL, *self.config["methods"]]

    @property
    def planned(self) -> list[str]:
        """The labels whose runs follow a plan."""
        return [label for label in self.labels if self.spec(label)["method"] not in BASELINES]

    @property
    def refined(self) -> list[str]:
        """The labels whose plans are fitted in closed loop, with the network."""
        return [k for k in self.planned if METHODS[self.spec(k)["method"]].closed_loop]

    @property
    def bounded(self) -> list[str]:
        """The labels for which a quality is stated, `psnr`, in place of the budgets."""
        return [label for label in self.labels if "psnr" in self.spec(label)]

    @property
    def budgeted(self) -> list[str]:
        """The labels that have a run for every budget, and the full run."""
        return [label for label in self.labels if label not in self.bounded]

    @property
    def baseline(self) -> str | None:
        """The label to whose runs others of as many full steps are compared; None: there is none.

        Unless the configuration names one, it is the first of fewer steps.
        """
        plain = (k for k in self.labels if self.spec(k)["method"] == FEWER_STEPS)
        return self.config["baseline"] or next(plain, None)

    @property
    def shards(self) -> list[str]:
        """The names of the shards of the evaluation prompts."""
        return [f"{shard:03d}" for shard in range(self.sharding.count)]

    @property
    def gallery_prompts(self) -> Sequence[int]:
        """The indices of the prompts that the gallery shows; none: all of them."""
        prompts = self.config["figures"]["gallery"].get("prompts", [])
        return range(prompts) if isinstance(prompts, int) else prompts

    @property
    def kernels(self) -> list[str]:
        """The kernels to calibrate, as TAP.FEATURES.NORMALISATION, and .RUNS if not of all."""
        return sorted({self.kernel(label) for label in self.planned} | {OUTPUT_KERNEL})

    @property
    def targets(self) -> list[str]:
        """The files that the whole experiment is for: scores, tables, the gallery, every figure.

        An ablation has a table and a figure of its own in place of those that compare methods.
        """
        name, ablation = self.config["experiment"], self.config["ablation"]
        tables = [*SCORES, *(ABLATION_TABLES if ablation else (*TABLES, GALLERY))]
        figures = self._ablation_figures if ablation else self._figures
        return [f"results/{name}/{table}" for table in tables] + [
            f"figures/{name}/{figure}{kind}" for figure in figures for kind in FORMATS
        ]

    @property
    def _figures(self) -> list[str]:
        """The figures of methods that this experiment has something to draw in."""
        left_out = set() if self.refined else {"quality"}
        left_out |= set() if set(self.planned) & set(self.budgeted) else {"plans", "errors"}
        left_out |= set() if self.planned else {"schedules"}
        # A cache's first three steps are full; it takes one more to have a cost.
        left_out |= set() if self.config["sampler"]["num_steps"] > 3 else {"costs"}
        return [figure for figure in FIGURES if figure not in left_out]

    @property
    def _ablation_figures(self) -> list[str]:
        of_runs = self.config["figures"]["calibration"]["factors"]
        return ["ablation", "calibration"] if of_runs else ["ablation"]

    @property
    def runs(self) -> dict[str, str]:
        """The runs whose names are known beforehand, to their labels: all but those of `psnr`."""
        budgets = self.config["budgets"]
        return {FULL: FULL} | {
            f"{label}-{budget:02d}": label
            for label in self.budgeted if label != FULL for budget in budgets
        }  # fmt: skip

    @property
    def reference_labels(self) -> list[str]:
        """The labels of the runs that others are compared with."""
        return list(dict.fromkeys(self.runs[name] for name in self.config["references"]))

    @property
    def metrics(self) -> dict[str, list[str]]:
        """The metrics to the models of data/models.tsv that they need."""
        return {
            name: [self.config["clip"] if m == CLIP else m for m in METRICS[name].models]
            for name in self.config["metrics"]
        }

    def spec(self, label: str) -> dict:
        """Return the method of a label and its options: `{"method": name, option: value ...}`."""
        return {"method": FULL} if label == FULL else self.config["methods"][label]

    def kernel(self, label: str) -> str:
        """Return the kernel from which the plans of a label are made.

        A method that needs none is given the output kernel, for its timesteps alone.
        """
        spec = self.spec(label)
        method = METHODS[spec["method"]]
        if not method.needs_kernel:
            return OUTPUT_KERNEL
        use = method.parts(1, **_options(spec)).use
        return f"{spec.get('tap', method.tap)}.{use.kind}"

    def plans(self, label: str) -> list[str]:
        """Return the plan files of a label: one for each budget, or for a quality, or none."""
        if label not in self.planned:
            return []
        folder = f"results/{self.config['experiment']}/plans/{label}"
        if label in self.bounded:
            return [f"{folder}/psnr.safetensors"]
        return [f"{folder}/{budget}.safetensors" for budget in self.config["budgets"]]

    @property
    def trajectory_plan(self) -> list[str]:
        """The plan whose forecasts the figure of a trajectory shows, or none.

        Raises:
            ConfigError: the method has no plans, or there is no such method.
        """
        settings = self.config["figures"]["trajectory"]
        label, budget = settings["label"], settings.get("budget", self.config["budgets"][0])
        if label is None:
            return []
        planned = [name for name in self.planned if name in self.budgeted]
        if label not in planned:
            raise ConfigError(
                f"figures.trajectory.label: {label!r} is none of the methods that have a plan for "
                f"each budget: {planned}"
            )
        return [f"results/{self.config['experiment']}/plans/{label}/{budget}.safetensors"]

    def sampling(self, label: str) -> dict:
        """Return the settings of `reproduction.stages.sample` that all shards of a label share."""
        return {
            "label": label,
            "method": self.spec(label)["method"],
            "model": f"models/{self.config['model']}/manifest.json",
            "budgets": self.config["budgets"],
            "plans": self.plans(label),
            "prompts": self.config["prompts"],
            "num_prompts": len(self.prompts),
            "shards": len(self.shards),
            "seed": self.config["seed"],
            "sampler": self.config["sampler"],
        }

    def _check_paths(self) -> None:
        """Raise a ConfigError if a prompt file lies outside the project.

        The configuration's own words count: a link that the user has put into the project may lead
        anywhere. What `model_path` names is the user's word too.
        """
        for key, path in (
            ("prompts", self.config["prompts"]),
            ("calibration.prompts", self.config["calibration"]["prompts"]),
        ):
            if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
                raise ConfigError(
                    f"{key}: {path!r} leads out of the project; put the file into it and state its "
                    "path from the project's folder"
                )

    def _check_budgets(self) -> None:
        steps = self.config["sampler"]["num_steps"]
        for i, budget in enumerate(self.config["budgets"]):
            if budget > steps:
                raise ConfigError(f"budgets.{i}: {budget} exceeds the {steps} of sampler.num_steps")
        for figure, settings in self.config["figures"].items():
            budget = settings.get("budget")
            if budget is not None and budget not in self.config["budgets"]:
                raise ConfigError(
                    f"figures.{figure}.budget: {budget} is not one of budgets "
                    f"{self.config['budgets']}"
                )

        for i, budget in enumerate(self.config["figures"]["gallery"].get("budgets", [])):
            if budget not in self.config["budgets"]:
                raise ConfigError(
                    f"figures.gallery.budgets.{i}: {budget} is not one of budgets "
                    f"{self.config['budgets']}"
                )

    def _check_figures(self) -> None:
        """Raise a ConfigError if a figure is to show a method or pixels that are not there."""
        figures = self.config["figures"]
        samples = figures["samples"]
        for where, named, allowed in (
            ("pareto.highlight", figures["pareto"]["highlight"], self.labels[1:]),
            ("samples.methods", samples.get("methods", []), self.budgeted),
            ("calibration.factors", figures["calibration"]["factors"], [*self.config["ablation"]]),
        ):
            for label in named:
                if label not in allowed:
                    raise ConfigError(f"figures.{where}: {label!r} is not one of {allowed}")
        for factor in figures["calibration"]["factors"]:
            values = self.config["ablation"][factor]["values"].values()
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise ConfigError(
                    f"figures.calibration.factors: the values of {factor!r} are not all numbers of "
                    f"runs: {list(values)}"
                )
        if isinstance(samples["zoom"], list):
            left, top, size = samples["zoom"]
            height, width = (self.config["sampler"][side] for side in ("height", "width"))
            if size < 1 or left + size > width or top + size > height:
                raise ConfigError(
                    f"figures.samples.zoom: {samples['zoom']} (left, top, size) does not lie in an "
                    f"image of {width} x {height} pixels"
                )

    def _check_model_path(self) -> None:
        path = self.config["model_path"]
        if path is not None and not (Path(path) / "model_index.json").is_file():
            raise ConfigError(
                f"model_path: {path!r} is not the folder of a diffusers pipeline; it must have a "
                "model_index.json"
            )

    def _check_metrics(self) -> None:
        for i, name in enumerate(self.config["references"]):
            if name not in self.runs:
                raise ConfigError(
                    f"references.{i}: {name!r} is unknown; there are {list(self.runs)}"
                )
        needed = {model for models in self.metrics.values() for model in models}
        for model, folder in self.config["metric_models"].items():
            if model not in needed:
                raise ConfigError(
                    f"metric_models.{model}: no metric needs it; they need {sorted(needed)}"
                )
            if not Path(folder).is_dir():
                raise ConfigError(f"metric_models.{model}: {folder!r} is no folder")

    def _check_prompts_suffice(self) -> None:
        """Raise a ConfigError if a method or figure wants more prompts or steps than there are."""
        calibrated, steps = len(self.calibration_prompts), self.config["sampler"]["num_steps"]
        for label in self.planned:
            spec = self.spec(label)
            parts = METHODS[spec["method"]].parts(1, **_options(spec))
            held_out = parts.closed_loop.held_out if parts.closed_loop else 0
            wanted = {"runs": (parts.use and parts.use.runs) or 0, "held_out": held_out + 1}
            for key, least in wanted.items():
                if least > calibrated:
                    raise ConfigError(
                        f"methods.{label}.{key}: needs {least} calibration prompts, "
                        f"calibration.num_prompts gives {calibrated}"
                    )
            if parts.use and (parts.use.rank or 0) > steps:
                raise ConfigError(
                    f"methods.{label}.rank: {parts.use.rank} exceeds the {steps} of "
                    "sampler.num_steps"
                )
        figures = self.config["figures"]
        shown = {name: figures[name].get("prompts", []) for name in ("samples", "errors")}
        for figure, prompts in (*shown.items(), ("gallery", self.gallery_prompts)):
            for index in prompts:
                if index >= len(self.prompts):
                    raise ConfigError(
                        f"figures.{figure}.prompts: {index} is none of the {len(self.prompts)} "
                        "evaluation prompts, which count from 0"
                    )

    def _check_baseline(self) -> None:
        label = self.config["baseline"]
        if label is not None and label not in self.config["methods"]:
            raise ConfigError(
                f"baseline: {label!r} is unknown; methods has {list(self.config['methods'])}"
            )

    def _check_ablation(self) -> None:
        for factor, part in self.config["ablation"].items():
            where = f"ablation.{factor}"
            for label in part["values"]:
                if label not in self.config["methods"]:
                    raise ConfigError(
                        f"{where}.values: {label!r} is unknown; "
                        f"methods has {list(self.config['methods'])}"
                    )
            if len({str(value) for value in part["values"].values()}) < len(part["values"]):
                raise ConfigError(f"{where}.values: two labels stand for the same value")
            if part["base"] not in part["values"]:
                raise ConfigError(
                    f"{where}.base: {part['base']!r} is not one of its values "
                    f"{list(part['values'])}"
                )


def hash_of(prompts: Iterable[str]) -> str:
    """Return a hash of prompts in their order: a rule's parameter, short however many they are."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def one_of(names: Iterable[str]) -> str:
    """Return the regular expression of exactly these names; of none, one that never matches."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def _check_method(label: str, spec: Mapping) -> None:
    """Raise a ConfigError if a method or an option of it does not exist or has a bad value."""
    where, name = f"methods.{label}", spec["method"]
    if name == FULL or name not in {*METHODS, *BASELINES}:
        allowed = [*METHODS, *(b for b in BASELINES if b != FULL)]
        raise ConfigError(f"{where}.method: {name!r} is unknown; there are {allowed}")
    if "tap" in spec and spec["tap"] not in TAPS:
        raise ConfigError(f"{where}.tap: {spec['tap']!r} is unknown; there are {list(TAPS)}")
    method = METHODS.get(name)
    if "tap" in spec and not method:
        raise ConfigError(f"{where}.tap: {name} has no such option; it caches nothing")
    if "tap" in spec and (method.closed_loop or method.gate or method.refresh):
        raise ConfigError(f"{where}.tap: {name} has no such option; its tap is {method.tap!r}")
    allowed = method.options if method else ()
    if "psnr" in spec and not (method and method.closed_loop):
        raise ConfigError(f"{where}.psnr: only methods with a closed loop can be asked for quality")
    for key, value in _options(spec).items():
        if key not in allowed:
            raise ConfigError(f"{where}.{key}: {name} has no such option; it has {list(allowed)}")
        try:
            method.parts(1, **{key: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}.{key}: {value!r} is not allowed: {error}") from error


def _options(spec: Mapping) -> dict:
    return {key: value for key, value in spec.items() if key not in ("method", "tap", "psnr")}
