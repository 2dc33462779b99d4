# SPDX-License-Identifier: Apache-2.0
"""What a family of a transformers type would declare, found by looking at tiny models of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers

from .._transformers import class_with_head
from ..config.ipu_config import IPUConfig
from ..errors import nearest
from ..lowering import capture_model
from ..model.pipelined import to_pipelined
from ..partition.layout import layout
from ..plugins.registry import installed
from ..samples import sample_batch

HEADS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForCTC",
)
# Sizes by the names that configurations have for them.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys((*LAYERS, "num_decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    "rotary_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    "vocab_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
LENGTH = 16
WHAT_TO_DO = "give sizes that fit one another with --set, or write the family by hand"
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def facts_of(model_type: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return `layout`, `models`, `tiny` and `num_layers` of the family of a type; `values` are tiny ones to take.

    Raises:
        ValueError: transformers has no such type, a plugin declares it, or no model of it can be made so small.
    """
    if model_type not in transformers.CONFIG_MAPPING:
        known = list(transformers.CONFIG_MAPPING.keys())
        raise ValueError(
            f"transformers has no model type `{model_type}`{nearest(model_type, known)}: give one with "
            "--model-type, or --own for an architecture of your own"
        )
    _refuse_declared(model_type)
    config = transformers.AutoConfig.for_model(model_type)
    tiny = {**tiny_of(config), **(values or {})}
    classes = _classes(type(config), tiny)
    layers = [getattr(config, name) for name in LAYERS if isinstance(getattr(config, name, None), int)]
    return {
        "layout": layout_of(classes[0], tiny),
        "models": tuple(cls.__name__ for cls in classes),
        "tiny": tiny,
        "num_layers": max(layers, default=2),
    }


def _refuse_declared(model_type: str) -> None:
    owner = next((p.name for p in installed().plugins if any(f.model_type == model_type for f in p.families)), None)
    if owner is not None:
        raise ValueError(f"the plugin `{owner}` declares `{model_type}` already: choose another type, or --own")


def tiny_of(config: Any) -> dict[str, Any]:
    """Return the values that make a configuration tiny, of those that it has itself."""
    there = config.to_dict()
    tokens = {name for name in TINY if name.endswith("_token_id")}
    return {
        name: value
        for name, value in TINY.items()
        if name in there and (name in tokens or isinstance(there[name], int))
    }


def _classes(config_class: type[Any], tiny: dict[str, Any]) -> list[type[Any]]:
    """Return the classes of a type that can be made tiny.

    Raises:
        ValueError: none can.
    """
    with refusing(f"no tiny `{config_class.model_type}` can be made"):
        config = config_class(**tiny)
    named = [cls for head in HEADS if (cls := class_with_head(getattr(transformers, head), config)) is not None]
    found, reason = [], "it has no class for any of the auto classes that are known here"
    for cls in dict.fromkeys(named):
        try:
            with torch.device("meta"):
                cls(config_class(**tiny))
            found.append(cls)
        except Exception as error:  # of whatever a model's constructor asks of its sizes
            reason = f"`{cls.__name__}` raised {type(error).__name__}: {error}"
    if not found:
        raise ValueError(f"no tiny `{config.model_type}` can be made: {reason}: {WHAT_TO_DO}")
    return found


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise what goes wrong inside the block, in whatever a model is made of, as a ValueError of one line.

    Raises:
        ValueError: with what to do.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}: {WHAT_TO_DO}") from error


def layout_of(cls: type[Any], tiny: dict[str, Any]) -> tuple[str, ...]:
    """Return the layout of a class as it runs, layers as patterns.

    Raises:
        ValueError: its forward is not one static graph.
    """
    with refusing(f"the layout of `{cls.__name__}` cannot be found"):
        model = to_pipelined(cls(cls.config_class(**tiny)), IPUConfig())
        batch = sample_batch(model, batch_size=2, length=LENGTH, labels=False)
        captured = capture_model(model, IPUConfig().for_inference(), batch)
        entries = layout(model, None, captured).entries
    return tuple(dict.fromkeys(_patterns([(entry.path, entry.repeated) for entry in entries])))


def _patterns(entries: list[tuple[str, bool]]) -> Iterator[str]:
    for path, is_layer in entries:
        path = path.partition("@")[0]
        yield _NUMBER.sub(".*", path) if is_layer else path
