"""Write the JSON schema of the configuration for editors: workflow/schemas/config.schema.json.

Run it again after an edit of reproduction/config.py; a test compares the file with the models.
"""

import argparse
import json
from pathlib import Path

from eigencache._files import replacing
from reproduction.config import Config

SCHEMA = Path(__file__).parents[2] / "schemas/config.schema.json"


def text() -> str:
    """Return the schema as it is written."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Config.model_json_schema(), indent=1) + "\n"


def main() -> None:
    """Write the schema to the place that config.yaml names, or to another."""
    parser = argparse.ArgumentParser("schema", description=__doc__)
    parser.add_argument("--out", type=Path, default=SCHEMA, help="by default %(default)s")
    with replacing(parser.parse_args().out) as part:
        part.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
