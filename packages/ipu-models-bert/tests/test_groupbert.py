# SPDX-License-Identifier: Apache-2.0
"""GroupBERT has the structure of its paper, sees no padding, and equals itself unsplit on every split."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.cli import main
from ipu_core.testing import (
    sample_batch,
)
from ipu_models_bert import groupbert
from ipu_models_bert.families.groupbert import GROUPBERT
from ipu_models_bert.groupbert import GroupBertConfig, GroupBertForMaskedLM, GroupBertModel
from torch import nn

ATOL = {torch.float32: 1e-5, torch.float64: 1e-10}
WITH_LOSS = [name for name in GROUPBERT.models if name != "GroupBertModel"]
AUTO_CLASSES = {
    "GroupBertModel": transformers.AutoModel,
    **{name: getattr(transformers, name.replace("GroupBert", "AutoModel")) for name in WITH_LOSS},
}

each_class = pytest.mark.parametrize("name", GROUPBERT.models)
each_class_with_a_loss = pytest.mark.parametrize("name", WITH_LOSS)
each_dtype = pytest.mark.parametrize("dtype", ATOL, ids=str)


def config(**options):
    return GroupBertConfig(
        **{**GROUPBERT.tiny, "num_hidden_layers": 4, "conv_group_size": 8, "conv_kernel_size": 5, **options}
    )


def plain(name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return getattr(groupbert, name)(config(**options)).to(dtype)


@each_class
@each_dtype
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_token_sees_padding(name, dtype, attention):
    """What the padded ids are changes nothing at real positions, nor does how many of them there are."""
    model = plain(name, dtype).eval()
    model.set_attn_implementation(attention)
    base = model.base_model
    mask = torch.arange(12) < torch.tensor([[12], [7], [1]])
    batch = sample_batch(base, batch_size=3, length=12, labels=False)
    batch["attention_mask"] = mask.long()
    others = torch.where(mask, batch["input_ids"], 1 + (batch["input_ids"] + 7) % 90)
    assert not torch.equal(others, batch["input_ids"])
    longer = {key: nn.functional.pad(value, (0, 5)) for key, value in batch.items()}
    with torch.no_grad():
        expected = base(**batch).last_hidden_state[mask]
        changed = base(**{**batch, "input_ids": others}).last_hidden_state[mask]
        padded = base(**longer).last_hidden_state[:, :12][mask]
    torch.testing.assert_close(changed, expected, atol=0, rtol=0)
    torch.testing.assert_close(padded, expected, atol=ATOL[dtype], rtol=0)


def test_a_convolution_sees_its_neighbours_and_no_further():
    torch.manual_seed(0)
    convolution = groupbert.GroupBertConvolution(config()).eval()
    hidden = torch.randn(1, 12, 32, requires_grad=True)
    convolution(hidden, None)[0, 6].sum().backward()
    assert hidden.grad.abs().sum(-1)[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_products_work_in_groups():
    """An output of the second product reads its group's share of the inner channels, and no other."""
    torch.manual_seed(0)
    feed_forward = groupbert.GroupBertFeedForward(config())
    assert feed_forward.grouped.weight.shape == (32, 64 // 4, 1)
    inner = torch.randn(1, 64, 3, requires_grad=True)
    feed_forward.grouped(inner)[0, 9].sum().backward()  # group 1 of 4 gives channels 8 to 15
    assert inner.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == list(range(16, 32))
    convolution = groupbert.GroupBertConvolution(config())
    assert convolution.conv.weight.shape == (32, 8, 5)
    assert convolution.conv.groups == 4


def test_a_layer_adds_convolution_feed_forward_attention_and_feed_forward_in_this_order():
    """Each adds to what comes in a function of it normalised: with its last projection at zero it adds nothing."""
    torch.manual_seed(0)
    layer = groupbert.GroupBertLayer(config()).eval()
    parts = [layer.convolution, layer.first_feed_forward, layer.attention, layer.second_feed_forward]
    seen = []
    for part in parts:
        # Attention gives its weights, too.
        part.register_forward_hook(
            lambda part, inputs, output: seen.append(
                (part, inputs[0], output[0] if part is layer.attention else output)
            )
        )
    hidden = torch.randn(2, 6, 32)
    output = layer(hidden, None, None)
    assert [part for part, _, _ in seen] == parts
    handed_on = [hidden, *(after for _, _, after in seen)]
    assert all(before is came for (_, before, _), came in zip(seen, handed_on, strict=False))
    assert output is handed_on[-1]
    for part in parts:
        nn.init.zeros_(part.dense.weight)
        nn.init.zeros_(part.dense.bias)
    torch.testing.assert_close(layer(hidden, None, None), hidden, atol=0, rtol=0)
    for part in parts:
        nn.init.zeros_(part.LayerNorm.weight)
        nn.init.normal_(part.dense.weight)
    once = layer(hidden, None, None) - hidden  # now what is added depends on no hidden state
    torch.testing.assert_close(layer(2 * hidden, None, None) - 2 * hidden, once, atol=1e-5, rtol=0)


def test_a_layer_has_so_many_parameters():
    d, i, groups, group_size, kernel = 768, 3072, 4, 16, 7
    with torch.device("meta"):
        layer = groupbert.GroupBertLayer(GroupBertConfig())
    norm, square = 2 * d, d * d + d
    convolution = norm + (2 * d * d + 2 * d) + (d * group_size * kernel + d) + norm + square
    feed_forward = norm + (d * i + i) + (i * d // groups + d) + square
    attention = norm + 4 * square
    assert sum(p.numel() for p in layer.parameters()) == convolution + 2 * feed_forward + attention


@each_class_with_a_loss
def test_training_gives_every_parameter_a_gradient(name):
    """But for what adds one constant to every input of a softmax, whose gradient is zero."""
    model = plain(name)
    batch = sample_batch(model, batch_size=3, length=12)
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])))(**batch)
    constant = ("key.bias", "classifier.bias") if name == "GroupBertForMultipleChoice" else ("key.bias",)
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.any() or parameter.endswith(constant), parameter


