# SPDX-License-Identifier: Apache-2.0
"""What listing the plugins costs: the command `ipu plugins` as a process, beside an empty Python process.

Aim: under 0.5 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from results import report

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "ipu plugins": [sys.executable, "-m", "ipu_core.cli", "plugins"],
}


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    rows = {name: {"seconds": sorted(values)[len(values) // 2], "runs": options.runs} for name, values in times.items()}
    report("plugin_listing", rows, save=options.save)


if __name__ == "__main__":
    main()
