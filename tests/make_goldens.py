# SPDX-License-Identifier: Apache-2.0
"""Write `tests/golden/*.safetensors`: what transformers 4.57.6 gives for the model types it was the last to have.

In an environment with transformers 4.57.6 and torch 2.13::

    python tests/make_goldens.py

A file has a tiny model of drawn weights as it was saved (`weights.`), with its configuration, what it was called with
(`inputs.`) and what it gave (`outputs.`), and for a decoder with a cache the call that went on from it (`next_inputs.`,
`next_outputs.`). `packages/ipu-core/tests/golden.py` reads them.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

PACKAGES = Path(__file__).parent.parent / "packages"
HOMES = {"nezha": "ipu-models-bert", "mega": "ipu-models-bert", "xlm_prophetnet": "ipu-models-seq2seq"}
ALL = {"output_hidden_states": True, "output_attentions": True}
SIZES: dict[str, dict[str, Any]] = {
    "nezha": {
        **{"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 12, "max_position_embeddings": 32, "max_relative_position": 4},
    },
    "mega": {
        **{"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12},
        **{"ema_projection_size": 3, "shared_representation_size": 6, "nffn_hidden_size": 10, "max_positions": 32},
    },
    "xlm_prophetnet": {
        **{"vocab_size": 24, "hidden_size": 8, "num_encoder_layers": 2, "num_decoder_layers": 2},
        **{"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "encoder_ffn_dim": 12},
        **{"decoder_ffn_dim": 12, "max_position_embeddings": 32, "num_buckets": 8, "relative_max_distance": 16},
    },
}
DECODER = {"is_decoder": True, "bidirectional": False}
UNCACHED = {**DECODER, "use_cache": False}
# Of each file its class, what its configuration changes, and what it is called with beside ids and mask.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nezha_far": ("NezhaModel", {}, ALL),
    "nezha_near": ("NezhaModel", {"max_relative_position": 16}, {}),
    "nezha_decoder": ("NezhaModel", {"is_decoder": True, "use_cache": False}, {}),
    "nezha_types": ("NezhaModel", {}, {"token_type_ids": True}),
    "nezha_pretraining": ("NezhaForPreTraining", {}, {"labels": "tokens", "next_sentence_label": 2}),
    "nezha_masked_lm": ("NezhaForMaskedLM", {}, {"labels": "tokens"}),
    "nezha_next_sentence": ("NezhaForNextSentencePrediction", {}, {"labels": 2}),
    "nezha_sequence": ("NezhaForSequenceClassification", {"num_labels": 3}, {"labels": 3}),
    "nezha_regression": ("NezhaForSequenceClassification", {"num_labels": 1}, {"labels": 0.5}),
    "nezha_choice": ("NezhaForMultipleChoice", {}, {"choices": 3}),
    "nezha_tokens": ("NezhaForTokenClassification", {"num_labels": 3}, {"labels": "classes"}),
    "nezha_answers": ("NezhaForQuestionAnswering", {}, {"start_positions": 12, "end_positions": 12}),
    "mega_rotary": ("MegaModel", {}, ALL),
    "mega_simple": ("MegaModel", {"relative_positional_bias": "simple"}, {}),
    "mega_unpadded": ("MegaModel", {"attention_activation": "laplace"}, {"padded": False}),
    "mega_laplace": ("MegaModel", {"attention_activation": "laplace"}, {}),
    "mega_relu2": ("MegaModel", {"attention_activation": "relu2", "activation": "gelu"}, {}),
    "mega_chunks": ("MegaModel", {"use_chunking": True, "chunk_size": 4}, ALL),
    "mega_chunks_simple": (
        "MegaModel",
        {
            **{"use_chunking": True, "chunk_size": 4, "relative_positional_bias": "simple"},
            "attention_activation": "laplace",
        },
        {},
    ),
    "mega_one_chunk": ("MegaModel", {"use_chunking": True, "chunk_size": 16}, {}),
    "mega_truncated": ("MegaModel", {"truncation": 5}, {}),
    "mega_layernorm_after": (
        "MegaModel",
        {"normalization_type": "layernorm", "normalize_before_mega": False, "normalize_before_ffn": False},
        {},
    ),
    "mega_rmsnorm": ("MegaModel", {"normalization_type": "rmsnorm"}, {}),
    "mega_batchnorm": ("MegaModel", {"normalization_type": "batchnorm"}, {}),
    "mega_plain_norm": ("MegaModel", {"norm_affine": False}, {}),
    "mega_attention_alone": ("MegaModel", {"use_normalized_ffn": False, "nffn_hidden_size": 256}, {}),
    "mega_types": ("MegaModel", {"add_token_type_embeddings": True}, {"token_type_ids": True}),
    "mega_no_types": ("MegaModel", {"add_token_type_embeddings": True}, {}),
    "mega_decoder": ("MegaModel", UNCACHED, ALL),
    "mega_decoder_laplace": ("MegaModel", {**UNCACHED, "attention_activation": "laplace"}, {}),
    "mega_decoder_chunks": ("MegaModel", {**UNCACHED, "use_chunking": True, "chunk_size": 4}, {}),
    "mega_decoder_truncated": ("MegaModel", {**UNCACHED, "truncation": 5}, {}),
    "mega_cache": ("MegaForCausalLM", DECODER, {"padded": False, "next": True}),
    "mega_cache_simple": (
        "MegaForCausalLM",
        {**DECODER, "relative_positional_bias": "simple"},
        {"padded": False, "next": True},
    ),
    "mega_causal_lm": ("MegaForCausalLM", DECODER, {"labels": "tokens"}),
    "mega_masked_lm": ("MegaForMaskedLM", {}, {"labels": "tokens"}),
    "mega_masked_lm_alone": ("MegaForMaskedLM", {"add_lm_hidden_dense_layer": False}, {}),
    "mega_sequence": ("MegaForSequenceClassification", {"num_labels": 3}, {"labels": 3}),
    "mega_choice": ("MegaForMultipleChoice", {}, {"choices": 3}),
    "mega_tokens": ("MegaForTokenClassification", {"num_labels": 3}, {"labels": "classes"}),
    "mega_answers": ("MegaForQuestionAnswering", {}, {"start_positions": 12, "end_positions": 12}),
    "xlm_prophetnet_base": ("XLMProphetNetModel", {}, {**ALL, "use_cache": False}),
    "xlm_prophetnet_conditional": ("XLMProphetNetForConditionalGeneration", {}, {"labels": "tokens"}),
    "xlm_prophetnet_smoothed": (
        "XLMProphetNetForConditionalGeneration",
        {"eps": 0.1, "ngram": 3},
        {"labels": "tokens"},
    ),
    "xlm_prophetnet_one_gram": (
        "XLMProphetNetForConditionalGeneration",
        {"disable_ngram_loss": True},
        {"labels": "tokens"},
    ),
    "xlm_prophetnet_causal": ("XLMProphetNetForCausalLM", {}, {"labels": "tokens"}),
}
ROWS, LENGTH = 3, 12


def main() -> None:
    """Write every file."""
    for name in CASES:
        write(name)


def write(name: str) -> None:
    """Write the file of one case."""
    class_name, options, calls = CASES[name]
    family = next(family for family in HOMES if name.startswith(family))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = drawn(class_name, {**SIZES[family], **options}, generator)
    inputs = inputs_of(model, dict(calls), generator)
    with torch.no_grad():
        outputs = model(**inputs, **{key: value for key, value in calls.items() if key in (*ALL, "use_cache")})
    tensors = {**flat("inputs", inputs), **flat("outputs", outputs)}
    if calls.get("next"):
        following = {"input_ids": ids_of(generator, ROWS, 1), "attention_mask": torch.ones(ROWS, LENGTH + 1).long()}
        with torch.no_grad():
            after = model(**following, past_key_values=outputs.past_key_values)
        tensors |= {**flat("next_inputs", following), **flat("next_outputs", after)}
    tensors |= {f"weights.{key}": value for key, value in saved(model).items()}
    config = json.loads(model.config.to_json_string(use_diff=True)) | {"architectures": [class_name]}
    about = {
        "class": class_name,
        "config": json.dumps(config),
        "calls": json.dumps({key: value for key, value in calls.items() if key in (*ALL, "use_cache")}),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    path = PACKAGES / HOMES[family] / "tests" / "golden" / f"{name}.safetensors"
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata=about)
    print(f"{path.name}: {path.stat().st_size} bytes")


def drawn(class_name: str, values: dict[str, Any], generator: torch.Generator) -> Any:
    """Make a model whose weights, and statistics of norms, are drawn: what is zero or one at first hides mistakes."""
    cls = getattr(transformers, class_name)
    model = cls(cls.config_class(**values)).eval()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + (parameter.ndim == 1) * 0.5)
        for buffer_name, buffer in sorted(model.named_buffers()):
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    model.tie_weights()
    return model


def saved(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint: one of those that share their memory."""
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensors.setdefault(tensor.data_ptr(), (name, tensor))
    return dict(tensors.values())


