# SPDX-License-Identifier: Apache-2.0
"""BERT-like encoders for ipu-core: `PipelinedBertForMaskedLM` and its like, made of `families`."""

from __future__ import annotations

from ipu_core import pipelined_classes, register_architectures
from ipu_core.plugins.package import keep_former_modules

from .architectures import ARCHITECTURES

register_architectures(*ARCHITECTURES)

__getattr__, __dir__ = pipelined_classes(__name__)

keep_former_modules(
    __name__,
    "albert",
    "bert",
    "deberta",
    "deberta_v2",
    "distilbert",
    "electra",
    "ibert",
    "longformer",
    "mpnet",
    "nystromformer",
    "reformer",
    "roberta",
)
