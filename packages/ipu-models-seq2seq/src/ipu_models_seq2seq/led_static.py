# SPDX-License-Identifier: Apache-2.0
"""What makes LED a static graph: its source edits, and what it asks of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ipu_core.config.execution_config import ExecutionConfig
from ipu_core.rewrites.global_attention import static_global_attention
from ipu_core.rewrites.layerdrop import REASON
from ipu_core.rewrites.source_edits import Edit

VERSIONS = ">=5.23,<5.25"
LED = "transformers.models.led.modeling_led"
DECODER, DECODER_BEFORE_5_24 = "67e3ac5352eea70c", "f8f6a5750397d398"
CHOSEN = "layer_input = hidden_states\n" + (
    "is_dropped = torch.rand([]) < self.layerdrop if self.training and self.layerdrop > 0.0 else None"
)
PICKED = """
if is_dropped is not None:
    hidden_states = torch.where(is_dropped.to(hidden_states.device), layer_input, hidden_states)
"""
CALL = """
layer_outputs = encoder_layer(
    hidden_states,
    attention_mask=attention_mask,
    is_index_masked=is_index_masked,
    is_index_global_attn=is_index_global_attn,
    is_global_attn=is_global_attn,
    output_attentions=output_attentions,
)
hidden_states = layer_outputs[0]
"""

EDITS = (
    Edit(
        target=f"{LED}:LEDEncoder.forward",
        changes=(("is_index_global_attn.flatten().any().item()", "global_attention_mask is not None"),),
        digest="a2740bc103129490",
        reason="whether attention is global is read off the values of the mask: it is, where a mask for it is given",
        versions=VERSIONS,
    ),
    *static_global_attention(
        f"{LED}:LEDEncoderSelfAttention",
        digests=(
            "128e027bea9eef02",
            "ee7426c0843629ff",
            "f159058194140347",
        ),
        versions=VERSIONS,
    ),
    Edit(
        target=f"{LED}:LEDEncoder.forward",
        changes=(
            (
                """
                to_drop = False
                if self.training and self.layerdrop > 0.0:
                    dropout_probability = torch.rand([])
                    if dropout_probability < self.layerdrop:
                        to_drop = True
                """,
                CHOSEN,
            ),
            (
                "if to_drop:\n    layer_outputs = (None, None, None)\nelse:\n"
                + "".join(f"    {line}\n" for line in CALL.strip().splitlines()),
                CALL + PICKED,
            ),
        ),
        digest="a2740bc103129490",
        reason=REASON,
        versions=VERSIONS,
        probe={"encoder_layerdrop": 0.5},
    ),
    Edit(
        target=f"{LED}:LEDDecoder.forward",
        changes=(
            (
                """
                if self.training and self.layerdrop > 0.0:
                    dropout_probability = torch.rand([])
                    if dropout_probability < self.layerdrop:
                        continue
                """,
                CHOSEN,
            ),
            ("hidden_states = layer_outputs[0]", "hidden_states = layer_outputs[0]\n" + PICKED),
        ),
        digest=DECODER,
        reason=REASON,
        versions=">=5.24,<5.25",
        probe={"decoder_layerdrop": 0.5},
    ).or_for(">=5.23,<5.24", digest=DECODER_BEFORE_5_24),
    Edit(
        target=f"{LED}:LEDDecoder.forward",
        changes=(("input_shape[-1] > 1", "input_shape[-1] > 1 or cache is not None"),),
        digest=DECODER,
        reason="a single token sees all of a cache, and places of a static one are empty: the mask hides them",
        versions=">=5.24,<5.25",
    ).or_for(
        ">=5.23,<5.24",
        digest=DECODER_BEFORE_5_24,
        changes=(("input_shape[-1] > 1", "input_shape[-1] > 1 or past_key_values is not None"),),
    ),
)


def checked(model: torch.nn.Module, config: ExecutionConfig, batch: Mapping[str, Any]) -> None:
    """Refuse a mask that has global positions in it.

    Raises:
        ValueError: it has.
    """
    mask = batch.get("attention_mask")
    if mask is not None and bool((mask > 1).any()):
        raise ValueError(
            f"`attention_mask` has values up to {mask.max().item()}, and 2 means global attention: give 0 and 1, and "
            "global positions in `global_attention_mask`"
        )


def with_global_attention(model: torch.nn.Module, batch: dict[str, Any], draw: Any) -> dict[str, Any]:
    """Let the first position of each row attend globally."""
    is_first = torch.zeros_like(batch["input_ids"])
    is_first[:, 0] = 1
    return {**batch, "global_attention_mask": is_first}