def ids_of(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draw ids that are no special tokens."""
    return torch.randint(4, 24, shape, generator=generator)


def inputs_of(model: Any, calls: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Make the inputs of a case: rows of three lengths, unless they are not to be padded."""
    shape = (ROWS, calls["choices"], LENGTH) if "choices" in calls else (ROWS, LENGTH)
    inputs = {"input_ids": ids_of(generator, *shape)}
    lengths = torch.tensor([LENGTH, 7, 4] if calls.get("padded", True) else [LENGTH] * ROWS)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    inputs["attention_mask"] = mask.unsqueeze(1).expand(shape).clone() if "choices" in calls else mask
    if "choices" in calls:
        inputs["labels"] = torch.randint(0, calls["choices"], (ROWS,), generator=generator)
    if "token_type_ids" in calls:
        inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=generator)
    for label in ("labels", "next_sentence_label", "start_positions", "end_positions"):
        if label in calls:
            inputs[label] = labels_of(calls[label], mask, generator)
    if model.config.is_encoder_decoder and "labels" not in inputs:
        inputs["decoder_input_ids"] = ids_of(generator, ROWS, 7)
    return inputs


def labels_of(kind: Any, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw labels: ids or one of three classes for each token, values, or one of so many classes for each row."""
    if kind in ("tokens", "classes"):
        low, high = (4, 24) if kind == "tokens" else (0, 3)
        return torch.where(mask.bool(), torch.randint(low, high, mask.shape, generator=generator), -100)
    if isinstance(kind, float):
        return torch.randn(ROWS, generator=generator) * kind
    return torch.randint(0, kind, (ROWS,), generator=generator)


def flat(prefix: str, value: Any) -> dict[str, torch.Tensor]:
    """Name every tensor by its path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if value is None:
        return {}
    items = value.items() if hasattr(value, "items") else enumerate(value)
    return {name: tensor for key, part in items for name, tensor in flat(f"{prefix}.{key}", part).items()}


if __name__ == "__main__":
    main()
