# SPDX-License-Identifier: Apache-2.0
"""Which modules run on which IPU: layout, cost, plan, cut."""

from ..moved import name_moved_names

__getattr__ = name_moved_names(__name__, "ipu_core.config.layers_per_ipu")
