"""An experiment: validated configuration, and the file names derived from it."""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from eigencache.kernel import OUTPUT
from eigencache.methods import METHODS
from eigencache.metrics import METRICS
from eigencache.plan import BASELINES, FEWER_STEPS, FULL
from reproduction.config import load
from reproduction.provenance.code import source_hash
from reproduction.shards import plan_shards


class Experiment:
    """One experiment.

    Attributes:
        config: its configuration, validated, with all defaults filled in.
        prompts: of the evaluation.
        calibration_prompts: of the calibration.
        sharding: how the prompts are split into jobs.

    Args:
        config: as read from YAML; it is not changed.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
        FileNotFoundError, ValueError: a prompt file is missing or faulty.
    """

    def __init__(self, config: Mapping) -> None:
        self.config = load(config)
        self.prompts = self.config.evaluation_prompts
        self.calibration_prompts = self.config.calibration_prompts
        # The budgets of a method with a target quality are not known beforehand.
        some = any(spec.psnr is None for spec in self.config.methods.values())
        self.sharding = plan_shards(
            self.config.shards, len(self.prompts), self.config.arguments.num_inference_steps,
            self.config.budgets if some else (), self.config.timed_prompts,
        )  # fmt: skip

    @property
    def labels(self) -> list[str]:
        """The labels of the methods, the full run first."""
        return [FULL, *self.config.methods]

    @property
    def planned(self) -> list[str]:
        """The labels whose runs follow a plan."""
        return [label for label in self.labels if self.spec(label)["method"] not in BASELINES]

    @property
    def refined(self) -> list[str]:
        """The labels whose plans take the network: in closed loop, or for a quality."""
        return [k for k in self.planned if k in self.bounded or self.is_closed(k)]

    def is_closed(self, label: str) -> bool:
        """Return whether the plans of a planned label are fitted in closed loop."""
        return METHODS[self.spec(label)["method"]].closed_loop is not None

    @property
    def bounded(self) -> list[str]:
        """The labels with a target quality, `psnr`, instead of the budgets."""
        return [label for label in self.labels if "psnr" in self.spec(label)]

    @property
    def budgeted(self) -> list[str]:
        """The labels with a run for every budget, and the full run."""
        return [label for label in self.labels if label not in self.bounded]

    @property
    def baseline(self) -> str | None:
        """The label that others with as many full steps are compared with; None if there is none.

        Unless the configuration names one, it is the first label of `fewer-steps`.
        """
        plain = (k for k in self.labels if self.spec(k)["method"] == FEWER_STEPS)
        return self.config.baseline or next(plain, None)

    @property
    def shards(self) -> list[str]:
        """The names of the shards of the evaluation prompts."""
        return [f"{shard:03d}" for shard in range(self.sharding.count)]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The labels that a job samples together, by the first of them, which names the group.

        No group waits for plans that only some of its labels need, and a label whose plans take
        the network, which takes longest, has a group of its own.
        """
        planned, refined = self.planned, self.refined
        plain = [label for label in self.labels if label not in planned]
        designed = [label for label in planned if label not in refined]
        groups = [*map(self.sharding.groups, (plain, designed)), [[k] for k in refined]]
        return {group[0]: group for several in groups for group in several}

    def group(self, label: str) -> str:
        """Return the group in which a label is sampled."""
        return next(name for name, labels in self.groups.items() if label in labels)

    def parts(self, label: str) -> list[str]:
        """Return the parts in which a label is sampled, GROUP/SHARD each, in their order."""
        return [f"{self.group(label)}/{shard}" for shard in self.shards]

    @property
    def kernels(self) -> list[str]:
        """The kernels to calibrate: TAP.FEATURES.NORMALISATION, then .RUNS if not of all runs.

        That of the outputs comes first. A closed loop makes its own, which is not among them.
        """
        wanted = {self.kernel(label) for label in self.planned if not self.is_closed(label)}
        return [str(OUTPUT), *sorted(wanted - {str(OUTPUT)})]

    @property
    def tables(self) -> list[str]:
        """The files of scores and tables; an ablation has a table of its own."""
        folder = f"results/{self.config.experiment}"
        name = "ablation" if self.config.ablation else "table"
        return [
            *(f"{folder}/{file}" for file in ("scores.csv", "scores.parquet", "summary.csv")),
            *(f"{folder}/{name}{kind}" for kind in (".csv", ".md", ".tex")),
        ]

    @property
    def runs(self) -> dict[str, str]:
        """The runs whose names are known beforehand, with their labels: all but those of `psnr`."""
        return self.config.runs

    @property
    def reference_labels(self) -> list[str]:
        """The labels of the runs that others are compared with."""
        return list(dict.fromkeys(self.runs[name] for name in self.config.references))

    @property
    def metrics(self) -> dict[str, list[str]]:
        """The metrics, with the models of data/models.tsv that each needs."""
        return self.config.metrics_models

    @property
    def set_metrics(self) -> list[str]:
        """Those of the metrics that have one value per set of images."""
        return [name for name in self.metrics if METRICS[name].whole]

    def features(self, labels: Iterable[str]) -> list[str]:
        """Return the files of what metrics of sets know of the images of some labels."""
        folder = f"results/{self.config.experiment}/features"
        parts = dict.fromkeys(part for label in labels for part in self.parts(label))
        return [f"{folder}/{part}.safetensors" for part in parts] if self.set_metrics else []

    def spec(self, label: str) -> dict:
        """Return the method of a label and its options: `{"method": name, option: value ...}`."""
        return {"method": FULL} if label == FULL else self.config.methods[label].stated

    def kernel(self, label: str) -> str:
        """Return the kernel from which the plans of a label are made."""
        spec = self.config.methods[label]
        return str(METHODS[spec.method].kind(spec.tap, **spec.options))

    def budgets(self, label: str) -> list[int]:
        """Return the budgets of a label's runs; none where it has one run, or a quality."""
        return [] if label == FULL or label in self.bounded else self.config.budgets

    def plans(self, label: str) -> list[str]:
        """Return the plan files of a label: one per budget, one for a target quality, or none."""
        if label not in self.planned:
            return []
        folder = f"results/{self.config.experiment}/plans/{label}"
        if label in self.bounded:
            return [f"{folder}/psnr.safetensors"]
        return [f"{folder}/{budget}.safetensors" for budget in self.config.budgets]

    @property
    def trajectory_plan(self) -> list[str]:
        """The plan whose forecasts the figure of a trajectory shows, or none."""
        settings = self.config.figures.trajectory
        if settings.label is None:
            return []
        folder = f"results/{self.config.experiment}/plans"
        return [f"{folder}/{settings.label}/{settings.budget}.safetensors"]

    @property
    def pipeline(self) -> dict[str, Any]:
        """The options by which a stage is told its pipeline, and how it is called."""
        config = self.config
        return {
            "pipeline": config.pipeline, "arguments": config.arguments.stated,
            "dtype": config.dtype, "threads": config.threads,
        }  # fmt: skip

    def code_of(self, program: str, *labels: str) -> str:
        """Return a hash of what a program runs, with the methods of the labels it is given."""
        methods = [self.spec(label)["method"] for label in labels]
        return source_hash(program, frozenset({*self.config.metrics, *methods}))

    def sampling(self, group: str) -> dict[str, Any]:
        """Return the settings of `reproduction.stages.sample` that all shards of a group share."""
        config = self.config
        return {
            "methods": {
                label: {"method": self.spec(label)["method"], "budgets": self.budgets(label)}
                for label in self.groups[group]
            },
            "num_prompts": len(self.prompts),
            "shards": len(self.shards),
            "seed": config.seed,
            "pipeline": config.pipeline,
            "arguments": config.arguments.stated,
            "dtype": config.dtype,
        }


