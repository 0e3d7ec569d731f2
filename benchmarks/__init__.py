"""What is measured beside the workflow. It uses the workflow's package, which is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
