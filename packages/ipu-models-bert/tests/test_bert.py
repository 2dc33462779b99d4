# SPDX-License-Identifier: Apache-2.0
"""What holds of BERT beside equality: micro-batches, where its head sits, what comes out, checkpoints."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.testing import (
    sample_batch,
)
from ipu_models_bert import PipelinedBertForSequenceClassification
from ipu_models_bert.families.bert import BERT

NUM_LAYERS = 4
WITH_LOSS = [name for name in BERT.models if name != "BertModel"]

each_class_with_a_loss = pytest.mark.parametrize("name", WITH_LOSS)


def plain(name: str, dtype: torch.dtype = torch.float32, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    tiny = {**BERT.tiny, "num_hidden_layers": NUM_LAYERS, "is_decoder": name == "BertLMHeadModel", **options}
    return getattr(transformers, name)(transformers.BertConfig(**tiny)).to(dtype)


@pytest.mark.turns(1)
@each_class_with_a_loss
def test_four_micro_batches_of_two_equal_one_batch_of_eight(name):
    # Unpadded rows: the mean over a batch is then the mean of its micro-batches' means.
    model = plain(name, torch.float64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = sample_batch(model, batch_size=8, length=12)
    gradients = []
    for steps in (1, 4):
        model.zero_grad()
        executor = training_model(
            to_pipelined(model, IPUConfig(layers_per_ipu=[1, 3], gradient_accumulation_steps=steps))
        )
        executor(**batch)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], expected, atol=1e-12, rtol=0, msg=parameter)


def test_the_tied_head_sits_with_its_embedding():
    model = plain("BertForMaskedLM")
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1, 2])))
    plan = executor.compile(**sample_batch(model, batch_size=2, length=8)).plan
    assert [(stage.ipu, stage.modules) for stage in plan.stages] == [
        (0, ("bert.embeddings", "bert.encoder.layer.0")),
        (1, ("bert.encoder.layer.1",)),
        (2, ("bert.encoder.layer.2", "bert.encoder.layer.3")),
        (0, ("cls",)),
    ]
    assert plan.num_parameters == model.num_parameters()


def test_an_untied_head_sits_on_the_last_ipu():
    model = plain("BertForSequenceClassification")
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])))
    plan = executor.compile(**sample_batch(model, batch_size=2, length=8)).plan
    assert plan.stages[-1].ipu == 1
    assert plan.stages[-1].modules == ("bert.encoder.layer.2", "bert.encoder.layer.3", "bert.pooler", "classifier")


def test_hidden_states_and_attentions_come_out_as_upstream():
    model = plain("BertModel").eval()
    model.set_attn_implementation("eager")
    batch = sample_batch(model, batch_size=2, length=8)
    flags = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = model(**batch, **flags)
    eager = to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2]))
    for outputs in (eager(**batch, **flags), inference_model(eager)(**batch, **flags)):
        assert len(outputs.hidden_states) == NUM_LAYERS + 1
        assert len(outputs.attentions) == NUM_LAYERS
        for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_checkpoint_saved_in_the_middle_of_training_loads_in_plain_transformers(tmp_path):
    model = plain("BertForSequenceClassification")
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 3]))
    batch = sample_batch(model, batch_size=4, length=12)
    executor = training_model(pipelined, torch.optim.AdamW(pipelined.parameters(), lr=1e-2))
    executor(**batch)
    with pipelined.parallelized():
        pipelined.save_pretrained(tmp_path)
        assert pipelined.is_parallelized
    executor.compile(**batch)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is transformers.BertForSequenceClassification
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = loaded.eval()(**inputs).logits
    torch.testing.assert_close(inference_model(pipelined)(**inputs).logits, expected, atol=1e-6, rtol=0)
    again = PipelinedBertForSequenceClassification.from_pretrained(tmp_path)
    assert again.ipu_config == pipelined.ipu_config
    torch.testing.assert_close(inference_model(again)(**inputs).logits, expected, atol=1e-6, rtol=0)
    executor(**batch)  # and training goes on
