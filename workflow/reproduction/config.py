"""The configuration of an experiment: every key with its type, default, bounds and cross-checks.

`config.yaml` explains the keys to a user. `workflow/schemas/config.schema.json` is made from this
file, for editors: `PYTHONPATH=workflow python -m reproduction.commands.schema`.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from eigencache.commands.prompts import described, read_calls
from eigencache.methods import FEWEST, METHODS, check_wish
from eigencache.metrics import CLIP, METRICS
from eigencache.plan import BASELINES, FULL, TAPS
from reproduction.prompts import file_of, images_of, refuse_overlap, subject_of

MODELS = Path("data/models.tsv")  # what can be fetched
# Names of the table of methods that an experiment may compare; it holds the full run anyway.
NAMES = [*METHODS, *(name for name in BASELINES if name != FULL)]


class ConfigError(ValueError):
    """The configuration has a mistake; the message names the key, the value and what is allowed."""


def fault(key: str, text: str) -> PydanticCustomError:
    """Return the error of a cross-check, at a key below the part that is checked."""
    return PydanticCustomError("fault", "{text}", {"key": key, "text": text})


def one_among(names: Iterable[str]) -> Any:
    """Return the type of a text that must be one of the names of a table.

    The JSON schema does not list them, so that it need not follow the table.
    """
    literal = Literal[tuple(names)]  # type: ignore[valid-type]
    return Annotated[literal, WithJsonSchema({"type": "string"})]


def _check_path(path: str) -> str:
    """Refuse what leads out of the project, or what a shell or Snakemake would not take as it is.

    The configuration's own words count: a link that the user has put into the project may lead
    anywhere.
    """
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts:
        raise ValueError(
            "not lead out of the project; put the file into the project and state its path from "
            "the project's folder"
        )
    if not re.fullmatch(r"[A-Za-z0-9._/ -]+", path) or any(part[0] == "-" for part in parts):
        raise ValueError(
            "be a path of letters A to Z, digits, spaces and . _ - /, of which no part begins "
            "with -; rename the file"
        )
    return path


def _check_distinct(values: list) -> list:
    """Refuse a list in which a value occurs twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"have {value!r} only once")
    return values


_Text = Annotated[str, StringConstraints(max_length=100)]
_Value = StrictBool | StrictInt | FiniteFloat | str
# The name of one folder or file; a longer one would make file names that no file system takes.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$", max_length=100)]
PromptFile = Annotated[str, AfterValidator(_check_path)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Index = Annotated[int, Field(ge=0)]
Budget = Annotated[int, Field(ge=1)]
Budgets = Annotated[list[Budget], Field(min_length=1), AfterValidator(_check_distinct)]
Tap = Literal[TAPS]  # type: ignore[valid-type]
# How many prompts a figure shows, spread evenly over those of the experiment, or their indices.
Shown = (
    Annotated[StrictInt, Field(ge=1)]
    | Annotated[list[Index], Field(min_length=1), AfterValidator(_check_distinct)]
)


class _Part(BaseModel):
    """A part of the configuration: a key that it does not know is an error, as is 2.0 for 2."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Arguments(_Part):
    """What the pipeline is called with besides the prompt: any arguments that its call takes.

    The stages check them against the signature of the pipeline itself.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Value | list[_Value]]

    num_inference_steps: Annotated[int, Field(ge=1, le=10_000)]
    """Sampler steps of the full run, and of every run that caches."""
    height: Annotated[int, Field(ge=16, le=16384, multiple_of=8)] | None = None
    """Of images, in pixels."""
    width: Annotated[int, Field(ge=16, le=16384, multiple_of=8)] | None = None
    """Of images, in pixels."""

    @property
    def stated(self) -> dict[str, Any]:
        """The arguments that the configuration states."""
        return self.model_dump(exclude_unset=True)


class Calibration(_Part):
    """The prompts and noise that kernels are calibrated and closed-loop plans fitted on."""

    prompts: PromptFile
    """A prompt file, or the name of a set; the evaluation must not have any of its prompts."""
    num_prompts: Annotated[int, Field(ge=1)] | None = 32
    """The first so many prompts; null: all."""
    seed: Seed
    """Another than that of the evaluation."""


