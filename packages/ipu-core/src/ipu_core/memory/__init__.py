# SPDX-License-Identifier: Apache-2.0
"""Bytes each IPU holds: parameters, activations in flight, and how to make them fit."""

from ..moved import name_moved_names

__getattr__ = name_moved_names(__name__, "ipu_core.memory.estimate")
