# SPDX-License-Identifier: Apache-2.0
"""What this package declares to ipu-core."""

from __future__ import annotations

from ipu_core import Family, hookimpl, pipelined_in

from . import edited

STACKS = (
    "shared",
    "encoder.embed_tokens",
    "encoder.block.*",
    "encoder.final_layer_norm",
    "decoder.embed_tokens",
    "decoder.block.*",
    "decoder.final_layer_norm",
)
LAYOUT = (
    "shared",
    "encoder.embed_tokens",
    "encoder.embed_positions",
    "encoder.layernorm_embedding",
    "encoder.layers.*",
    "encoder.layer_norm",
    "decoder.embed_tokens",
    "decoder.embed_positions",
    "decoder.layernorm_embedding",
    "decoder.layers.*",
    "decoder.layer_norm",
)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
T5_TINY = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
BART_TINY = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

T5 = Family(
    model_type="t5",
    layout=STACKS,
    models=pipelined_in(
        "ipu_models_seq2seq.t5",
        "T5Model",
        "T5EncoderModel",
        "T5ForConditionalGeneration",
        "T5ForSequenceClassification",
        "T5ForTokenClassification",
        "T5ForQuestionAnswering",
    ),
    tiny=T5_TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END",),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

MT5 = Family(
    model_type="mt5",
    layout=STACKS,
    models=pipelined_in(
        "ipu_models_seq2seq.mt5",
        "MT5Model",
        "MT5EncoderModel",
        "MT5ForConditionalGeneration",
        "MT5ForSequenceClassification",
        "MT5ForTokenClassification",
        "MT5ForQuestionAnswering",
    ),
    tiny=T5_TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END",),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

BART = Family(
    model_type="bart",
    layout=LAYOUT,
    models=pipelined_in(
        "ipu_models_seq2seq.bart",
        "BartModel",
        "BartForConditionalGeneration",
        "BartForCausalLM",
        "BartForSequenceClassification",
        "BartForQuestionAnswering",
    ),
    tiny=BART_TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END", "ipu_models_seq2seq.edits:BART"),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

MBART = Family(
    model_type="mbart",
    layout=LAYOUT,
    models=pipelined_in(
        "ipu_models_seq2seq.mbart",
        "MBartModel",
        "MBartForConditionalGeneration",
        "MBartForCausalLM",
        "MBartForSequenceClassification",
        "MBartForQuestionAnswering",
    ),
    tiny=BART_TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END", "ipu_models_seq2seq.edits:MBART"),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

PEGASUS = Family(
    model_type="pegasus",
    layout=LAYOUT,
    models=pipelined_in(
        "ipu_models_seq2seq.pegasus",
        "PegasusModel",
        "PegasusForConditionalGeneration",
        "PegasusForCausalLM",
    ),
    tiny=BART_TINY,
    edits=("ipu_models_seq2seq.edits:PEGASUS",),
)

MARIAN = Family(
    model_type="marian",
    layout=LAYOUT,
    models=pipelined_in(
        "ipu_models_seq2seq.marian",
        "MarianModel",
        "MarianMTModel",
        "MarianForCausalLM",
    ),
    tiny={**BART_TINY, "decoder_vocab_size": 99, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1},
    edits=("ipu_models_seq2seq.edits:MARIAN",),
)

GPT2 = Family(
    model_type="gpt2",
    layout=("wte", "wpe", "h.*", "ln_f"),
    models=pipelined_in(
        "ipu_models_seq2seq.gpt2",
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

GPT_NEOX = Family(
    model_type="gpt_neox",
    layout=("embed_in", "layers.*", "final_layer_norm"),
    models=pipelined_in(
        "ipu_models_seq2seq.gpt_neox",
        "GPTNeoXModel",
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        "GPTNeoXForTokenClassification",
        "GPTNeoXForQuestionAnswering",
    ),
    tiny={**TINY, "pad_token_id": 0},
)

LLAMA = Family(
    model_type="llama",
    layout=("embed_tokens", "layers.*", "norm"),
    models=pipelined_in(
        "ipu_models_seq2seq.llama",
        "LlamaModel",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "LlamaForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
)

MISTRAL = Family(
    model_type="mistral",
    layout=("embed_tokens", "layers.*", "norm"),
    models=pipelined_in(
        "ipu_models_seq2seq.mistral",
        "MistralModel",
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        "MistralForTokenClassification",
        "MistralForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
)


FAMILIES = (T5, MT5, BART, MBART, PEGASUS, MARIAN, GPT2, GPT_NEOX, LLAMA, MISTRAL, *edited.FAMILIES)


@hookimpl
def ipu_model_families() -> tuple[Family, ...]:
    """Declare the families of this package."""
    return FAMILIES
