# SPDX-License-Identifier: Apache-2.0
"""Masks of attention that follow from shapes alone are left out, as the plain model leaves them out; others stay."""

import pytest
import torch
from ipu_core import IPUConfig
from ipu_core.capture.capture import capture
from ipu_core.testing import assert_training_equals_plain
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(3, 19).view(2, 8)
ONES = torch.ones_like(IDS)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32)).double()


def bert():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(**sizes, vocab_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def attentions(captured):
    """Return of each attention whether it has a mask, and whether it is causal."""
    name = torch.ops.aten.scaled_dot_product_attention.default
    calls = [node.args for node in captured.graph.nodes if node.target is name]
    return [(args[3:4] not in ((), (None,)), args[5:6] == (True,)) for args in calls]


@pytest.mark.parametrize(("make", "is_causal"), [(llama, True), (bert, False)])
def test_without_a_mask_of_tokens_there_is_none(make, is_causal):
    model = make()
    assert attentions(capture(model, {"input_ids": IDS}, training=True)) == [(False, is_causal)] * 2
    with_mask = {"input_ids": IDS, "attention_mask": ONES}
    assert attentions(capture(model, with_mask, training=True)) == [(True, False)] * 2


def test_it_trains_as_the_plain_model_does():
    batch = {"input_ids": IDS, "labels": IDS}
    assert_training_equals_plain(llama(), IPUConfig(layers_per_ipu=[1, 1]), batch, atol=1e-12)


class Attending(torch.nn.Module):
    """Attention under a mask that is made in one of several ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        shown = torch.ones(4, 4, dtype=torch.bool).tril(1 if self.kind == "one more" else 0)
        if self.kind == "drawn":
            shown = shown & (torch.rand(4, 4) < 2)
        if self.kind == "written":
            shown = shown | False
            shown[0] = x[0, 0, 0] > -9
        if self.kind == "read":
            shown = shown & (x[0, 0, :1] > -9)
        return scaled_dot_product_attention(x, x, x * self.scale, attn_mask=shown)


@pytest.mark.parametrize("kind", ["causal", "one more", "drawn", "written", "read"])
def test_a_mask_stays_that_shows_others_or_is_not_known(kind):
    captured = capture(Attending(kind), {"x": torch.zeros(2, 4, 4)}, training=False)
    assert attentions(captured) == [(kind != "causal", kind == "causal")]
