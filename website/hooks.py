# SPDX-License-Identifier: Apache-2.0
"""What mkdocs is told: to write the folder it reads before it builds, and again when a page changes while it serves."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import stage


def on_pre_build(**_: Any) -> None:
    """Write the folder of pages anew."""
    stage.stage()
