# SPDX-License-Identifier: Apache-2.0
"""Layouts: declared or discovered, in the order modules run, without gaps."""

import re

import pytest
import transformers
from ipu_core.capture.capture import capture
from ipu_core.errors import LayoutError
from ipu_core.partition.layout import count_layers, explain_no_list, layout, module_entries
from ipu_core.samples import sample_batch
from models import Backwards, Chain, Flat, Unused, batch, make

TINY_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 99, "n_positions": 64}


def laid_out(model, patterns=None, inputs=None):
    found = layout(model, patterns, capture(model, inputs or batch(), training=True))
    return [(entry.path, entry.repeated) for entry in found.entries]


def test_a_list_of_layers_is_discovered_with_the_modules_beside_it():
    assert laid_out(make(Chain)) == [
        ("inner", False),
        ("layers.0", True),
        ("layers.1", True),
        ("layers.2", True),
        ("head", False),
    ]


def test_entries_are_in_the_order_they_run():
    assert [path for path, _ in laid_out(make(Backwards))] == ["inner", "layers.2", "layers.1", "layers.0", "head"]


def test_a_module_that_never_runs_stays_beside_its_predecessor():
    assert [path for path, _ in laid_out(make(Unused))][-2:] == ["head", "spare"]


def test_nested_stacks_of_a_transformers_model_are_discovered():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY_GPT2))
    inputs = sample_batch(model, batch_size=2, length=6)
    assert [path for path, _ in laid_out(model, inputs=inputs)] == [
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.0",
        "transformer.h.1",
        "transformer.h.2",
        "transformer.ln_f",
        "lm_head",
    ]


def test_encoder_and_decoder_layers_are_counted_together():
    config = transformers.T5Config(d_model=32, num_layers=2, num_decoder_layers=3, num_heads=2, d_ff=64, d_kv=16)
    model = transformers.T5ForConditionalGeneration(config)
    assert sum(entry.repeated for entry in module_entries(model, None)) == 5
    assert count_layers(model, ("shared", "encoder.block.*", "decoder.block.*", "encoder", "decoder")) == 5


def test_stages_made_of_layers_are_cut_between_their_layers():
    config = transformers.ConvNextConfig(depths=[1, 1, 3, 1], hidden_sizes=[8, 8, 16, 16], num_stages=4)
    entries = module_entries(transformers.ConvNextForImageClassification(config), None)
    assert sum(entry.repeated for entry in entries) == 6


def test_layers_are_counted_without_a_run_where_it_could_not_change_their_number():
    assert count_layers(make(Chain), None) == 3
    assert count_layers(make(Chain, num_layers=1), None) is None  # it may be a shared one
    config = transformers.ConvNextConfig(depths=[1, 1, 3, 1], hidden_sizes=[8, 8, 16, 16], num_stages=4)
    assert count_layers(transformers.ConvNextForImageClassification(config), None) is None
    config = transformers.T5Config(d_model=32, num_layers=2, num_heads=2, d_ff=64, d_kv=16)
    assert count_layers(transformers.T5EncoderModel(config), None) == 2
    assert count_layers(transformers.T5Model(config), None) is None  # a batch may leave one of the lists out


def test_a_declaration_is_relative_to_the_base_model_and_heads_follow():
    config = transformers.GPT2Config(**TINY_GPT2, num_labels=2, pad_token_id=0)
    declared = ("wte", "wpe", "h.*", "ln_f", "absent")
    for cls in (transformers.GPT2Model, transformers.GPT2ForTokenClassification):
        entries = module_entries(cls(config), declared)
        assert sum(entry.repeated for entry in entries) == 3
    assert entries[-1].path == "classifier"


def test_a_gap_is_refused_with_the_modules_it_leaves_out():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY_GPT2))
    with pytest.raises(
        LayoutError, match="leaves 1 modules with parameters out: transformer.wpe; it has transformer.wte"
    ):
        module_entries(model, ("wte", "h.*", "ln_f"))


def test_a_model_without_layers_is_its_children():
    assert [(entry.path, entry.repeated) for entry in module_entries(make(Flat), None)] == [("linear", False)]
    message = r"`Flat` has no list of layers .*: declare a Family .* `linear` \(Linear\) does, which holds 100% of its"
    assert re.match(message, explain_no_list(make(Flat)))


def test_patterns_inside_the_members_of_a_list_are_in_the_order_of_the_members():
    config = transformers.ConvNextConfig(depths=[1, 2, 1], hidden_sizes=[8, 8, 16], num_stages=3)
    model = transformers.ConvNextModel(config)
    patterns = ("embeddings", "encoder.stages.*.downsampling_layer", "encoder.stages.*.layers.*", "layernorm")
    assert [entry.path for entry in module_entries(model, patterns)] == [
        "embeddings",
        "encoder.stages.0.layers.0",
        "encoder.stages.1.downsampling_layer",
        "encoder.stages.1.layers.0",
        "encoder.stages.1.layers.1",
        "encoder.stages.2.downsampling_layer",
        "encoder.stages.2.layers.0",
        "layernorm",
    ]


def test_what_lies_beside_the_declared_modules_is_found_and_parameters_of_what_holds_them_are_no_gap():
    model = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8,),
            conv_kernel=(3,),
            conv_stride=(2,),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )
    patterns = ("feature_extractor.conv_layers.*", "feature_projection", "encoder.pos_conv_embed", "encoder.layer_norm")
    paths = [entry.path for entry in module_entries(model, (*patterns, "encoder.layers.*"))]
    assert paths[0] == "wav2vec2.feature_extractor.conv_layers.0"
    assert paths[-2:] == ["wav2vec2.encoder.layers.0", "lm_head"]
