# SPDX-License-Identifier: Apache-2.0
"""What makes Reformer a static graph: its source edits.

With `hash_seed` the rotations that hash are constants of the graph, those upstream draws, and torch's own generator is
left alone. Without it they are drawn on every call, as upstream draws them. Upstream seeds dropout anew in every step
of training, from a source that no seed reaches: with dropout a step is random by nature, here by torch's generator.
Activations are kept for the backward pass, not computed again from the outputs of reversible layers;
`recompute_checkpoint_every_layer` computes them again.
"""

from __future__ import annotations

import torch
from ipu_core._torch import without_modes
from ipu_core.rewrites.source_edits import Edit

VERSIONS = ">=5.23,<5.25"
REFORMER = "transformers.models.reformer.modeling_reformer"


def rotations_of(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return what ``torch.manual_seed(seed); torch.randn(shape, dtype=dtype)`` does, as a constant while capturing."""
    with without_modes():
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


HASHES = Edit(
    target=f"{REFORMER}:LSHSelfAttention._hash_vectors",
    changes=(
        (
            """
            if self.hash_seed is not None:
                torch.manual_seed(self.hash_seed)
            """,
            "from ipu_models_bert.reformer_static import rotations_of",
        ),
        (
            "torch.randn(rotations_shape, device=vectors.device, dtype=vectors.dtype)",
            """
            (
                torch.randn(rotations_shape, device=vectors.device, dtype=vectors.dtype)
                if self.hash_seed is None
                else rotations_of(self.hash_seed, rotations_shape, vectors.dtype).to(vectors.device)
            )
            """,
        ),
        (
            "attention_mask is not None and (attention_mask.sum().item() < batch_size * attention_mask.shape[-1])",
            "attention_mask is not None",
        ),
    ),
    digest="184fe7ad50a5e9a2",
    reason="whether there is padding is read off the values of the mask: it always has a bucket of its own",
    versions=VERSIONS,
)
LAYER = Edit(
    target=f"{REFORMER}:ReformerLayer.forward",
    changes=(
        ("torch.no_grad()", "torch.set_grad_enabled(torch.is_grad_enabled())"),
        ("if self.training:\n    self._init_attention_seed()", ""),
        ("if self.training:\n    self._init_feed_forward_seed()", ""),
    ),
    digest="43b28041bbc34b64",
    reason="a layer runs without gradients, and again in a backward pass of its own: it runs once, with gradients",
    versions=VERSIONS,
)
STACK = Edit(
    target=f"{REFORMER}:ReformerEncoder.forward",
    changes=(
        (
            """
            hidden_states = _ReversibleFunction.apply(
                hidden_states,
                self.layers,
                attention_mask,
                num_hashes,
                all_hidden_states,
                all_attentions,
                past_buckets_states,
                use_cache,
                orig_sequence_length,
                output_hidden_states,
                output_attentions,
            )
            """,
            """
            hidden_states, attn_output = torch.chunk(hidden_states, 2, dim=-1)
            for layer in self.layers:
                all_hidden_states += [hidden_states] * bool(output_hidden_states)
                layer_outputs = layer(
                    prev_attn_output=attn_output,
                    hidden_states=hidden_states,
                    attention_mask=attention_mask,
                    num_hashes=num_hashes,
                    past_buckets_states=past_buckets_states,
                    use_cache=use_cache,
                    orig_sequence_length=orig_sequence_length,
                    output_attentions=output_attentions,
                )
                attn_output, hidden_states = layer_outputs.attn_output, layer_outputs.hidden_states
                all_attentions += [layer_outputs.attention_probs] * bool(output_attentions)
            all_hidden_states += [hidden_states] * bool(output_hidden_states)
            hidden_states = torch.cat([attn_output, hidden_states], dim=-1)
            """,
        ),
    ),
    digest="6b6fc7631ce6b8ae",
    reason="layers run in an autograd function with a backward of its own: they run in ordinary autograd",
    versions=VERSIONS,
)
POSITIONS = Edit(
    target=f"{REFORMER}:AxialPositionEmbeddings.forward",
    changes=(("position_ids.max().item()", "self.axial_pos_shape[0] * self.axial_pos_shape[1] - 1"),),
    digest="4d5a17e7aa07eb78",
    reason="as many positions are made as the largest that is asked for: all are made, and those asked for are picked",
    versions=VERSIONS,
)
ORDER = Edit(
    target=f"{REFORMER}:LSHSelfAttention.forward",
    changes=(
        (
            "out_vectors, logits = ReverseSort.apply(out_vectors, logits, sorted_bucket_idx, undo_sorted_bucket_idx)",
            """
            out_vectors = torch.gather(out_vectors, 2, undo_sorted_bucket_idx.unsqueeze(-1).expand(out_vectors.shape))
            logits = torch.gather(logits, 2, undo_sorted_bucket_idx)
            """,
        ),
    ),
    digest="5b60c63419b927c4",
    reason="the order is restored in an autograd function with a backward of its own, which is that of `torch.gather`",
    versions=VERSIONS,
)
EDITS = (HASHES, ORDER, LAYER, STACK, POSITIONS)
