"""Tables that go on where they were stopped, and the command line of benchmarks that fill them."""

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def command_line(description: str | None) -> argparse.Namespace:
    """Return the table to fill, `out`, and the folders of the models, `models`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    return parser.parse_args()


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows at the end of a table, each as soon as it is there."""
    begun = bool(read(path))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not begun:
            writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
