# SPDX-License-Identifier: Apache-2.0
"""Speech models for ipu-core: `PipelinedWav2Vec2ForCTC` and its like, made of `families`."""

from __future__ import annotations

from ipu_core import pipelined_classes
from ipu_core.plugins.package import keep_former_modules

__getattr__, __dir__ = pipelined_classes(__name__)

keep_former_modules(
    __name__,
    "hubert",
    "wav2vec2",
    "whisper",
)
