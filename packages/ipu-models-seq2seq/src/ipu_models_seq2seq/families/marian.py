# SPDX-License-Identifier: Apache-2.0
"""Marian: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bart import LAYOUT, TINY

MARIAN = Family(
    model_type="marian",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=("MarianModel", "MarianMTModel", "MarianForCausalLM"),
    tiny={**TINY, "decoder_vocab_size": 99, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1},
    edits=("ipu_models_seq2seq.edits:MARIAN",),
)
