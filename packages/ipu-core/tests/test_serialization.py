# SPDX-License-Identifier: Apache-2.0
"""Captured graphs as files: what is read back runs as what was written, and equal layers have equal texts."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined
from ipu_core.capture.capture import Constant
from ipu_core.capture.serialization import CONSTANTS, GRAPH, NotStorable, read_capture, text_of, write_capture
from ipu_core.engines.registry import usable_engine
from ipu_core.executor import Executor
from ipu_core.lowering import capture_model, lower
from ipu_core.samples import sample_batch
from models import Chain, InPlace, Normed, Skip, Tied, Unused, batch, make


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=40, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=40))


MODELS = [*(lambda cls=cls: make(cls) for cls in (Chain, InPlace, Normed, Skip, Tied, Unused)), gpt2, t5, llama]


@pytest.mark.parametrize("make_model", MODELS)
def test_a_graph_that_was_read_runs_as_the_one_that_was_written(make_model, tmp_path):
    torch.manual_seed(0)
    model = make_model().train()
    inputs = batch() if not hasattr(model, "config") else sample_batch(model, batch_size=2, length=8)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1], ipus_per_replica=2))
    config = pipelined.ipu_config.for_training()
    captured = capture_model(pipelined, config, inputs)
    write_capture(captured, tmp_path)
    read = read_capture(tmp_path)
    plans, gradients = [], []
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for graph in (captured, read):
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(0)
        rows = next(iter(inputs.values())).shape[0]
        plans.append(lower(pipelined, config, inputs, micro_batch_size=rows, captured=graph).plan)
        Executor(pipelined, config, usable_engine(None), captured=graph)(**inputs)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert plans[0] == plans[1]
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_nothing_that_is_written_could_run(tmp_path):
    model = to_pipelined(gpt2(), IPUConfig())
    write_capture(
        capture_model(model, IPUConfig().for_inference(), {"input_ids": torch.ones(1, 4, dtype=torch.long)}), tmp_path
    )
    assert {file.name for file in tmp_path.iterdir()} == {GRAPH, CONSTANTS}
    json.loads((tmp_path / GRAPH).read_text())


def test_equal_layers_have_equal_texts_and_others_do_not():
    config = IPUConfig(recompute_checkpoint_every_layer=True)
    model = to_pipelined(make(Chain, num_layers=5), config)
    pieces = lower(model, config.for_training(), batch(), micro_batch_size=4).stage_graphs
    assert len(pieces) == 7
    assert len({text_of(piece.program) for piece in pieces}) == 3


def test_what_json_has_no_place_for_is_not_stored(tmp_path):
    captured = capture_model(to_pipelined(make(Chain), IPUConfig()), IPUConfig().for_inference(), {"x": batch()["x"]})
    with pytest.raises(NotStorable, match="returns a complex, which is not stored: 1j"):
        write_capture(replace(captured, outputs=(Constant(1j),)), tmp_path)
