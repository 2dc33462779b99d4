# SPDX-License-Identifier: Apache-2.0
"""GPT-2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

GPT2 = Family(
    model_type="gpt2",
    package="ipu_models_seq2seq",
    layout=("wte", "wpe", "h.*", "ln_f"),
    models=(
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2DoubleHeadsModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2ForQuestionAnswering",
    ),
    tiny={
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 2,
        "vocab_size": 99,
        "n_positions": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    sample="ipu_models_seq2seq.samples:with_choices",
)
