"""Fuzz the readers for some minutes: `python tests/fuzz.py --minutes 10`."""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest


def main() -> int:
    """Run tests/core/test_fuzz.py again and again, from new seeds; 1 at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    seed = time.time_ns() % 2**31
    os.environ["FUZZ"] = "long"  # the profile of its tests
    while time.monotonic() < end:
        print(f"seed {seed}", flush=True)
        options = ["-q", "-x", f"--hypothesis-seed={seed}"]
        if pytest.main([str(Path(__file__).with_name("core") / "test_fuzz.py"), *options]):
            return 1
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
