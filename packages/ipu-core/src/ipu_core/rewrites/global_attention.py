# SPDX-License-Identifier: Apache-2.0
"""Windowed attention with global positions, of static shapes: any position may be global, and a mask says which are.

Upstream gathers the global positions of a batch, so that shapes depend on the values of a mask. Here each position has
a place among the global ones, in order, and those that are not global are masked out; what it computes for them is not
used. Attentions that are returned have a place for every position, too.

Shapes: B rows, L positions, D values a position.
"""

from __future__ import annotations

from .source_edits import Change, Edit

REASON = "the global positions of a batch are gathered: each position has a place, and a mask says which are global"

# The indices of all [B, L] positions, and of what upstream fills with the least value, all that is not global.
_PLACES = """
max_num_global_attn_indices = seq_len
is_index_global_attn_nonzero = (
    torch.arange(batch_size, device=hidden_states.device).repeat_interleave(seq_len),
    torch.arange(seq_len, device=hidden_states.device).repeat(batch_size),
)
is_local_index_global_attn_nonzero = is_index_global_attn_nonzero
is_local_index_no_global_attn_nonzero = ~is_index_global_attn
"""
_GATHERED = """
(
    max_num_global_attn_indices,
    is_index_global_attn_nonzero,
    is_local_index_global_attn_nonzero,
    is_local_index_no_global_attn_nonzero,
) = self._get_global_attn_indices(is_index_global_attn)
"""
_OVERWRITTEN = """
nonzero_global_attn_output = global_attn_output[
    is_local_index_global_attn_nonzero[0], :, is_local_index_global_attn_nonzero[1]
]
attn_output[is_index_global_attn_nonzero[::-1]] = nonzero_global_attn_output.view(
    len(is_local_index_global_attn_nonzero[0]), -1
)
attn_probs[is_index_global_attn_nonzero] = 0
"""
# [B, heads, L, values a head] -> [L, B, D]
_PICKED = """
global_attn_output = global_attn_output.permute(2, 0, 1, 3).reshape(seq_len, batch_size, embed_dim)
attn_output = torch.where(is_index_global_attn.transpose(0, 1)[:, :, None], global_attn_output, attn_output)
attn_probs = attn_probs.masked_fill(is_index_global_attn[:, :, None, None], 0.0)
"""


def _masked(name: str) -> Change:
    places = "is_local_index_no_global_attn_nonzero[0], is_local_index_no_global_attn_nonzero[1], :, :"
    return (
        f"{name}[{places}] = torch.finfo({name}.dtype).min",
        # The softmax is in float32: what is less than its least value would be an infinity, and a row of them NaN.
        f"{name} = {name}.masked_fill(is_local_index_no_global_attn_nonzero[:, :, None, None], "
        f"max(torch.finfo({name}.dtype).min, torch.finfo(torch.float32).min))",
    )


def static_global_attention(attention: str, *, digests: tuple[str, str, str], versions: str) -> tuple[Edit, ...]:
    """Return the edits of one class of attention.

    ::

        static_global_attention(
            "transformers.models.led.modeling_led:LEDEncoderSelfAttention",
            digests=("0123456789abcdef", "123456789abcdef0", "23456789abcdef01"),
            versions=">=5.23,<5.25",
        )

    Args:
        attention: "module:Class".
        digests: of its `forward`, `_concat_with_global_key_attn_probs` and `_compute_global_attn_output_from_hidden`.
        versions: as for an `Edit`.
    """
    changes: dict[str, tuple[Change, ...]] = {
        "forward": ((_GATHERED, _PLACES), (_OVERWRITTEN, _PICKED)),
        "_concat_with_global_key_attn_probs": (_masked("attn_probs_from_global_key"),),
        "_compute_global_attn_output_from_hidden": (_masked("global_attn_scores"),),
    }
    return tuple(
        Edit(target=f"{attention}.{name}", changes=change, digest=digest, reason=REASON, versions=versions)
        for (name, change), digest in zip(changes.items(), digests, strict=True)
    )
