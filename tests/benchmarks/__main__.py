"""Speed against a floor measured in the same run.

    make bench                  or     python -m tests.benchmarks [-k part-of-a-name] [-o bench.json]

Each measurement is a module here with `measure(wanted)`, which yields rows {name, value, unit, reference, ratio}: what
was measured, in which unit, the floor beside it, and value / reference. Only ratios travel between machines.
"""

import argparse
import json
from pathlib import Path

from tests.benchmarks import loader, peers, ranks, shuffle, train_step

MODULES = (train_step, ranks, loader, shuffle, peers)


def main() -> None:
    """Measures, prints a table, writes the rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("-k", default="", help="only rows whose name contains this")
    parser.add_argument("-o", type=Path, default=Path("bench.json"), help="where the rows go")
    arguments = parser.parse_args()
    rows = []
    for module in MODULES:
        for row in module.measure(arguments.k):
            rows.append(row)
            line = "{name:40} {value:10.2f} {unit:4} floor {reference:10.2f}  ratio {ratio:6.2f}"
            print(line.format(**row), flush=True)
    arguments.o.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
