# SPDX-License-Identifier: Apache-2.0
"""Pegasus: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bart import LAYOUT, TINY

PEGASUS = Family(
    model_type="pegasus",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=("PegasusModel", "PegasusForConditionalGeneration", "PegasusForCausalLM"),
    tiny=TINY,
    edits=("ipu_models_seq2seq.edits:PEGASUS",),
)
