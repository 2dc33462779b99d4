# SPDX-License-Identifier: Apache-2.0
"""Points of BERT, whose norms come behind the sums."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, points, to_pipelined
from ipu_core.errors import PointError

IDS = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(0))


def make(attention="eager"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.BertConfig(**sizes, vocab_size=50, attn_implementation=attention)
    model = transformers.BertForMaskedLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def test_points_have_the_plain_models_values():
    model = make()
    plain = model(input_ids=IDS, output_attentions=True, output_hidden_states=True)
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])), activations=["*"])
    found = executor(input_ids=IDS)
    assert torch.equal(found.logits, plain.logits)
    values = {name.removeprefix("blocks.1."): value for name, value in found.activations.items()}
    torch.testing.assert_close(values["hook_full_embed"], plain.hidden_states[0])
    torch.testing.assert_close(values["hook_resid_pre"], plain.hidden_states[1])
    torch.testing.assert_close(values["hook_normalized_resid_post"], plain.hidden_states[2])
    torch.testing.assert_close(values["attn.hook_pattern"], plain.attentions[1])
    torch.testing.assert_close(values["attn.hook_attn_scores"].softmax(-1), plain.attentions[1])
    torch.testing.assert_close(values["hook_resid_mid"], values["hook_resid_pre"] + values["hook_attn_out"])
    torch.testing.assert_close(values["hook_resid_post"], values["hook_mlp_in"] + values["hook_mlp_out"])
    torch.testing.assert_close(values["mlp.hook_post"], torch.nn.functional.gelu(values["mlp.hook_pre"]))
    heads = torch.einsum("bhqk,bkhd->bqhd", values["attn.hook_pattern"], values["attn.hook_v"])
    torch.testing.assert_close(values["attn.hook_z"], heads)
    assert values["hook_pos_embed"].shape == (2, 5, 16)


def test_a_head_is_ablated_and_a_scale_written():
    model = make()
    name = "blocks.0.ln1.hook_scale"
    changes = {"blocks.0.attn.hook_z": points.given(torch.mul), name: points.given(torch.mul)}
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])), interventions=changes)
    kept = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(1, 1, 4, 1).repeat(2, 1, 1, 1)
    values = {"blocks.0.attn.hook_z": kept, name: torch.full((2, 1, 1), 2.0)}
    found = executor(input_ids=IDS, interventions=values).logits
    output = model.bert.encoder.layer[0].attention.output
    output.LayerNorm.register_forward_hook(lambda norm, args, y: (y - norm.bias) / 2 + norm.bias)
    with torch.no_grad():
        output.dense.weight[:, :4] = 0
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_pattern_is_refused_where_attention_makes_none():
    with pytest.raises(PointError, match="only eager attention"):
        inference_model(to_pipelined(make("sdpa"), IPUConfig()), activations=["blocks.*.attn.hook_pattern"])
