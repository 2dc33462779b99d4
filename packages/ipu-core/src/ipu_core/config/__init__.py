# SPDX-License-Identifier: Apache-2.0
"""What a user asks for: `IPUConfig`, its options, its files."""

from ..moved import name_moved_names

__getattr__ = name_moved_names(__name__, "ipu_core.config.ipu_config")
