# SPDX-License-Identifier: Apache-2.0
"""`poptorch.Options` of a configuration: what optimum-graphcore set for training and for inference."""

from __future__ import annotations

from typing import Any

from ipu_core import ExecutionConfig, IPUConfig

from ...engines.poptorch.options import option_calls
from ...engines.poptorch.worker import options_of
from .. import popart


def poplar_options(poptorch: Any, ipu_config: IPUConfig, view: ExecutionConfig) -> Any:
    """Return options of `poptorch`, a module, for one kind of run."""
    return options_of(poptorch, popart, option_calls(ipu_config, view, "AutoIncrement"))
