# SPDX-License-Identifier: Apache-2.0
"""`DecodeKernels`: what native code offers a decode step, as graph passes and the operators they put in.

Another library, or an accelerator, offers the same with a value of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..compile.disk_cache import ExecutableCache
from ..compile.native import NO_OPERATORS, Operators
from ..plugins.family import load as load_name
from .build import OPERATORS, can_be_loaded, load_kernels
from .fuse_rms_norm import with_norms
from .ops import with_decode_attention, with_gemv

logger = logging.getLogger(__name__)
GraphPass = Callable[[torch.fx.GraphModule], torch.fx.GraphModule]


@dataclass(frozen=True, kw_only=True)
class DecodeKernels:
    """The function list: each pass returns the graph it is given where it has nothing to offer.

    Attributes:
        products: few rows of activations times a weight, quantized or not, become one operator.
        norms: the operations of an RMS norm become torch's operator.
        attention: attention of one query becomes one operator.
        operators: those that the passes put in, for the compiler.
        load: have the code of the operators in this process, from a cache or built.
        compiles_all: whether parts without such products are compiled too.
    """

    products: GraphPass
    norms: GraphPass
    attention: GraphPass
    operators: Operators
    load: Callable[[ExecutableCache], object]
    compiles_all: bool = False

    def are_called(self, program: torch.fx.GraphModule) -> bool:
        """Return whether a graph calls one of the operators."""
        targets = {load_name(name) for name in self.operators}
        return any(node.target in targets for node in program.graph.nodes)


def _unchanged(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return program


NATIVE = DecodeKernels(
    products=with_gemv,
    norms=with_norms,
    attention=with_decode_attention,
    operators=OPERATORS,
    load=load_kernels,
)
TORCH = DecodeKernels(
    products=_unchanged, norms=with_norms, attention=_unchanged, operators=NO_OPERATORS, load=lambda cache: None
)
# Of a card torch's compiler makes all kernels but those of the products, which are torch's.
CARDS = replace(TORCH, compiles_all=True)


def decode_kernels(cache: ExecutableCache) -> DecodeKernels:
    """Return the kernels of this machine, torch's own operators, with one warning, where nothing can build them."""
    if can_be_loaded(cache):
        return NATIVE
    _warn_once()
    return TORCH


@functools.cache
def _warn_once() -> None:
    logger.warning(
        "there is no C++ compiler (`g++ --version`, or another one that the variable CXX names): decode steps run "
        "torch's own operators, and are not compiled, which is slower"
    )
