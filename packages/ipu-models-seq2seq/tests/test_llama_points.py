# SPDX-License-Identifier: Apache-2.0
"""Points of Llama and Mistral: RMS norms, keys and values of fewer heads, a gated MLP."""

import functools

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, points, to_pipelined

IDS = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(0))
KINDS = ["Llama", "Mistral"]


@functools.cache
def model_of(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 24, "vocab_size": 50, "max_position_embeddings": 32}
    config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def executor_of(kind, **options):
    return inference_model(to_pipelined(model_of(kind), IPUConfig(layers_per_ipu=[1, 1])), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_points_have_the_plain_models_values(kind):
    model = model_of(kind)
    found = executor_of(kind, activations=["*"])(input_ids=IDS)
    plain = model(input_ids=IDS, output_attentions=True, output_hidden_states=True)
    assert torch.equal(found.logits, plain.logits)
    values = {name.removeprefix("blocks.1."): value for name, value in found.activations.items()}
    assert {list(values["attn.hook_k"].shape)[2], list(values["attn.hook_rot_k"].shape)[2]} == {2}
    torch.testing.assert_close(values["attn.hook_pattern"], plain.attentions[1])
    torch.testing.assert_close(values["hook_resid_pre"], plain.hidden_states[1])
    middle = values["hook_resid_pre"] + values["hook_attn_out"]
    torch.testing.assert_close(values["hook_resid_mid"], middle)
    torch.testing.assert_close(values["hook_resid_post"], middle + values["hook_mlp_out"])
    gated = torch.nn.functional.silu(values["mlp.hook_pre"]) * values["mlp.hook_pre_linear"]
    torch.testing.assert_close(values["mlp.hook_post"], gated)
    norm = model.model.layers[1].input_layernorm
    scaled = values["hook_resid_pre"] / values["ln1.hook_scale"] * norm.weight
    torch.testing.assert_close(values["ln1.hook_normalized"], scaled)
    keys = values["attn.hook_rot_k"].repeat_interleave(2, dim=2)
    products = torch.einsum("bqhd,bkhd->bhqk", values["attn.hook_rot_q"], keys) / 2
    is_seen = torch.ones(5, 5).tril().bool()
    torch.testing.assert_close(values["attn.hook_attn_scores"][..., is_seen], products[..., is_seen])
    num_points = {len([name for name in found.activations if name.startswith(f"blocks.{i}.")]) for i in (0, 1)}
    assert num_points == {21}


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_scale_and_an_ablated_head_are_exact(kind):
    model = model_of(kind)
    names = ["blocks.1.ln2.hook_scale", "blocks.0.attn.hook_z"]
    interventions = {names[0]: points.given(), names[1]: points.given(torch.mul)}
    read = ["blocks.1.hook_mlp_in", "blocks.1.ln2.hook_normalized"]
    executor = executor_of(kind, activations=read, interventions=interventions)
    scale, kept = torch.rand(2, 5, 1) + 1, torch.tensor([1.0, 1.0, 0.0, 1.0]).view(1, 1, 4, 1).repeat(2, 1, 1, 1)
    found = executor(input_ids=IDS, interventions={names[0]: scale, names[1]: kept})
    norm, projection = model.model.layers[1].post_attention_layernorm, model.model.layers[0].self_attn.o_proj
    x, normalized = found.activations.values()
    torch.testing.assert_close(normalized, x / scale * norm.weight)
    before = projection.weight.detach().clone()
    handle = norm.register_forward_hook(lambda module, args, output: args[0] / scale * module.weight)
    with torch.no_grad():
        projection.weight[:, 8:12] = 0
        expected = model(input_ids=IDS).logits
        projection.weight.copy_(before)
    handle.remove()
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
