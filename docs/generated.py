"""What the documentation has of the code itself; `conf.py` puts it in.

A line `<!-- generated: NAME -->` of a page is replaced by what the function NAME returns.
"""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import jinja2
import yaml

from eigencache.cli import COMMANDS, parser
from eigencache.methods import METHODS
from eigencache.metrics import METRICS
from reproduction.config import Config
from reproduction.experiment import Experiment
from reproduction.figures import _table

ROOT = Path(__file__).parents[1]

PUBLIC = ("eigencache", "eigencache.schedules", "eigencache.predictors")
EXPERIMENTS = ("config.yaml", "workflow/config/ablation.yaml")


def filled(page: str) -> str:
    """Return a page with the generated parts in place of their marks."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda mark: MAKERS[mark[1]](), page)


def commands() -> str:
    """Return the help text of `eigencache` and of every subcommand."""
    os.environ["COLUMNS"] = "96"
    return "\n".join(_help(name) for name in ("", *COMMANDS))


def _help(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        parser().parse_args([*command.split(), "--help"])
    title = f"eigencache {command}".strip()
    return f"## `{title}`\n\n```text\n{printed.getvalue().strip()}\n```\n"


def configuration() -> str:
    """Return a table of the keys of every part of the configuration, from its pydantic models."""
    schema = Config.model_json_schema()
    parts = {"": schema} | dict(_parts(schema, schema["$defs"], ""))
    return "\n".join(_part(where, part) for where, part in parts.items())


def _parts(part: Mapping, known: Mapping, where: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the parts below a part of the schema, each with the key that it stands at."""
    for name, value in part.get("properties", {}).items():
        below, key = value, f"{where}{name}"
        if entries := _entries(value):
            below, key = entries, f"{where}{name}.LABEL"
        if "$ref" in below:
            found = known[below["$ref"].rpartition("/")[2]]
            yield key, found
            yield from _parts(found, known, f"{key}.")


def _entries(value: Mapping) -> Mapping | None:
    """Return the schema of what the labels of a mapping stand for; None for other values."""
    patterns = [*value.get("patternProperties", {}).values()]
    entries = patterns[0] if patterns else value.get("additionalProperties")
    return entries if isinstance(entries, dict) else None


def _part(where: str, part: Mapping) -> str:
    told = f"{part['description']}\n\n" if where else ""
    rows = [
        f"| `{name}` | {_kind(value)} | {_default(name, value, part)} | "
        f"{' '.join(value.get('description', '').split())} |"
        for name, value in part["properties"].items()
    ]
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return f"## {where or 'Top level'}\n\n{told}{head}" + "\n".join(rows) + "\n"


def _default(name: str, value: Mapping, part: Mapping) -> str:
    if name in part.get("required", ()):
        return "required"
    default = value.get("default")
    return "" if isinstance(default, dict) else f"`{_plain(default)}`"


def _plain(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )


def _kind(value: Mapping) -> str:
    """Return what a value may be, in words, from its JSON schema."""
    if "$ref" in value:
        return "see below"
    if "anyOf" in value:
        return " or ".join(_kind(one) for one in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    names = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`"}
    told = names.get(kind, kind)
    if kind == "null":
        return "`null`"
    if kind == "array":
        return f"list of {_kind(value.get('items', {}))}"
    if kind == "object":
        below = _entries(value)
        return f"names to {_kind(below)}" if below and "$ref" not in below else "see below"
    for key, words in (
        ("minimum", "at least {}"), ("exclusiveMinimum", "above {}"), ("maximum", "at most {}"),
        ("exclusiveMaximum", "below {}"), ("multipleOf", "a multiple of {}"),
    ):  # fmt: skip
        if key in value:
            told += ", " + words.format(value[key])
    return told


def figures() -> str:
    """Return the figures of the default experiment and of the ablations, with their captions."""
    told: dict[str, str] = {}
    home = Path.cwd()
    os.chdir(ROOT)  # prompt files are named from there
    try:
        for path in EXPERIMENTS:
            config = yaml.safe_load(Path(path).read_text())
            experiment = Experiment(config)
            for name, figure in _table.figures(experiment).items():
                if name not in told:
                    told[name] = _figure(name, figure.title, config)
    finally:
        os.chdir(home)
    return "\n".join(told.values())


def _figure(name: str, title: str, config: Mapping) -> str:
    caption = (ROOT / f"workflow/report/{name}.rst").read_text()
    caption = jinja2.Template(caption).render(snakemake=SimpleNamespace(config=config))
    caption = re.sub(r"\\ :sub:`(\w+)`", r"<sub>\1</sub>", caption).replace("``", "`")
    target = f"figures/{config['experiment']}/{name}.pdf"
    heading = name if title in (name, f"{name}s") else f"{name}: {title}"
    picture = f"images/{name}.webp"
    shown = f"![{title}]({picture})\n\n" if (ROOT / "docs" / picture).is_file() else ""
    return f"## {heading}\n\n`{target}`\n\n{shown}{caption}\n"


def methods() -> str:
    """Return a table of the methods: their parts, their options and where they were published."""
    rows = [
        f"| `{name}` | {method.schedule.__name__} | {method.predictor.__name__} | {method.tap} | "
        f"{', '.join(f'`{option}`' for option in method.options)} | {method.cite} |"
        for name, method in METHODS.items()
    ]
    head = "| method | schedule | predictor | tap | options | source |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def metrics() -> str:
    """Return a table of the metrics."""
    rows = [
        f"| `{name}` | {metric.label} | {'higher' if metric.higher else 'lower'} |"
        for name, metric in METRICS.items()
    ]
    return "| metric | label | better is |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def experiments() -> str:
    """Return a table of the configurations of workflow/config: what each says of itself."""
    rows = []
    for path in sorted((ROOT / "workflow/config").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        told = re.match(r"(?:# yaml-language-server.*\n)?((?:# .+\n)+)", text)
        steps = config["arguments"]["num_inference_steps"]
        about = " ".join(told[1].replace("# ", "").split()) if told else ""
        rows.append(f"| `{path.relative_to(ROOT)}` | `{config['model']}` | {steps} | {about} |")
    return "| configuration | model | steps | what |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def names() -> str:
    """Return the directives that document every public name of the package and of its parts."""
    told = []
    for module in map(importlib.import_module, PUBLIC):
        summary = (module.__doc__ or "").partition("\n")[0]
        told.append(f"## {module.__name__}\n\n{summary}\n")
        public = {name: getattr(module, name) for name in module.__all__}
        for name, one in sorted(public.items(), key=lambda item: _rank(item[1])):
            if callable(one):
                kind = ("autofunction", "autoclass", "autoexception")[_rank(one)]
                directive = f".. {kind}:: {module.__name__}.{name}"
                told.append(f"```{{eval-rst}}\n{directive}\n```\n")
    return "\n".join(told)


def _rank(one: object) -> int:
    """Return the place of functions, classes and errors on a page."""
    return isinstance(one, type) + (isinstance(one, type) and issubclass(one, Exception))


MAKERS = {
    f.__name__: f for f in (commands, configuration, experiments, figures, methods, metrics, names)
}
