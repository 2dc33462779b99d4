# SPDX-License-Identifier: Apache-2.0
"""T5 and mT5 in half precision: finite where upstream is, and equal to it, also where sub-layers overflow."""

import contextlib

import pytest
import torch
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.testing import sample_batch, tiny_model
from ipu_models_seq2seq.families.mt5 import MT5
from ipu_models_seq2seq.families.t5 import T5
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def overflowing_blocks(model):
    """Collect, of every sub-layer that runs, whether it came to the end of what half precision holds."""
    found = []
    modules = [layer for stack in (model.encoder, model.decoder) for block in stack.block for layer in block.layer]
    handles = [
        module.register_forward_hook(
            lambda module, inputs, outputs: found.append(bool((pytree.tree_leaves(outputs)[0].abs() > 64000).any()))
        )
        for module in modules
    ]
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("family", "name", "gain"),
    [
        (T5, "T5ForConditionalGeneration", 1.0),
        (T5, "T5ForConditionalGeneration", 40.0),
        (MT5, "MT5ForConditionalGeneration", 1.0),
        (MT5, "MT5ForConditionalGeneration", 10.0),
    ],
)
def test_the_forward_is_finite_where_upstream_is(family, name, gain):
    model = tiny_model(family, name).eval()
    with torch.no_grad():
        for block in (*model.encoder.block, *model.decoder.block):
            for weight in block.layer[-1].parameters():
                weight *= gain
    model = model.half()
    batch = sample_batch(model, batch_size=3, length=12, padded=True)
    with torch.no_grad(), overflowing_blocks(model) as overflows:
        expected = model(**batch, use_cache=False)
    assert any(overflows) is (gain > 1)
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1, 1, 1])))(**batch)
    assert torch.equal(outputs.logits.isfinite(), expected.logits.isfinite())
    assert expected.logits.isfinite().all()
    torch.testing.assert_close(outputs.logits, expected.logits, atol=0, rtol=0)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=0, rtol=0)
