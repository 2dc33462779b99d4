# SPDX-License-Identifier: Apache-2.0
"""What lets Nystroemformer take a padding mask with fewer landmarks than positions: a source edit."""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

NYSTROMFORMER = "transformers.models.nystromformer.modeling_nystromformer"

EDITS = (
    Edit(
        target=f"{NYSTROMFORMER}:NystromformerSelfAttention.forward",
        changes=(
            (
                """
                attention_scores = torch.matmul(q_landmarks, key_layer.transpose(-1, -2))
                if attention_mask is not None:
                    attention_scores = attention_scores + attention_mask
                """,
                """
                attention_scores = torch.matmul(q_landmarks, key_layer.transpose(-1, -2))
                if attention_mask is not None:
                    attention_scores = attention_scores + attention_mask[:, :, :1]
                """,
            ),
        ),
        digest="6209fa1d8797e931",
        reason="the mask has a row for each position, and landmarks are fewer: all rows are equal, and one is taken",
        versions=">=5.23,<5.25",
        probe={"num_landmarks": 4},
    ),
)