def environment(homes: Sequence[str]) -> dict[str, str]:
    """Return the variables by which jobs run the Python and the code that this process runs.

    Args:
        homes: the folders of the packages.
    """
    inherited = os.environ.get("PYTHONPATH")
    return {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]),
        "PYTHONPATH": os.pathsep.join([*homes, *([inherited] if inherited else [])]),
    }


def placed(home: str | os.PathLike, names: Iterable[str]) -> None:
    """Link what an experiment reads of the project into the working folder, if that is another.

    What is there already stays; of a folder that is there, what it lacks is linked.

    Args:
        home: the project's folder.
        names: of the folders in it, and of what is below them.
    """
    for name in names:
        source, target = Path(home, name), Path(name)
        if target.is_dir() and not target.samefile(source):
            placed(home, [f"{name}/{path.name}" for path in source.iterdir()])
        elif not target.exists():
            with contextlib.suppress(FileExistsError):  # by another job
                target.symlink_to(source.absolute())


def retyped(config: Mapping[str, Any], stated: Iterable[str]) -> dict[str, Any]:
    """Return a configuration with the types that `--config` loses.

    Snakemake reads `budgets=[5, 11]` of its command line as two texts.

    Args:
        config: the whole configuration.
        stated: the keys that the command line states.
    """

    def typed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: typed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [typed(one) for one in value]
        try:
            read = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError:  # a text that is no value of YAML
            return value
        return read if isinstance(read, int | float | bool | None) else value

    values = {key: config[key] for key in stated if key in config}  # others are another workflow's
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping | list)}
    return {**config, **typed(nested)}


def options(**values: Any) -> list[str]:
    """Return a command line: `full_steps=3` is `--full-steps 3`, and what is None is left out.

    A mapping is written as JSON.

    A rule takes it as one parameter, since Snakemake compares the values of parameters without
    their names: 3 images on 1 thread would be the same to it as 1 image on 3 threads.
    """
    words = []
    for name, value in values.items():
        if value is not None:
            value = json.dumps(value) if isinstance(value, Mapping) else value
            several = value if isinstance(value, list | tuple) else [value]
            words.append(f"--{name.replace('_', '-')}")
            words += [str(int(one) if isinstance(one, bool) else one) for one in several]
    return words


def hash_of(prompts: Iterable[str]) -> str:
    """Return a short hash of prompts in their order, for use as a rule's parameter."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def one_of(names: Iterable[str]) -> str:
    """Return a regular expression that matches exactly these names; for none, nothing."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"
