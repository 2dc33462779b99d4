# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder and decoder models for ipu-core: `PipelinedT5Model` and its like, made of `families`."""

from __future__ import annotations

from ipu_core import pipelined_classes, register_architectures
from ipu_core.plugins.package import keep_former_modules

from .architectures import ARCHITECTURES

register_architectures(*ARCHITECTURES)

__getattr__, __dir__ = pipelined_classes(__name__)

keep_former_modules(
    __name__,
    "bart",
    "gpt2",
    "gpt_neox",
    "led",
    "llama",
    "m2m_100",
    "marian",
    "mbart",
    "mistral",
    "mt5",
    "nllb_moe",
    "pegasus",
    "prophetnet",
    "switch_transformers",
    "t5",
)
