# SPDX-License-Identifier: Apache-2.0
"""The families that become static by source edits: edits are neutral, and pipelined equals plain, padded included."""

from __future__ import annotations

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import CacheError, GenerationModeError
from ipu_core.rewrites.source_edits import edited, edits_of
from ipu_core.testing import (
    sample_batch,
)
from ipu_models_seq2seq.families.led import LED
from ipu_models_seq2seq.families.m2m_100 import M2M_100
from ipu_models_seq2seq.families.nllb_moe import NLLB_MOE
from ipu_models_seq2seq.families.prophetnet import PROPHETNET
from ipu_models_seq2seq.families.switch_transformers import SWITCH_TRANSFORMERS

FAMILIES = (PROPHETNET, M2M_100, LED, NLLB_MOE, SWITCH_TRANSFORMERS)
CLASSES = {name: family for family in FAMILIES for name in family.models}
# These draw other random numbers than plain with dropout, or are compared with it separately.
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "dropout_rate"), 0.0)

each_class = pytest.mark.parametrize("name", CLASSES)


def plain(name, **values):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**{**CLASSES[name].tiny, **NO_DROPOUT, **values}))


def sample(model, padded, labels=True):
    return sample_batch(model, batch_size=2, length=16, padded=padded, labels=labels)


@each_class
def test_the_edits_are_neutral_when_run_eagerly_and_leave_another_model_alone(name):
    model, other = plain(name).eval(), plain(name).eval()
    batch = sample(model, padded=True, labels=False)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True, use_cache=False)
        with edited(model, edits_of(CLASSES[name].edits)):
            outputs = model(**batch, output_hidden_states=True, use_cache=False)
            assert not any("forward" in vars(module) for module in other.modules())
            torch.testing.assert_close(other(**batch)[0], expected[0], rtol=0, atol=0)
    kind = "hidden_states" if "hidden_states" in expected else "encoder_hidden_states"
    assert len(outputs[kind]) == len(expected[kind])
    for ours, theirs in zip(outputs[kind], expected[kind], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CLASSES if name.endswith("ForConditionalGeneration")])
def test_tokens_are_the_plain_models_with_static_caches(name):
    model = plain(name).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # weights that are all but zero say one token for ever
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.update(pad_token_id=0, eos_token_id=7, bos_token_id=1, decoder_start_token_id=2)
    ids = torch.randint(8, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1])))
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    if name.startswith("ProphetNet"):
        with pytest.raises(CacheError, match="use_cache=False"):
            generator.generate(ids, **options)
        for _ in range(2):
            with pytest.raises(GenerationModeError, match="gives other logits after 1 tokens when more follow them"):
                generator.generate(ids, use_cache=False, **options)
        return
    options |= {"output_logits": True, "return_dict_in_generate": True}
    found, wanted = (which.generate(ids, **options) for which in (generator, model))
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4, rtol=1e-4)
