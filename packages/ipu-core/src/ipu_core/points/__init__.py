# SPDX-License-Identifier: Apache-2.0
"""Named activations of a model, read and written while it runs: in one layout whatever the architecture.

::

    from ipu_core import inference_model, points

    executor = inference_model(model, activations=["blocks.*.attn.hook_pattern"])
    pattern = executor(input_ids=ids).activations["blocks.0.attn.hook_pattern"]  # [batch head q_pos k_pos]

docs/points.md has the names, and those of TransformerLens and nnsight beside them.
"""

from __future__ import annotations

from ..plugins.point import Point
from .cached_run import run_with_cache
from .interventions import Intervention, given, steer
from .places import table

__all__ = ["Intervention", "Point", "given", "run_with_cache", "steer", "table"]
