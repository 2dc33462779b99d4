# SPDX-License-Identifier: Apache-2.0
"""What native code depends on, and how a graph's own operators get into it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

# Operators that are no part of torch: the C symbols of each, as torch's inductor is told, by "module:name". Importing
# the module defines the operator; a process that compiles does so too.
Operators = Mapping[str, Sequence[str]]
NO_OPERATORS: Operators = MappingProxyType({})


@functools.cache
def native_facts() -> tuple[str, ...]:
    """Return everything a native build depends on; two machines with equal values can share a build."""
    versions = [importlib.metadata.version(package) for package in ("ipu-core", "torch")]
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    return (*versions, platform.machine(), torch.backends.cpu.get_cpu_capability(), processor)