class MethodSpec(_Part):
    """A method, by its name in `eigencache.METHODS`, and its options."""

    model_config = ConfigDict(extra="allow")

    method: one_among(NAMES)  # type: ignore[valid-type]
    """A name of `eigencache.METHODS`, or fewer-steps."""
    tap: Tap | None = None
    """Where features are taken; by default where the method takes them."""
    psnr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The quality, in dB, to reach in place of the budgets, with as few full steps as do."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method's own parts."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def stated(self) -> dict[str, Any]:
        """What the configuration states: the method, its options, and the tap and PSNR if any."""
        return self.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _check(self) -> "MethodSpec":
        name, method = self.method, METHODS.get(self.method)
        if self.tap and not method:
            raise fault("tap", f"{name} has no such option; it caches nothing")
        if self.tap and method and (method.closed_loop or method.gate or method.refresh):
            raise fault("tap", f"{name} has no such option; its tap is {method.tap!r}")
        if self.psnr is not None and not method:
            raise fault("psnr", f"{name} makes no plans that could be judged; state budgets")
        allowed = [*method.options] if method else []
        for key, value in self.options.items():
            if not method or key not in allowed:
                raise fault(key, f"{name} has no such option; {_hint(key, allowed)}")
            try:
                method.parts(1, **{key: value})
            except (TypeError, ValueError) as error:
                raise fault(key, f"{_shown(value)} is not allowed: {error}") from error
        return self


class Factor(_Part):
    """A factor of an ablation: which labels of `methods` stand for which of its values."""

    base: Label
    """The label that the others are compared with."""
    values: Annotated[dict[Label, StrictInt | float | _Text], Field(min_length=2)]
    """A label of `methods` to the value that it stands for."""

    @model_validator(mode="after")
    def _check(self) -> "Factor":
        if len({str(value) for value in self.values.values()}) < len(self.values):
            raise fault("values", "two labels stand for the same value")
        if self.base not in self.values:
            raise fault("base", f"{self.base!r} is not one of its values {[*self.values]}")
        return self


class Collect(_Part):
    """What is recorded of one calibration run when its file is asked for."""

    prompt: Index = 0
    """The index of the calibration prompt."""
    features: Literal["whole", "full", "stride-8", "token-mean"] = "whole"
    """In their own shape, or one vector per step."""
    streams: dict[Tap, Annotated[list[_Text], Field(min_length=1)]] = {}
    """By tap, shell patterns of the names of streams; all where none are stated."""


class Pareto(_Part):
    """Settings of the figures of quality against speed-up and against full steps."""

    highlight: list[Label] = []
    """Of more than nine methods, those in colour; by default the best."""


class Strip(_Part):
    """Settings of the figure of a few samples, for the top of a page."""

    budget: Budget | None = None
    """One of `budgets`; by default the smallest."""
    prompts: Shown = 2
    """Which evaluation prompts: how many, spread evenly, or a list of indices."""


class Samples(_Part):
    """Settings of the figure of samples."""

    budget: Budget | None = None
    """One of `budgets`; by default the smallest."""
    prompts: Shown = 2
    """Which evaluation prompts: how many, spread evenly, or a list of indices."""
    methods: Annotated[list[Label], Field(min_length=1)] | None = None
    """The labels to show; by default all that have a run of the budget, of many the best."""
    zoom: Literal["auto"] | Annotated[list[Index], Field(min_length=3, max_length=3)] | None = None
    """The part that is enlarged, [left, top, size] in pixels, or auto; null: none."""
    difference: bool = True
    """Whether to draw how images differ from the reference."""


class Gallery(_Part):
    """Settings of the page of images."""

    budgets: (
        Annotated[list[Budget], Field(min_length=1), AfterValidator(_check_distinct)] | None
    ) = None
    """The budgets to show; by default all."""
    prompts: Shown | None = None
    """Which evaluation prompts: how many, spread evenly, or a list of indices; by default all."""
    size: Annotated[int, Field(ge=16)] = 512
    """The most pixels of an image's longer side. Above 128 images are lossy."""


class Plans(_Part):
    """Settings of the figure of plans."""

    budget: Budget | None = None
    """One of `budgets`; by default the middle one."""


class TrajectoryFigure(_Part):
    """Settings of the figure of features along a run."""

    tap: Tap = "blocks"
    """Of the collected file."""
    label: Label | None = None
    """The method whose forecasts are drawn; by default the first that has plans."""
    budget: Budget | None = None
    """One of `budgets`; by default the middle one."""


