# SPDX-License-Identifier: Apache-2.0
"""A loss in the place of the model's own, and the weights of micro-batches: equal to the plain model's gradients."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.capture.capture import capture
from ipu_core.errors import BatchError, BatchSizeError
from ipu_core.rewrites.loss import loss_of
from ipu_core.samples import sample_batch
from ipu_core.testing import assert_round_trip
from models import Chain, batch, make
from transformers.trainer_pt_utils import LabelSmoother

pytestmark = pytest.mark.usefixtures("no_plugins")
TINY = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "BertForTokenClassification": transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=5,
        **NO_DROPOUT,
        **TINY,
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        d_model=16,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        d_ff=32,
        d_kv=8,
        decoder_start_token_id=0,
        dropout_rate=0.0,
        **TINY,
    ),
}
CONFIG = IPUConfig(layers_per_ipu=[1, 1])
smooth = LabelSmoother(0.1)


def model_of(name):
    torch.manual_seed(0)
    return getattr(transformers, name)(MODELS[name]).eval()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_label_smoothing_gives_the_plain_models_gradients(name):
    plain, net = model_of(name), model_of(name)
    inputs = sample_batch(net, batch_size=2, length=8, padded=True)
    labels = inputs["labels"]
    others = {k: v for k, v in inputs.items() if k != "labels"}
    if plain.config.is_encoder_decoder:
        others["decoder_input_ids"] = plain.prepare_decoder_input_ids_from_labels(labels)
    expected = smooth(plain(**others), labels)
    expected.backward()
    outputs = training_model(to_pipelined(net, CONFIG, rewrites=[loss_of(smooth)]))(**inputs)
    torch.testing.assert_close(outputs.loss, expected.detach())
    for key, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, plain.get_parameter(key).grad, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_the_models_own_loss_is_not_computed(name):
    net = to_pipelined(model_of(name), CONFIG, rewrites=[loss_of(smooth)])
    with net.parallelized():
        graph = capture(net, sample_batch(net, batch_size=2, length=8), training=True).graph
    assert not [node for node in graph.nodes if "cross_entropy" in str(node.target)]


def test_without_labels_the_outputs_are_the_models():
    net = model_of("BertForTokenClassification")
    inputs = sample_batch(net, batch_size=2, length=8)
    del inputs["labels"]
    outputs = inference_model(to_pipelined(net, CONFIG, rewrites=[loss_of(smooth)]))(**inputs)
    assert list(outputs) == ["logits"]


def test_it_is_taken_back_and_the_users_model_does_not_see_it():
    net = model_of("BertForTokenClassification")
    assert_round_trip(net, CONFIG)
    pipelined = to_pipelined(net, CONFIG, rewrites=[loss_of(smooth)])
    with pipelined.parallelized():
        assert not net._forward_hooks and not net._forward_pre_hooks
    assert not pipelined._forward_hooks and not pipelined._forward_pre_hooks


def test_a_pipelined_model_keeps_its_rewrites_when_it_is_pipelined_again():
    once = to_pipelined(model_of("BertForTokenClassification"), CONFIG, rewrites=[loss_of(lambda o, y: o.logits.sum())])
    inputs = sample_batch(once, batch_size=2, length=8)
    again = to_pipelined(once, IPUConfig(layers_per_ipu=[2]))
    outputs = inference_model(again)(**inputs)
    torch.testing.assert_close(outputs.loss, outputs.logits.sum())


def test_losses_weighted_by_their_items_are_the_mean_over_all_items():
    name = "BertForTokenClassification"
    plain, net = model_of(name).double(), model_of(name).double()
    inputs = sample_batch(net, batch_size=6, length=8, padded=True)
    inputs["labels"][:2, 2:] = -100
    inputs["labels"][4:] = -100  # the last micro-batch has no label at all: its loss is NaN
    plain(**inputs).loss.backward()
    items = torch.stack([(part != -100).sum() for part in inputs["labels"].split(2)])
    config = CONFIG.replace(gradient_accumulation_steps=3, output_mode="all")
    executor = training_model(to_pipelined(net, config))
    outputs = executor(**inputs, loss_weights=(items.double() / items.sum()).tolist())
    assert outputs.loss[2].isnan()
    for key, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, plain.get_parameter(key).grad, atol=1e-12, rtol=0)


def test_weights_that_are_not_one_a_micro_batch_are_refused():
    executor = training_model(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2])))
    with pytest.raises(
        BatchSizeError, match=r"`loss_weights` has 3 numbers, and a combined batch is .* = 1 micro-batch"
    ):
        executor(**batch(), loss_weights=[1.0, 1.0, 1.0])


def test_weights_are_refused_for_inference():
    executor = inference_model(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2])))
    with pytest.raises(BatchError, match="`loss_weights` is for training"):
        executor(**batch(), loss_weights=[1.0])
