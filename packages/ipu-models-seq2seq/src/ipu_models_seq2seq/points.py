# SPDX-License-Identifier: Apache-2.0
"""Edits that hand tensors inside a forward to points: `Point.edits` of GPT-2, GPT-NeoX, Llama and Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipu_core.rewrites.source_edits import Change, Edit

VERSIONS = ">=5.23,<5.25"
BEFORE = ">=5.23,<5.24"
TAP = {"tap": "ipu_core.points.taps:tap"}
EAGER = {"attn_implementation": "eager"}

# Of attention functions, after the mask and before the softmax, and behind the softmax.
SCORES = 'attn_weights = tap(module, "hook_attn_scores", attn_weights)\n'
FLOAT32_SOFTMAX = "nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32)"
ROTATED = "query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)"
TAPPED_ROTATION = """
query_states = tap(self, "hook_rot_q", query_states)
key_states = tap(self, "hook_rot_k", key_states)
"""


def _edit(
    target: str, *changes: Change, digest: str, called_in: str = "", probe: Mapping[str, Any] | None = None
) -> Edit:
    return Edit(
        target=f"transformers.models.{target}",
        changes=changes,
        digest=digest,
        reason="points inside it, which no hook of a module reaches",
        versions=VERSIONS,
        probe=probe or {},
        called_in=f"transformers.models.{called_in}" if called_in else "",
        names=TAP,
    )


def _eager(module: str, cls: str, digest: str) -> Edit:
    """Return the edit of an eager attention that computes its softmax in float32."""
    softmax = f"attn_weights = {FLOAT32_SOFTMAX}.to(query.dtype)"
    pattern = f'attn_weights = tap(module, "hook_pattern", {FLOAT32_SOFTMAX}).to(query.dtype)'
    return _edit(
        f"{module}:eager_attention_forward",
        (softmax, SCORES + pattern),
        digest=digest,
        called_in=f"{module}:{cls}.forward",
        probe=EAGER,
    )


def _rotation(module: str, cls: str, digest: str, *, before_5_24: str = "") -> Edit:
    """Return the edit of an attention that rotates its queries and keys."""
    made = _edit(f"{module}:{cls}.forward", (ROTATED, ROTATED + TAPPED_ROTATION), digest=digest)
    return made.or_for(BEFORE, digest=before_5_24) if before_5_24 else made


def _middle(module: str, cls: str, norm: str, digest: str, *, before_5_24: str) -> Edit:
    """Return the edit of a layer that adds what attention gives to its input, before it keeps the sum."""
    kept = f"residual = hidden_states\nhidden_states = self.{norm}(hidden_states)"
    middle = 'hidden_states = tap(self, "hook_resid_mid", hidden_states)\n'
    made = _edit(f"{module}:{cls}.forward", (kept, middle + kept), digest=digest)
    return made.or_for(BEFORE, digest=before_5_24)


_GPT2 = "gpt2.modeling_gpt2"
_SOFTMAX = "attn_weights = nn.functional.softmax(attn_weights, dim=-1)"
_PATTERN = 'attn_weights = tap({0}, "hook_pattern", nn.functional.softmax(attn_weights, dim=-1))'
GPT2_ATTENTION = (
    _edit(
        f"{_GPT2}:eager_attention_forward",
        (_SOFTMAX, SCORES + _PATTERN.format("module")),
        digest="129bed278c889568",
        called_in=f"{_GPT2}:GPT2Attention.forward",
        probe=EAGER,
    ),
    _edit(
        f"{_GPT2}:GPT2Attention._upcast_and_reordered_attn",
        (_SOFTMAX, SCORES.replace("module", "self") + _PATTERN.format("self")),
        digest="892275b1441488b9",
        probe={**EAGER, "reorder_and_upcast_attn": True},
    ),
)
GPT2_MIDDLE = _middle(_GPT2, "GPT2Block", "ln_2", "e5c0606cdd84312b", before_5_24="f32ea126a704e9ba")

_NEOX = "gpt_neox.modeling_gpt_neox"
GPT_NEOX_ATTENTION = _eager(_NEOX, "GPTNeoXAttention", "0753449609246c91")
GPT_NEOX_ROTATION = _rotation(_NEOX, "GPTNeoXAttention", "4736227dba4498f7")
GPT_NEOX_MIDDLE = _edit(
    f"{_NEOX}:GPTNeoXLayer.forward",
    (
        "attn_output = attn_output + hidden_states",
        'attn_output = tap(self, "hook_resid_mid", attn_output + hidden_states)',
    ),
    digest="c8b4ed20c5a02418",
    probe={"use_parallel_residual": False},
)

_MIDDLE = {"digest": "0f51210a7ad82956", "before_5_24": "bbb355b50d4cd200"}
_LLAMA = "llama.modeling_llama"
LLAMA_ATTENTION = _eager(_LLAMA, "LlamaAttention", "8532f9f2bb394cf1")
LLAMA_ROTATION = _rotation(_LLAMA, "LlamaAttention", "69ccf756701d55b0", before_5_24="681cbdbd2d594ea3")
LLAMA_MIDDLE = _middle(_LLAMA, "LlamaDecoderLayer", "post_attention_layernorm", **_MIDDLE)

_MISTRAL = "mistral.modeling_mistral"
MISTRAL_ATTENTION = _eager(_MISTRAL, "MistralAttention", "8532f9f2bb394cf1")
MISTRAL_ROTATION = _rotation(_MISTRAL, "MistralAttention", "a0901d1dc8dd60f8", before_5_24="a663b9a020cc51c6")
MISTRAL_MIDDLE = _middle(_MISTRAL, "MistralDecoderLayer", "post_attention_layernorm", **_MIDDLE)
