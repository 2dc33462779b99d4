# SPDX-License-Identifier: Apache-2.0
"""Small values that layers read of the piece before them are computed in the layers, and nothing else is."""

from dataclasses import replace

import pytest
import torch
from ipu_core import IPUConfig, to_pipelined
from ipu_core.kernels.sink_pass import sink
from ipu_core.lowering import lower
from ipu_core.runtime.replay import Replay
from ipu_core.runtime.weights import Weights
from test_generation import HEADS, SIZE, lively
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def model():
    return lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))


@pytest.fixture(scope="module")
def inputs():
    ids = torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


@pytest.fixture(scope="module")
def lowered(model, inputs):
    config = IPUConfig(layers_per_ipu=[-1], compile=True).for_inference()
    with torch.no_grad():
        return lower(to_pipelined(model, IPUConfig(layers_per_ipu=[-1])), config, inputs, micro_batch_size=2)


def test_layers_compute_masks_and_angles(model, inputs, lowered):
    captured, pieces = lowered.captured, lowered.stage_graphs
    first, *layers, head = pieces
    assert layers[0].program is layers[1].program
    assert len(first.outputs) > 1
    changed = sink(captured, pieces, into=layers)
    assert changed[0].outputs == ("embedding",)
    assert changed[1].program is changed[2].program
    assert changed[3] is head
    assert {"input_ids", "attention_mask"} >= set(changed[1].inputs) & set(inputs)
    line = Replay(captured, changed, Weights(captured, model))
    line.bind(inputs)
    with torch.no_grad():
        torch.testing.assert_close(line.run()[0], model(**inputs).logits, atol=1e-5, rtol=1e-5)
    # Nothing was changed in what was given.
    assert lowered.stage_graphs == pieces
    assert len(first.program.graph.nodes) > len(changed[0].program.graph.nodes)


def test_what_others_read_too_stays(lowered):
    captured, pieces = lowered.captured, lowered.stage_graphs
    assert sink(captured, pieces, into=pieces[2:]) == pieces


def test_what_a_piece_changes_stays(lowered):
    captured, (first, *others) = lowered.captured, lowered.stage_graphs
    others[-1] = replace(others[-1], changes=frozenset(first.inputs))
    pieces = (first, *others)
    assert sink(captured, pieces, into=others) == pieces
