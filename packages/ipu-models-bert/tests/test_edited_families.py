# SPDX-License-Identifier: Apache-2.0
"""The families that become static by source edits: what the edits change is nothing, run eagerly."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core.rewrites.source_edits import edited, edits_of
from ipu_core.testing import (
    sample_batch,
)
from ipu_models_bert.families.ibert import IBERT
from ipu_models_bert.families.longformer import LONGFORMER
from ipu_models_bert.families.nystromformer import NYSTROMFORMER
from ipu_models_bert.families.reformer import REFORMER

FAMILIES = (LONGFORMER, REFORMER, NYSTROMFORMER, IBERT)
CLASSES = {name: family for family in FAMILIES for name in family.models}
# These draw other random numbers than plain with dropout, or are compared with it separately.
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0,
}

each_class = pytest.mark.parametrize("name", CLASSES)


def plain(name, **values):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    decoding = {"is_decoder": True, "local_num_chunks_after": 0} if name == "ReformerModelWithLMHead" else {}
    return cls(cls.config_class(**{**CLASSES[name].tiny, **NO_DROPOUT, **decoding, **values}))


def sample(model, padded, labels=True):
    return sample_batch(model, batch_size=2, length=16, padded=padded, labels=labels)


@each_class
def test_the_edits_are_neutral_when_run_eagerly_and_leave_another_model_alone(name):
    model, other = plain(name).eval(), plain(name).eval()
    batch = sample(model, padded=not name.startswith("Nystromformer"), labels=False)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        with edited(model, edits_of(CLASSES[name].edits)):
            outputs = model(**batch, output_hidden_states=True)
            assert not any("forward" in vars(module) for module in other.modules())
            torch.testing.assert_close(other(**batch)[0], expected[0], rtol=0, atol=0)
    assert len(outputs.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
