# SPDX-License-Identifier: Apache-2.0
"""LoRA on the families' models: every PEFT class, as plain over one, two and four IPUs, where their modules are."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined, training_model
from ipu_core.peft import adapted
from ipu_core.plugins.registry import installed
from ipu_core.samples import sample_batch
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain

peft = pytest.importorskip("peft")

SPLITS = ([4], [1, 3], [1, 1, 1, 1])
FOUR_LAYERS = {"bert": "num_hidden_layers", "llama": "num_hidden_layers", "gpt2": "n_layer"}


def model(name: str, model_type: str, **options):
    torch.manual_seed(0)
    layers = {FOUR_LAYERS[model_type]: 4} if model_type in FOUR_LAYERS else {}
    values = {**installed().family(model_type).tiny_values(name), **layers}
    made = getattr(transformers, name)(transformers.AutoConfig.for_model(model_type, **values))
    made = peft.get_peft_model(made, peft.LoraConfig(**{"r": 4, "lora_dropout": 0.1, **options}))
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.1)
    return made


CASES = [
    ("BertForSequenceClassification", "bert", {"task_type": "SEQ_CLS"}),
    ("BertForTokenClassification", "bert", {"task_type": "TOKEN_CLS"}),
    ("BertForQuestionAnswering", "bert", {"task_type": "QUESTION_ANS"}),
    ("BertForMaskedLM", "bert", {"target_modules": ["query", "dense"], "modules_to_save": ["transform"]}),
    ("GPT2LMHeadModel", "gpt2", {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
    ("LlamaForCausalLM", "llama", {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}),
    ("LlamaForSequenceClassification", "llama", {"task_type": "SEQ_CLS"}),
    ("T5ForConditionalGeneration", "t5", {"task_type": "SEQ_2_SEQ_LM"}),
    ("T5ForSequenceClassification", "t5", {"task_type": "SEQ_CLS"}),
]


@pytest.mark.parametrize(("name", "model_type", "options"), CASES, ids=lambda value: value if "For" in value else "")
def test_training_and_inference_equal_plain_on_every_split(name, model_type, options):
    net = model(name, model_type, **options)
    batch = sample_batch(net, batch_size=4, length=8, padded=True)
    configs = [IPUConfig(layers_per_ipu=split) for split in SPLITS]
    assert_training_equals_plain(net, configs, batch, atol=1e-6)
    assert_inference_equals_plain(net, configs, batch, atol=1e-6)
    assert plan(to_pipelined(net, configs[1]), batch).layers_per_ipu == (1, 3)


def test_a_model_without_a_head_gives_its_features():
    net = model("BertModel", "bert", task_type="FEATURE_EXTRACTION")
    assert type(net) is peft.PeftModelForFeatureExtraction
    batch = sample_batch(net, batch_size=4, length=8)
    assert_inference_equals_plain(net, [IPUConfig(layers_per_ipu=split) for split in SPLITS], batch, atol=1e-6)


def test_the_model_within_is_of_the_class_its_family_declares():
    net = to_pipelined(model("BertForTokenClassification", "bert", task_type="TOKEN_CLS"), IPUConfig())
    assert type(adapted(net)).__name__ == "PipelinedBertForTokenClassification"
    assert net.family is installed().family("bert")


@pytest.mark.parametrize(
    "option",
    [
        {"embedding_serialization_factor": 3},
        {"projection_serialization_factor": 3},
        {"serialized_embedding_splits_per_ipu": [2, 1]},
    ],
    ids=lambda option: next(iter(option)),
)
def test_vocabularies_in_shards_equal_plain(option):
    net = model("LlamaForCausalLM", "llama", task_type="CAUSAL_LM")
    config = IPUConfig(layers_per_ipu=[1, 3], **option)
    assert_training_equals_plain(net, config, sample_batch(net, batch_size=4, length=8), atol=1e-6)


def test_a_head_that_sees_masked_tokens_alone_has_the_same_loss():
    net = model("BertForMaskedLM", "bert", target_modules=["query"]).eval()
    batch = sample_batch(net, batch_size=4, length=8)
    batch["labels"][:, 2:] = -100
    view = to_pipelined(net, IPUConfig(layers_per_ipu=[1, 3], max_masked_tokens=2))
    with view.parallelized(), torch.no_grad():
        gathered, whole = view(**batch), net(**batch)
    assert gathered.logits.shape == (4, 2, 99)
    torch.testing.assert_close(gathered.loss, whole.loss)


def test_packed_rows_have_the_gradients_of_the_padded_ones():
    net = model("BertForTokenClassification", "bert", task_type="TOKEN_CLS", lora_dropout=0.0)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = sample_batch(net, batch_size=4, length=8, padded=True)
    net.train()(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    training_model(to_pipelined(net, IPUConfig(layers_per_ipu=[1, 3], packed_rows=3, packed_length=16)))(**batch)
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_check_of_the_family_is_asked_of_every_batch():
    net = model("T5ForSequenceClassification", "t5", task_type="SEQ_CLS")
    batch = sample_batch(net, batch_size=4, length=8)
    batch["input_ids"][0, 0] = 1  # a second end of the sequence
    with pytest.raises(ValueError, match="same number of <eos> tokens"):
        to_pipelined(net, IPUConfig()).check_batch(batch)
