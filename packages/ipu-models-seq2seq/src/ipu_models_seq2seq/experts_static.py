# SPDX-License-Identifier: Apache-2.0
"""What makes Switch Transformers and NLLB-MoE static graphs: source edits of their routers, experts and layers.

Upstream gathers the tokens of each expert that has any. Here every expert takes every token, and the weights of tokens
that are not its own are zero: the same sums, at the cost of all experts. An expert without tokens has gradients of
zero, where upstream's has none.

Shapes: T tokens, D values a token, E experts, K places among experts.
"""

from __future__ import annotations

from ipu_core.rewrites.layerdrop import layerdrop
from ipu_core.rewrites.source_edits import Change, Edit

VERSIONS = ">=5.23,<5.25"
SWITCH = "transformers.models.switch_transformers.modeling_switch_transformers"
NLLB_MOE = "transformers.models.nllb_moe.modeling_nllb_moe"
DISPATCH = (
    "the tokens of each expert are gathered: every expert takes all tokens, those of others with a weight of zero"
)
CAST = "the router gives itself a classifier of another type: its weights are cast for the product"

IN_ITS_TYPE = """
bias = None if self.classifier.bias is None else self.classifier.bias.to(self.dtype)
router_logits = nn.functional.linear(hidden_states, self.classifier.weight.to(self.dtype), bias)
"""


def _gathered(weights: str, more: str = "") -> str:
    return f"""
expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
for expert_idx in expert_hit:
    idx, top_x = torch.where(expert_mask[expert_idx].squeeze(0))
    current_state = hidden_states[None, top_x].reshape(-1, hidden_states.shape[-1])
    current_hidden_states = self[f"expert_{{expert_idx[0]}}"](current_state) * {weights}[top_x, idx, None]
{more}    final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
"""


TOKEN_DROPOUT = """    if self.moe_token_dropout > 0:
        if self.training:
            current_hidden_states = self.token_dropout(current_hidden_states)
        else:
            current_hidden_states *= 1 - self.moe_token_dropout
"""


def _dispatched(weights: str, num_experts: str, more: str = "") -> str:
    # expert_mask [E, K, T], weights [T, K]
    return f"""
for expert_idx in range({num_experts}):
    weight = (expert_mask[expert_idx].transpose(0, 1) * {weights}).sum(-1, keepdim=True)
    current_hidden_states = self[f"expert_{{expert_idx}}"](hidden_states) * weight
{more}    final_hidden_states = final_hidden_states + current_hidden_states.to(hidden_states.dtype)
"""


SWITCH_EDITS = (
    Edit(
        target=f"{SWITCH}:SwitchTransformersTop1Router.forward",
        changes=(
            (
                "self.classifier = self.classifier.to(self.dtype)\nrouter_logits = self.classifier(hidden_states)",
                IN_ITS_TYPE,
            ),
        ),
        digest="acef2b8fa801468c",
        reason=CAST,
        versions=VERSIONS,
    ),
    Edit(
        target=f"{SWITCH}:SwitchTransformersExperts.forward",
        changes=((_gathered("routing_weights"), _dispatched("routing_weights", "self.num_experts")),),
        digest="3bdad79bbd131396",
        reason=DISPATCH,
        versions=VERSIONS,
    ),
    Edit(
        target=f"{SWITCH}:SwitchTransformersStack.forward",
        changes=(("attention_mask is None and not is_torchdynamo_compiling()", "attention_mask is None"),),
        digest="2d0d9f93a392522d",
        reason="a mask that is not given is not made while a graph is captured, and asked for all the same",
        versions=">=5.24,<5.25",
    ).or_for(">=5.23,<5.24", digest="fc4315a5532231b8"),
)

# Upstream makes a one-hot of a mask of zeros and ones, so that its tokens reach the first two experts alone.
NLLB_REACHED = "min(2, self.num_experts)"
NLLB_CHANGES: tuple[Change, ...] = (
    (_gathered("router_probs", TOKEN_DROPOUT), _dispatched("router_probs", NLLB_REACHED, TOKEN_DROPOUT)),
)
_CHOICE = """
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    if dropout_probability < self.layerdrop:
        continue
"""
_SKIPPED = """
skip_the_layer = False
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    skip_the_layer = dropout_probability < self.layerdrop
"""


# The places of a step's own tokens: the last ones of a cache that grows, whose length counts them already, and those
# from its length on of a static one.
def _of_its_tokens(cache: str) -> tuple[Change, ...]:
    changed = f"""
padding_mask = attention_mask
if attention_mask is not None and {cache} is not None:
    num_tokens, num_places = hidden_states.shape[1], attention_mask.shape[-1]
    first = torch.as_tensor({cache}.get_seq_length()).clamp(max=num_places - num_tokens)
    padding_mask = attention_mask.index_select(-1, first + torch.arange(num_tokens, device=attention_mask.device))
hidden_states = self.ffn(hidden_states, padding_mask)
"""
    return (("hidden_states = self.ffn(hidden_states, attention_mask)", changed),)


def _decoder(cache: str) -> Edit:
    return layerdrop(
        f"{NLLB_MOE}:NllbMoeDecoder.forward",
        choice=_SKIPPED,
        guard="not skip_the_layer or synced_gpus",
        call=(
            "hidden_states = decoder_layer(hidden_states, attention_mask, encoder_hidden_states, "
            f"encoder_attention_mask=encoder_attention_mask, {cache}={cache}, use_cache=use_cache, **kwargs)"
        ),
        after="if skip_the_layer:\n    continue",
        digest="9b545168891dd789",
        versions=">=5.24,<5.25",
        probe={"decoder_layerdrop": 0.5},
    )


NLLB_MOE_EDITS = (
    Edit(
        target=f"{NLLB_MOE}:NllbMoeDecoderLayer.forward",
        changes=_of_its_tokens("cache"),
        digest="ed5a96a59759b4ac",
        reason="experts take what the end of a mask hides for padding, and the end of a static cache's mask is hidden",
        versions=">=5.24,<5.25",
    ).or_for(">=5.23,<5.24", digest="318dccb54c307cb7", changes=_of_its_tokens("past_key_values")),
    Edit(
        target=f"{NLLB_MOE}:NllbMoeTop2Router.forward",
        changes=(("self._cast_classifier()\nrouter_logits = self.classifier(hidden_states)", IN_ITS_TYPE),),
        digest="4f0eb08f2ad8062e",
        reason=CAST,
        versions=VERSIONS,
    ),
    Edit(
        target=f"{NLLB_MOE}:NllbMoeExperts.forward",
        changes=NLLB_CHANGES,
        digest="e28976a0503e235d",
        reason=DISPATCH,
        versions=VERSIONS,
        probe={"moe_token_dropout": 0.1},
    ),
    layerdrop(
        f"{NLLB_MOE}:NllbMoeEncoder.forward",
        choice=_CHOICE,
        call="hidden_states = encoder_layer(hidden_states, attention_mask, **kwargs)",
        digest="70ab460a4bb45129",
        versions=VERSIONS,
        probe={"encoder_layerdrop": 0.5},
    ),
    _decoder("cache").or_for(">=5.23,<5.24", digest="6f9e821c0d1a18d8", changes=_decoder("past_key_values").changes),
)
