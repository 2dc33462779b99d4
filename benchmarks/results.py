# SPDX-License-Identifier: Apache-2.0
"""Prints a benchmark's rows, and keeps them as a dated file with the versions they were measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def report(name: str, rows: Mapping[str, Mapping[str, Any]], *, save: bool) -> None:
    """Print one line a row; with `save`, write ``results/<date>-<name>.json``."""
    for row, values in rows.items():
        figures = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{name}: {row:<24} {figures}", flush=True)
    if save:
        today = datetime.date.today().isoformat()
        versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "ipu-core")}
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        content = {"date": today, "versions": versions, "machine": machine, "rows": rows}
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{today}-{name}.json").write_text(json.dumps(content, indent=2) + "\n")
