# SPDX-License-Identifier: Apache-2.0
"""Model types that transformers no longer has, declared as names: nothing is imported."""

from __future__ import annotations

from ipu_core import Architecture

XLM_PROPHETNET = Architecture(
    model_type="xlm-prophetnet",
    config="ipu_models_seq2seq.architectures.xlm_prophetnet:XLMProphetNetConfig",
    models={
        "AutoModel": "ipu_models_seq2seq.architectures.xlm_prophetnet:XLMProphetNetModel",
        "AutoModelForSeq2SeqLM": (
            "ipu_models_seq2seq.architectures.xlm_prophetnet:XLMProphetNetForConditionalGeneration"
        ),
        "AutoModelForCausalLM": "ipu_models_seq2seq.architectures.xlm_prophetnet:XLMProphetNetForCausalLM",
    },
)
CODE_LLAMA = Architecture(model_type="code_llama", config="transformers:LlamaConfig")

ARCHITECTURES = (XLM_PROPHETNET, CODE_LLAMA)
