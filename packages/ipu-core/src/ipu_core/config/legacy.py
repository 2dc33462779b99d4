# SPDX-License-Identifier: Apache-2.0
"""Keys of configuration files that are no options today: renamed, retired, and bookkeeping of other libraries."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import IncompatibleIPUConfigError, nearest
from .options import ATTRIBUTES, MANAGED, attribute_option

logger = logging.getLogger(__name__)

# Keys older releases of optimum-graphcore wrote. `IPUConfig` reads them and says once what they mean today.
RENAMED = {f"training_{name}": name for name in (*MANAGED, "gradient_accumulation_steps")}
RETIRED = {
    "sharded_execution_for_inference": "inference runs its stages one after another",
    "enable_half_first_order_momentum": "the optimiser you pass decides its own dtypes",
    "execute_encoder_on_cpu_for_generation": "encoder and decoder run on the engine",
    "profile_dir": "the engine measures its own timeline",
    "use_popdist": "processes are a matter of the engine",
    "decompose_grad_sum": "the schedule decides when gradients are added",
    "synthetic_data": "batches are always real",
    "parallelize_kwargs": "`parallelize` reads this configuration alone",
    "inference_parallelize_kwargs": "`parallelize` reads this configuration alone",
    "attn_matrix_target_mem_mb": "attention is not sliced by memory",
}
# What optimum and transformers write beside our own keys.
BOOKKEEPING = ("optimum_version", "transformers_version", "model_type", "_name_or_path", "_commit_hash")


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys of a configuration, old names included.

    Raises:
        IncompatibleIPUConfigError: a key that was never an option.
    """
    known: dict[str, Any] = {}
    for key, value in options.items():
        name = RENAMED.get(key, key)
        if attribute_option(name) is not None:
            known[name] = _plain_replication(name, value)
        elif key in RETIRED:
            if value:
                logger.warning("`%s` has no effect any more: %s", key, RETIRED[key])
        elif key not in BOOKKEEPING:
            raise IncompatibleIPUConfigError(
                f"`{key}` is not an option of IPUConfig{nearest(key, ATTRIBUTES) or ': ' + ', '.join(ATTRIBUTES)}"
            )
    return known


def _plain_replication(name: str, value: Any) -> Any:
    """Read the pod-keyed dictionaries that early releases wrote for the replication factors and a few others."""
    if not isinstance(value, dict):
        return value
    if "default" not in value:
        raise ValueError(f"`{name}={value}` is keyed by pod and has no `default`: give one number")
    logger.warning("`%s=%s` is keyed by pod: its `default`, %s, is used", name, value, value["default"])
    return value["default"]