@each_class
def test_a_checkpoint_is_loaded_by_the_auto_class(name, tmp_path):
    model = plain(name, ffn_groups=8).eval()
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2]))
    with pipelined.parallelized():
        pipelined.save_pretrained(tmp_path)
    loaded_config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded_config) is GroupBertConfig
    assert loaded_config.to_diff_dict() == model.config.to_diff_dict()
    loaded = AUTO_CLASSES[name].from_pretrained(tmp_path).eval()
    assert type(loaded) is getattr(groupbert, name)
    assert loaded.config.ffn_groups == 8
    batch = sample_batch(model, batch_size=2, length=8, padded=True, labels=False)
    with torch.no_grad():
        for ours, theirs in zip(loaded(**batch).to_tuple(), model(**batch).to_tuple(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    again = getattr(groupbert, f"Pipelined{name}").from_pretrained(tmp_path)
    assert again.ipu_config == pipelined.ipu_config


def test_the_head_is_tied_to_the_embedding():
    model = plain("GroupBertForMaskedLM")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])))
    plan = executor.compile(**sample_batch(model, batch_size=2, length=8)).plan
    assert [(stage.ipu, stage.modules[-1]) for stage in plan.stages] == [
        (0, "bert.encoder.layer.1"),
        (1, "bert.encoder.layer.3"),
        (0, "cls"),
    ]


def test_hidden_states_and_attentions_come_out_of_every_layer():
    model = plain("GroupBertForMaskedLM").eval()
    model.set_attn_implementation("eager")
    batch = sample_batch(model, batch_size=2, length=8, padded=True, labels=False)
    flags = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = model(**batch, **flags)
    assert len(expected.hidden_states) == 5
    assert [a.shape for a in expected.attentions] == [(2, 2, 8, 8)] * 4
    torch.testing.assert_close(model.cls(expected.hidden_states[-1]), expected.logits)
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])))(**batch, **flags)
    for ours, theirs in zip(outputs.to_tuple()[1:], expected.to_tuple()[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_masked_tokens_can_be_gathered():
    model = plain("GroupBertForMaskedLM")
    batch = sample_batch(model, batch_size=2, length=8)
    batch["labels"] = torch.where(torch.arange(8) % 3 == 0, batch["labels"], -100)
    model.train()
    torch.manual_seed(0)
    expected = model(**batch).loss
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2], max_masked_tokens=3)))
    torch.manual_seed(0)
    outputs = executor(**batch)
    assert outputs.logits.shape == (2, 3, 99)
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ffn_groups": 5}, "`hidden_size=32` does not divide by `ffn_groups=5`"),
        ({"intermediate_size": 66}, "`intermediate_size=66` does not divide by `ffn_groups=4`"),
        ({"conv_group_size": 0}, "`hidden_size=32` does not divide by `conv_group_size=0`"),
        ({"conv_kernel_size": 4}, "`conv_kernel_size=4` has no middle"),
        ({"is_decoder": True}, "is an encoder"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_mask_that_does_not_say_which_tokens_are_padding_is_refused():
    model = GroupBertModel(config())
    ids = torch.ones(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match=r"shape \[2, 8, 8\]"):
        model(ids, attention_mask=torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="takes no `encoder_hidden_states`"):
        GroupBertForMaskedLM(config())(ids, encoder_hidden_states=torch.ones(2, 8, 32))


def test_a_plan_is_made_of_a_family_or_of_a_checkpoint_of_it(capsys, tmp_path):
    size = ["--set", "hidden_size=64", "--set", "num_attention_heads=2", "--layers-per-ipu", "1,1"]
    assert main(["plan", "--family", "groupbert", "--class", "GroupBertForMaskedLM", *size]) == 0
    assert "PipelinedGroupBertForMaskedLM for training on 2 IPUs" in capsys.readouterr().out
    plain("GroupBertForTokenClassification").save_pretrained(tmp_path)
    assert main(["plan", "--model", str(tmp_path), "--layers-per-ipu", "2,2", "--length", "16"]) == 0
    assert "PipelinedGroupBertForTokenClassification for training on 2 IPUs" in capsys.readouterr().out
