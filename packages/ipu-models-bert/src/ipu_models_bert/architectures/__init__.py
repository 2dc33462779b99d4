# SPDX-License-Identifier: Apache-2.0
"""Architectures that transformers does not have, or no longer has, declared as names: nothing is imported."""

from __future__ import annotations

from ipu_core import Architecture

HEADS = ("MaskedLM", "SequenceClassification", "MultipleChoice", "TokenClassification", "QuestionAnswering")


def _with_heads(module: str, name: str, *heads: str) -> dict[str, str]:
    models = {f"AutoModelFor{head}": f"{module}:{name}For{head}" for head in (*HEADS, *heads)}
    return {"AutoModel": f"{module}:{name}Model", **models}


NEZHA = Architecture(
    model_type="nezha",
    config="ipu_models_bert.architectures.nezha:NezhaConfig",
    models=_with_heads("ipu_models_bert.architectures.nezha", "Nezha", "PreTraining", "NextSentencePrediction"),
    tokenizer="transformers:BertTokenizer",
)
MEGA = Architecture(
    model_type="mega",
    config="ipu_models_bert.architectures.mega_config:MegaConfig",
    models={
        **_with_heads("ipu_models_bert.architectures.mega", "Mega", "CausalLM"),
        "AutoModelForPreTraining": "ipu_models_bert.architectures.mega:MegaForMaskedLM",
    },
    tokenizer="transformers:RobertaTokenizer",
)
GROUPBERT = Architecture(
    model_type="groupbert",
    config="ipu_models_bert.groupbert:GroupBertConfig",
    models=_with_heads("ipu_models_bert.groupbert", "GroupBert", "PreTraining"),
    tokenizer="transformers:BertTokenizer",
)

ARCHITECTURES = (NEZHA, MEGA, GROUPBERT)
