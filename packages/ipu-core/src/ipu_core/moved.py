# SPDX-License-Identifier: Apache-2.0
"""Modules that have moved: an import of the old path raises an error that names the new one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MOVED = {
    "accounts": "memory.in_flight",
    "adapted": "model.pipelined",
    "adapters": "peft",
    "advice": "memory.advice",
    "arrangement": "partition.shared_layers",
    "automatic": "memory.auto_partition",
    "cost": "partition.cost",
    "door": "validation",
    "engine.batch": "batch",
    "engine.cache": "compile.disk_cache",
    "engine.compile": "compile.stages",
    "engine.compilers": "compile.worker_pool",
    "engine.devices": "runtime.devices",
    "engine.dry_run": "memory.activations",
    "engine.engines": "engines.registry",
    "engine.executable": "compile.executable",
    "engine.executor": "executor",
    "engine.host": "runtime.interpreter",
    "engine.kernels": "kernels.build",
    "engine.lowering": "lowering",
    "engine.measure": "runtime.profiler",
    "engine.packed": "kernels.quantize_pass",
    "engine.residence": "runtime.device_placement",
    "engine.schedule": "schedule",
    "engine.straight": "runtime.replay",
    "engine.transfers": "runtime.transfers",
    "engine.weights": "runtime.weights",
    "footprint": "memory.search",
    "generation.program": "generation.decode_step",
    "graph.aliases": "capture.aliasing",
    "graph.capture": "capture.capture",
    "graph.cut": "partition.cut",
    "graph.few_rows": "kernels.ops",
    "graph.fingerprint": "capture.fingerprint",
    "graph.functions": "capture.autograd_functions",
    "graph.guards": "capture.guards",
    "graph.means": "capture.loss_terms",
    "graph.modules": "capture.graph_module",
    "graph.norms": "kernels.fuse_rms_norm",
    "graph.packed_weights": "kernels.quantization",
    "graph.passes": "capture.passes",
    "graph.ranges": "capture.index_bounds",
    "graph.read_rows": "capture.prune_unread_rows",
    "graph.refusal": "capture.diagnostics",
    "graph.sink": "kernels.sink_pass",
    "graph.split": "partition.stage_graph",
    "graph.store": "capture.serialization",
    "graph.watch": "capture.side_effects",
    "hardware": "config.device_memory",
    "holdings": "partition.parameters",
    "layout": "partition.layout",
    "loss": "capture.loss",
    "modeling": "model.pipelined",
    "options": "config.options",
    "planning": "partition.plan",
    "report.plan": "report.plan_svg",
    "report.progress": "progress",
    "rewrites.configured": "rewrites.from_config",
    "rewrites.edits": "rewrites.source_edits",
    "rewrites.grid": "rewrites.packed_grid",
    "rewrites.masked": "rewrites.masked_lm_head",
    "rewrites.packed": "rewrites.sequence_packing",
    "rewrites.probe": "rewrites.packing_probe",
    "rewrites.review": "rewrites.edit_review",
    "rewrites.serialized": "rewrites.sharded_vocabulary",
}
_PACKAGES = frozenset(name.partition(".")[0] for name in MOVED if "." in name)


class _MovedFinder(MetaPathFinder):
    """The last finder: it is asked for what no other one found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != __package__:
            return None
        if name in MOVED:
            raise ImportError(f"`{fullname}` is now `{package}.{MOVED[name]}`", name=fullname)
        if name in _PACKAGES:
            # A package that is gone is nothing but the way to the modules it had.
            return ModuleSpec(fullname, None, is_package=True)
        return None


def name_moved_modules() -> None:
    """Have imports of the old paths raise, once a process."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


def name_moved_names(package: str, module: str) -> Callable[[str], Any]:
    """Return a module `__getattr__` for a package that was a module: names it had are in `module` now.

    ::

        __getattr__ = name_moved_names(__name__, "ipu_core.config.ipu_config")

    Raises:
        ImportError: when a name is looked up, other than those Python itself looks for.
    """

    def lookup(name: str) -> Any:
        if name.startswith("_") or find_spec(f"{package}.{name}") is not None:  # Python asks before it imports one
            raise AttributeError(f"module `{package}` has no attribute `{name}`")
        raise ImportError(f"`{package}` is a package now: what it had is in `{module}`", name=package)

    return lookup
