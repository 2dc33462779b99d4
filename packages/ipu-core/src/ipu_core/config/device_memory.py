# SPDX-License-Identifier: Apache-2.0
"""The devices a plan can be held against, and how much memory each has."""

from __future__ import annotations

import os
from pathlib import Path

HOST = "host"
# In-processor memory of one IPU: 1472 tiles of 624 KiB, sold as 900 MB (Graphcore's M2000 and Bow-2000 data sheets).
IPU_MEMORY = {"gc200": 900_000_000, "bow": 900_000_000}
DEVICES = (*IPU_MEMORY, HOST)


def memory_limit(device: str | int) -> int:
    """Return the bytes of a device: "gc200" or "bow" of one IPU, "host" of this machine; a number is its own limit."""
    if isinstance(device, int):
        return device
    return _host_memory() if device == HOST else IPU_MEMORY[device]


def _host_memory() -> int:
    """Return the memory of this machine, or of the control group this process runs in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(physical, int(text)) if text.isdigit() else physical
