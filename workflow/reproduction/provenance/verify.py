"""Verify: check every result again against its manifest, its images and models with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from eigencache._files import sha256
from reproduction.models.check import verified
from reproduction.provenance import manifest
from reproduction.provenance.manifest import ManifestError
from reproduction.tables.tables import altered_images, read_table

# The kinds of files that stages write, each with a manifest beside it.
KINDS = {".csv", ".parquet", ".md", ".tex", ".html", ".pdf", ".png", ".safetensors"}


@dataclass
class Report:
    """What was checked, and what was found.

    Attributes:
        results: how many results.
        images: those of their records, each with the hash it must have.
        models: how many models.
        absent: files that results were made from and that are not here to be checked.
        faults: a line each: what, where, what to do.
    """

    results: int = 0
    images: set[tuple[str, str]] = field(default_factory=set)
    models: int = 0
    absent: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def verify(places: Sequence[str]) -> Report:
    """Check the results at some places, and what they were made from as far as it is here.

    Args:
        places: results, manifests, or folders, of which all results below them. Paths in manifests
            are as the stages were given them, so the current folder must be the project's.
    """
    report, digest, known = Report(), cache(sha256), {}
    for place in places:
        found = sorted(_results(Path(place)))
        if not found:
            report.faults.append(f"{place}: no result with a manifest; state where results are")
        for path in found:
            try:
                known[path] = manifest.check(path, digest)
            except (OSError, ManifestError) as error:
                report.faults.append(str(error))
    report.results = len(known)
    for path, about in known.items():
        _check_origin(path, about, digest, report)
        if path.endswith(".csv"):
            _check_images(path, report)
    for model in sorted({model for about in known.values() for model in about["models"]}):
        _check_model(model, report)
    return report


def _results(place: Path) -> Iterator[str]:
    """Yield the results at a place, each once: those that have a manifest or are stated."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file())
        recorded = {
            file.with_suffix("")
            for file in files
            if file.suffix == ".json" and (file.with_suffix("").is_file() or _states_format(file))
        }
        # Where some results have manifests, the others of a stage's kinds have lost theirs.
        folders = {_folder(path, place) for path in recorded}
        lost = {file for file in files if _is_result(file) and _folder(file, place) in folders}
        yield from map(str, recorded | lost)
    elif place.suffix == ".json" and place.with_suffix("").suffix:
        yield str(place.with_suffix(""))
    elif place.is_file():
        yield str(place)


def _folder(file: Path, place: Path) -> tuple[str, ...]:
    """Return the folder of a file, as far as its experiment and the kind of its results."""
    return file.relative_to(place).parent.parts[:2]


def _is_result(file: Path) -> bool:
    """Whether a file is of a kind that stages write beside a manifest; images have none.

    A hidden file is what a killed job was writing (`eigencache._files.replacing`).
    """
    if file.name.startswith("."):
        return False
    inside = {parent.name for parent in file.parents}
    written = file.suffix in KINDS and not inside & {"images", "benchmarks", "models"}
    return written and file.name not in ("README.md", "report.html")  # the latter is Snakemake's


def _states_format(file: Path) -> bool:
    """Whether a JSON file without a result beside it is the manifest of one that is lost."""
    return manifest.FORMAT.encode() in file.read_bytes()


def _check_origin(path: str, about: dict, digest, report: Report) -> None:
    for source in manifest.changed(about, digest):
        report.faults.append(
            f"{path}: made from another {source} than the one there is now; if that is whole, "
            f"delete {path} and run again"
        )
    for source in (*about["inputs"], *about["sources"], *about["models"]):
        if not Path(source).is_file():
            report.absent.add(source)
        elif source in about["inputs"] and not manifest.manifest_path(source).is_file():
            report.faults.append(f"{source}: its manifest is gone; delete {source} and run again")


def _check_images(path: str, report: Report) -> None:
    try:
        records = read_table(path)
    except ValueError as error:
        report.faults.append(str(error))
        return
    if not {"image", "sha256"} <= set(records.columns):
        return
    images = list(zip(records["image"], records["sha256"], strict=True))
    new = records.loc[[image not in report.images for image in images]]  # shards list them too
    report.images.update(images)
    report.faults += altered_images(new)


def _check_model(model: str, report: Report) -> None:
    if not Path(model).is_file():
        return
    report.models += 1
    try:
        verified(model)
    except (OSError, ValueError) as error:
        report.faults.append(str(error))
