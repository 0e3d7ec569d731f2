"""Join the tables of all sources into data/benchmarks/peers.csv.

python -m benchmarks.peers.join TABLE.csv...
"""

import sys
from pathlib import Path

import pandas as pd

from benchmarks.tables import PEERS
from reproduction.tables.tables import write_table


def joined(tables: list[Path]) -> pd.DataFrame:
    """Return the rows of all tables; what a table does not have is left open."""
    return pd.concat([pd.read_csv(table) for table in tables], ignore_index=True)


if __name__ == "__main__":
    write_table(joined([Path(table) for table in sys.argv[1:]]), PEERS)