class Errors(_Part):
    """What is measured for the figure of errors at every step."""

    budget: Budget | None = None
    """One of `budgets`; by default the middle one."""
    prompts: Shown = 4
    """Which evaluation prompts: how many, spread evenly, or a list of indices."""


class Costs(_Part):
    """What is measured for the figure of costs."""

    budget: Budget | None = None
    """One of `budgets`; by default the middle one."""
    images: Annotated[int, Field(ge=1)] = 3
    """How many images are timed."""


class CalibrationFigure(_Part):
    """Settings of the figure of an ablation's calibration runs."""

    factors: Annotated[list[_Text], AfterValidator(_check_distinct)] = []
    """Factors of the ablation whose values are numbers of runs; none: there is no such figure."""


class Figures(_Part):
    """Settings of the figures, each by its name."""

    pareto: Pareto = Pareto()
    strip: Strip = Strip()
    samples: Samples = Samples()
    gallery: Gallery = Gallery()
    plans: Plans = Plans()
    trajectory: TrajectoryFigure = TrajectoryFigure()
    errors: Errors = Errors()
    costs: Costs = Costs()
    calibration: CalibrationFigure = CalibrationFigure()


class Config(_Part):
    """The configuration of one experiment. config.yaml explains every key."""

    experiment: Name
    """Names the folders results/{experiment} and figures/{experiment}."""
    model: Name
    """A model of data/models.tsv."""
    model_path: str | None = None
    """The folder of a diffusers pipeline to use in place of fetching the model."""
    clip: Name
    """The CLIP of data/models.tsv that scores images against prompts."""
    metrics: Annotated[list[one_among(METRICS)], AfterValidator(_check_distinct)] = [  # type: ignore
        "psnr", "ssim", "st_lpips_alex", "clip_score", "frechet_lite0",
    ]  # fmt: skip
    """How images are scored; psnr is required."""
    metric_models: dict[Name, str] = {}
    """Folders that have a metric's model already, by the model."""
    references: Annotated[list[Label], Field(min_length=1), AfterValidator(_check_distinct)] = [
        FULL
    ]
    """Runs that images are compared with: full, or LABEL-BUDGET. The first is shown."""
    prompts: PromptFile
    """The evaluation prompts: a file, or the name of a set of data/prompts/sets.tsv."""
    num_prompts: Annotated[int, Field(ge=1)] | None = None
    """The first so many prompts; null: all."""
    seed: Seed
    """The noise of an image depends on this seed and the index of its prompt alone."""
    shards: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=1000)] = 1
    """Into how many jobs the prompts of a method are split."""
    timed_prompts: Annotated[int, Field(ge=1)] = 4
    """In each job, for how many prompts a full run is timed beside the others."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of a job. Another number may change the last bits of an image."""
    low_memory: bool = False
    """Whether the transformer and the VAE take turns on the GPU."""
    anchor_device: Literal["cpu"] | None = None
    """Where a cache keeps features of full steps; null: where they are made."""
    step_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Seconds of a full step, at most. Only the time that jobs ask a cluster for depends on it."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """What the network runs on."""
    pipeline: Name | None = None
    """The class of diffusers that the model's parts make; null: the one that the model states."""
    arguments: Arguments
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and features."""
    calibration: Calibration
    budgets: Budgets
    """Numbers of full steps; every method is run at each."""
    methods: dict[Label, MethodSpec]
    """What is compared besides the full run: a label, and the method it stands for."""
    baseline: Label | None = None
    """The label that tables compare the others with; null: the first of fewer steps."""
    ablation: dict[_Text, Factor] = {}
    """Factors of an ablation; with any, its table and figures take the place of the others."""
    collect: Collect = Collect()
    figures: Figures = Figures()

    _evaluation: list[str] = PrivateAttr()
    _calibrating: list[str] = PrivateAttr()

    @property
    def evaluation_prompts(self) -> list[str]:
        """The prompts of the evaluation, in their order."""
        return self._evaluation

    @property
    def calibration_prompts(self) -> list[str]:
        """The prompts of the calibration, in their order."""
        return self._calibrating

    @property
    def evaluation_images(self) -> list[str]:
        """The images that the file of the evaluation's prompts names."""
        return images_of(self.prompts)

    @property
    def calibration_images(self) -> list[str]:
        """The images that the file of the calibration's prompts names."""
        return images_of(self.calibration.prompts)

    @property
    def middle_budget(self) -> int:
        """The budget that figures of one budget show unless another is stated."""
        return sorted(self.budgets)[(len(self.budgets) - 1) // 2]

    @property
    def runs(self) -> dict[str, str]:
        """The runs whose names are known beforehand, to their labels: all but those of `psnr`."""
        return {FULL: FULL} | {
            f"{label}-{budget:02d}": label
            for label, spec in self.methods.items() if spec.psnr is None
            for budget in self.budgets
        }  # fmt: skip

    @property
    def metrics_models(self) -> dict[str, list[str]]:
        """The metrics to the models of data/models.tsv that they need."""
        return {
            name: [self.clip if model == CLIP else model for model in METRICS[name].models]
            for name in self.metrics
        }

    @model_validator(mode="after")
    def _check(self) -> "Config":
        """Check keys against each other, read the prompts, and fill in what follows from both."""
        self._check_names()
        self._check_folders()
        if self.calibration.seed == self.seed:
            raise fault(
                "calibration.seed",
                f"{self.seed} is the seed of the evaluation too; choose another, so that "
                "calibration never sees evaluation noise",
            )
        self.prompts, self.calibration.prompts = map(
            file_of, (self.prompts, self.calibration.prompts)
        )
        # Whole files are compared: another `num_prompts` must not turn a leak on or off.
        refuse_overlap(
            [subject_of(call) for call in _calls(self.calibration.prompts)],
            [subject_of(call) for call in _calls(self.prompts)],
        )
        self._evaluation = _prompts(self.prompts, self.num_prompts)
        self._calibrating = _prompts(self.calibration.prompts, self.calibration.num_prompts)
        self._check_calibration()
        self._settle_figures()
        return self

    def _check_names(self) -> None:
        """Refuse names of one key that another does not have, and budgets without steps."""
        labels = [*self.methods]
        if FULL in labels:
            raise fault(f"methods.{FULL}", "the full run is there by itself; use another label")
        if "psnr" not in self.metrics:
            raise fault("metrics", f"{self.metrics} lacks psnr, which is required")
        for i, budget in enumerate(self.budgets):
            if budget > self.arguments.num_inference_steps:
                raise fault(
                    f"budgets.{i}",
                    f"{budget} exceeds the {self.arguments.num_inference_steps} of "
                    "arguments.num_inference_steps",
                )
        for i, name in enumerate(self.references):
            _one_of(f"references.{i}", name, self.runs)
        if self.baseline is not None:
            _one_of("baseline", self.baseline, labels)
        for factor, part in self.ablation.items():
            for label in part.values:
                _one_of(f"ablation.{factor}.values", label, labels)
        needed = sorted({model for models in self.metrics_models.values() for model in models})
        for model in self.metric_models:
            if model not in needed:
                raise fault(f"metric_models.{model}", f"no metric needs it; they need {needed}")
        self._check_models(needed)

    def _check_models(self, needed: Collection[str]) -> None:
        """Refuse a model that is to be fetched and that data/models.tsv does not have."""
        if not MODELS.is_file():  # outside a project's folder nothing is fetched
            return
        lines = MODELS.read_text(encoding="utf-8").splitlines()[1:]
        known = dict.fromkeys(line.split("\t")[0] for line in lines)
        if not self.model_path:
            _one_of("model", self.model, known, f"models of {MODELS}")
        if self.clip in needed:
            _one_of("clip", self.clip, known, f"models of {MODELS}")

    def _check_folders(self) -> None:
        """Refuse folders that are not there; what a user names outside the project may be any."""
        if self.model_path and not (Path(self.model_path) / "model_index.json").is_file():
            raise fault(
                "model_path",
                f"{_shown(self.model_path)} is not the folder of a diffusers pipeline; it must "
                "have a model_index.json",
            )
        for model, folder in self.metric_models.items():
            if not Path(folder).is_dir():
                raise fault(f"metric_models.{model}", f"{_shown(folder)} is no folder")

    def _check_calibration(self) -> None:
        """Refuse what needs more calibration prompts or steps than there are."""
        count, steps = len(self.calibration_prompts), self.arguments.num_inference_steps
        if self.collect.prompt >= count:
            raise fault(
                "collect.prompt",
                f"{self.collect.prompt} is none of the {count} calibration prompts, which count "
                "from 0",
            )
        for label, spec in self.methods.items():
            if spec.method in BASELINES:
                continue
            method = METHODS[spec.method]
            parts = method.parts(1, **spec.options)
            try:
                check_wish(
                    method, None if spec.psnr else FEWEST, spec.psnr, spec.tap,
                    spec.options, count,
                )  # fmt: skip
                fitted = parts.closed_loop.fitted(count) if parts.closed_loop else count
                method.kind(spec.tap, **spec.options).among(fitted)
            except ValueError as error:
                raise fault(f"methods.{label}", str(error)) from error
            if parts.use and (parts.use.rank or 0) > steps:
                raise fault(
                    f"methods.{label}.rank",
                    f"{parts.use.rank} exceeds the {steps} of arguments.num_inference_steps",
                )

    def _settle_figures(self) -> None:
        """Fill in what figures take from the experiment, and refuse what it does not have."""
        figures, count = self.figures.model_copy(deep=True), len(self.evaluation_prompts)
        budgeted = [FULL, *(k for k, spec in self.methods.items() if spec.psnr is None)]
        planned = [k for k in budgeted[1:] if self.methods[k].method not in BASELINES]
        for name in Figures.model_fields:
            part, where = getattr(figures, name), f"figures.{name}"
            if "budget" in type(part).model_fields:
                small = name in ("strip", "samples")
                part.budget = part.budget or (min(self.budgets) if small else self.middle_budget)
                _one_of(f"{where}.budget", part.budget, self.budgets)
            if getattr(part, "prompts", None) is not None:
                part.prompts = _spread(f"{where}.prompts", part.prompts, count)
        samples, gallery, trajectory = figures.samples, figures.gallery, figures.trajectory
        gallery.budgets = gallery.budgets or self.budgets
        trajectory.label = trajectory.label or next(iter(planned), None)
        for key, named, allowed in (
            ("pareto.highlight", figures.pareto.highlight, [*self.methods]),
            ("samples.methods", samples.methods or [], budgeted),
            ("gallery.budgets", gallery.budgets, self.budgets),
            ("trajectory.label", [trajectory.label] if planned else [], planned),
            ("calibration.factors", figures.calibration.factors, [*self.ablation]),
        ):
            for i, one in enumerate(named):
                _one_of(f"figures.{key}.{i}" if len(named) > 1 else f"figures.{key}", one, allowed)
        for factor in figures.calibration.factors:
            values = [*self.ablation[factor].values.values()]
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise fault(
                    "figures.calibration.factors",
                    f"the values of {factor!r} are not all numbers of runs: {values}",
                )
        if isinstance(samples.zoom, list):
            left, top, size = samples.zoom
            height, width = self.arguments.height or math.inf, self.arguments.width or math.inf
            if size < 1 or left + size > width or top + size > height:
                raise fault(
                    "figures.samples.zoom",
                    f"{samples.zoom} (left, top, size) does not lie in an image of {width} x "
                    f"{height} pixels",
                )
        self.figures = figures


def load(given: Mapping) -> Config:
    """Return the configuration that a mapping states, with its defaults.

    Args:
        given: as read from YAML; it is not changed.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
        FileNotFoundError: a prompt file is missing.
        ValueError: a prompt file is faulty, or calibration and evaluation share prompts.
    """
    try:
        _check_texts(given)
    except RecursionError as error:
        raise ConfigError("the configuration holds itself, or is nested too deeply") from error
    try:
        return Config.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError("; ".join(_explained(error, given))) from None


def _check_texts(values: object, where: str = "the configuration") -> None:
    """Refuse keys that are no text, as YAML's `1:` and `no:` are not, and curly brackets.

    Snakemake takes a text in curly brackets for a wildcard, wherever it meets one.
    """
    if isinstance(values, str) and re.search(r"[{}\0]", values):
        raise ConfigError(f"{where}: {_shown(values)} is not allowed; it has a curly bracket")
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the key {key!r} is no text; put it in quotes")
        _check_texts(key, where)
        _check_texts(value, key if where == "the configuration" else f"{where}.{key}")
    for i, value in enumerate(values) if isinstance(values, list) else ():
        _check_texts(value, f"{where}.{i}")


def _calls(path: str, count: int | None = None) -> list[dict[str, Any]]:
    """Return the calls of a prompt file, all of which take the same steps."""
    calls = read_calls(path, count)
    for number, call in enumerate(calls, start=1):
        for name in ("num_inference_steps", "timesteps", "sigmas"):
            if name in call:
                raise ValueError(
                    f"{path}, prompt {number}: {name} is the same for all prompts: state it under "
                    "`arguments` in the configuration"
                )
    return calls


def _prompts(path: str, count: int | None = None) -> list[str]:
    """Return what says of each call of a prompt file all that is its own."""
    return [described(call) for call in _calls(path, count)]


def _one_of(key: str, name: object, allowed: Iterable, what: str = "") -> None:
    """Raise the error of a name that is not among those allowed, and say what these are."""
    allowed = [*allowed]
    if name not in allowed:
        of = f"the {what}, " if what else ""
        raise fault(key, f"{name!r} is not one of {of}{_hint(name, allowed, plain=True)}")


def _spread(key: str, shown: int | list[int], count: int) -> list[int]:
    """Return the indices of the prompts that a figure shows, of so many prompts."""
    if isinstance(shown, int):
        shown = min(shown, count)
        return [i * count // shown for i in range(shown)]
    for index in shown:
        if index >= count:
            raise fault(
                key, f"{index} is none of the {count} evaluation prompts, which count from 0"
            )
    return shown


# ---- Messages


def _explained(error: ValidationError, given: Mapping) -> Iterator[str]:
    """Yield a sentence for every key with a mistake: the key, its value, what is allowed."""
    by_key: dict[tuple[str, str], list] = {}
    for mistake in error.errors(include_url=False):
        key = ".".join(_key(mistake["loc"], given))
        # Each key that is missing is a mistake of its own.
        missing = mistake["loc"][-1] if mistake["type"] == "missing" else ""
        by_key.setdefault((key, missing), []).append(mistake)
    for (key, _), mistakes in by_key.items():
        first = mistakes[0]
        kind, context = first["type"], first.get("ctx", {})
        if kind == "fault":
            yield f"{key}.{context['key']}".lstrip(".") + f": {context['text']}"
        elif kind == "extra_forbidden":
            *parents, name = _key(first["loc"], given)
            allowed = _fields_at(parents)
            place = f"{'.'.join(parents)}: " if parents else ""
            yield f"{place}unknown key {name!r}; {_hint(name, allowed)}"
        elif kind == "missing":
            yield f"{key}.{first['loc'][-1]}".lstrip(".") + ": missing; it must be stated"
        elif kind == "value_error" and not key:
            yield str(context["error"])
        else:
            if first["loc"][-1:] == ("[key]",):
                key = key.removesuffix(f".{first['input']}")
            rules = dict.fromkeys(_rule(mistake) for mistake in mistakes)
            yield f"{key}: {_shown(first['input'])} is not allowed; it must {' or '.join(rules)}"


def _key(loc: Sequence, given: Any) -> list[str]:
    """Return the keys of a place as far as the configuration has them, without types of unions."""
    keys: list[str] = []
    for part in loc:
        if part == "[key]":
            break
        try:
            given = given[part]
        except (KeyError, IndexError, TypeError):
            break
        keys.append(str(part))
    return keys


def _fields_at(keys: Sequence[str]) -> list[str]:
    """Return the keys that are allowed at a place of the configuration."""
    part: Any = Config
    for key in keys:
        fields = getattr(part, "model_fields", None)
        part = fields[key].annotation if fields is not None else (get_args(part) or [None])[-1]
    return [*getattr(part, "model_fields", ())]


def _rule(mistake: Mapping) -> str:
    """Return what a value must do, in words that follow "it must"."""
    context = mistake.get("ctx", {})
    if mistake["type"] == "value_error":
        return str(context["error"])
    if mistake["type"] == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return f"be one of {names}{_guess(mistake['input'], names)}"
    if mistake["type"] == "string_pattern_mismatch":
        return f"match {context['pattern']}"
    return re.sub(r"^\w+ should |( after validation)", "", mistake["msg"])


def _hint(name: object, allowed: Sequence, plain: bool = False) -> str:
    """Return the names that are allowed, after the one that was probably meant."""
    names = f"{[*allowed]}{_guess(name, allowed)}"
    return names if plain else f"there are {names}" if allowed else "there are none"


def _guess(name: object, allowed: Iterable) -> str:
    known = {str(one).lower(): one for one in allowed}
    close = difflib.get_close_matches(str(name).lower(), known, 1)
    return f"; did you mean {known[close[0]]!r}?" if close and isinstance(name, str) else ""


def _shown(value: object) -> str:
    """Return a value as it was written, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
