# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recipe: all of it at once, each with its line."""

import dataclasses
import inspect
import re

import pytest
import transformers
from ipu_trainer import IPUTrainingArguments
from ipu_trainer.errors import RecipeError
from ipu_trainer.recipes import check, document_of
from ipu_trainer.recipes.architectures import UNREAD, configuration, parameters, problems_of
from ipu_trainer.recipes.explain import explained
from ipu_trainer.recipes.schema import BLOCKS
from recipe_files import TINY, recipe, write

BROKEN = """\
input_info: {input_name: text, input_tipe: sequence}
input_type_info:
  max_length: long
  min_freq: 0
  tokenizer: spacy
  tokenizer_language: en
  mixing_subtype: mixup
  modality_dropout_rate: 2
model_config:
  model_type: bert
  model_init_config: {num_layers: 2, position_embedding_type: relative_key}
  pool: median
  window_size: 1.5
  masked: true
output_type_info: {target_cat_columns: label}
ipu_config: {layers_per_ip: [1], gradient_accumulation_steps: 0}
training: {learning_rate: fast, max_step: 2, bf16: true}
dat: {}
"""


def problems(tmp_path, said=None, *, text=None):
    file = tmp_path / "run.yaml"
    if text is None:
        write(tmp_path, said)
    else:
        file.write_text(text)
    with pytest.raises(RecipeError) as raised:
        check(document_of([file]))
    return [line.replace(f"{file}:", "") for line in str(raised.value).splitlines()]


def test_everything_that_is_wrong_is_said_at_once_with_its_line(tmp_path):
    found = problems(tmp_path, text=BROKEN)
    assert [line.partition(":")[0] for line in found] == [
        *("1", "3", "4", "5", "7", "8", "11", "11", "12", "13", "14", "15", "16", "16", "17", "17", "18"),
    ]
    said = "\n".join(found)
    for part in (
        "`input_tipe` is no key of `input_info`, did you mean `input_type`?",
        "`max_length: 'long'` is not one of max, average",
        "`min_freq: 0` is less than 1",
        "`tokenizer: 'spacy'` is not offered: it needs a package of its own",
        "`num_layers` is no parameter of bert, did you mean `num_hidden_layers`?",
        "`position_embedding_type: relative_key` would have no effect on bert: transformers",
        "`mixing_subtype: 'mixup'` has no effect: texts are not mixed in training",
        "`modality_dropout_rate: 2` is more than 0.99",
        "`pool: 'median'` is not one of avg, max, none",
        "`window_size: 1.5` is a number: give a whole number",
        "`masked: true` has no effect: targets are of a table",
        "`target_cat_columns: 'label'` is a text: give a list, each a text",
        "`layers_per_ip` is no option of IPUConfig, did you mean `layers_per_ipu`?",
        "`gradient_accumulation_steps` must be >= 1",
        "`learning_rate: 'fast'` is a text: give a number",
        "`max_step` is no argument of IPUTrainingArguments, did you mean `max_steps`?",
        "`dat` is no key, did you mean `data`?",
    ):
        assert part in said, part


def test_what_contradicts_itself_is_said_at_once(tmp_path):
    found = problems(
        tmp_path,
        recipe(
            tmp_path,
            input_type_info={"adaptive_tokenizer_max_vocab_size": 9, "vocab_file": "nowhere.txt"},
            model_config={
                "model_type": "bert",
                "freeze_pretrained_model": True,
                "embedding_dim": 8,
                "position_dropout": 0.5,
                "model_init_config": {"num_layers": 2, "position_embedding_type": "relative_key"},
            },
            data={"source": "nowhere.csv"},
            training={"auto_find_batch_size": True},
        ),
    )
    said = "\n".join(found)
    for part in (
        "`adaptive_tokenizer_max_vocab_size: 9` has no effect: only `tokenizer: bpe` learns tokens",
        "`vocab_file: nowhere.txt` is not there",
        "`freeze_pretrained_model: true` has no effect with `pretrained_model: false`",
        "`position_dropout: 0.5` has no effect without `position`",
        "`num_layers` is no parameter of bert, did you mean `num_hidden_layers`?",
        "`position_embedding_type: relative_key` would have no effect on bert: transformers",
        "`nowhere.csv` is not there",
        "`auto_find_batch_size=True` has no effect on a pipelined model",
    ):
        assert part in said, (part, said)


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        ({"model_type": "longfromer"}, "is no model type, did you mean `longformer`?.* and no checkpoint that is here"),
        ({"model_type": "nobody/nothing"}, "`nobody/nothing` is no model type.*nothing is downloaded"),
        ({"model_type": "{tmp}"}, "is a directory without a config.json"),
        ({"model_type": "vit"}, r"`vit` \(ViTModel\) does not read texts"),
        ({"model_type": "bert", "pretrained_model": True}, "is a type, and `pretrained_model: true` takes a directory"),
        ({"model_type": "bert", "embedding_dim": 8}, "`embedding_dim: 8` has no effect on bert.*set `hidden_size`"),
        ({"model_type": "bert", "model_init_config": {"hidden_size": "x"}}, "expected int, got str"),
        (
            {"model_type": "bert", "model_init_config": {"hidden_size": 10, "num_attention_heads": 3}},
            r"bert cannot be made so: The hidden size \(10\) is not a multiple",
        ),
        ({"embedding_dim": 10}, "`embedding_dim` is 10, which `num_heads=8` does not divide"),
        ({"model_init_config": {"hidden_size": 16}}, "the width of sequence-default is `embedding_dim`"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(tmp_path, model_config, message):
    said = {name: v.format(tmp=tmp_path) if name == "model_type" else v for name, v in model_config.items()}
    found = problems(tmp_path, recipe(tmp_path, model_config=said))
    assert any(re.search(message, line) for line in found), found


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"input_info": {"input_name": "keys"}}, "`input_name: keys` cannot name a module"),
        ({"input_info": {}}, "`input_info` has no `input_name`: name of the input"),
        ({"input_info": None, "input_type_info": None, "model_config": None}, "there are no `inputs`"),
        ({"output_type_info": {}}, "there is nothing to predict"),
        ({"output_type_info": {"target_cat_columns": ["a"], "target_con_columns": ["a"]}}, "`a` is there twice"),
        (
            {"data": {"eval_source": "a.csv", "eval_size": 3}},
            "`eval_size` holds out rows, and `eval_source` has others",
        ),
        ({"data": {"columns": {"txt": "a"}}}, "`txt` is the name of no input, did you mean `text`?"),
        ({"input_type_info": {"tokenizer_language": "en"}}, "only `tokenizer: basic_english` has a language"),
        ({"input_type_info": {"tokenizer": "bpe", "tokenizer_language": "en"}}, "has a language"),
        ({"data": {"source": "{table}", "eval_size": 24}}, "holds out 24 of 24 rows: leave some to train on"),
        ({"data": {"source": "{table}", "id_column": "label"}}, "more than one row for the same `label`"),
        ({"ipu_config": [1]}, r"`ipu_config` is \[1\], and is a mapping"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(tmp_path, blocks, message):
    said = recipe(tmp_path, **blocks)
    if "source" in (blocks.get("data") or {}):
        said["data"] = {**said["data"], "source": str(tmp_path / "reviews.csv")}
    assert any(message.replace("\\", "") in line for line in problems(tmp_path, said))


def test_parameters_that_upstream_no_longer_reads_are_refused_unless_they_are_the_default():
    kept = {name: (default, types) for name, (default, types, _) in UNREAD.items()}
    others = ("forced_eos_token_id", "num_labels")
    assert sum(len(types) for name, (_, types) in kept.items() if name not in others) == 23
    for name, (default, types) in kept.items():
        for model_type in types:
            assert not problems_of(model_type, {name: default}), model_type
            other = "relative_key" if default == "absolute" else 17
            assert "would have no effect" in problems_of(model_type, {name: other})[name], model_type
    assert configuration("xlnet", {"untie_r": True, "d_model": 32}).d_model == 32


def test_parameters_that_are_folded_or_have_two_names_are_taken():
    assert configuration("llama", {"rope_theta": 7.0}).rope_parameters["rope_theta"] == 7.0
    assert configuration("gpt2", {"hidden_size": 12}).n_embd == 12
    assert {"n_embd", "hidden_size"} <= set(parameters("gpt2")) and "num_labels" not in parameters("bert")
    assert "`attention_windw` is no parameter" in problems_of("longformer", {"attention_windw": 1})["attention_windw"]
    with pytest.raises(RecipeError, match="did you mean `attention_window`"):
        configuration("longformer", {"attention_windw": 1})


def test_everything_is_explained():
    text = explained(None)
    for name, block in BLOCKS.items():
        assert f"{name}:" in text
        for field in dataclasses.fields(block):
            assert field.metadata["meaning"] and f"\n  {field.name} " in text, field.name
    for field in dataclasses.fields(IPUTrainingArguments):
        assert f"\n  {field.name} " in text, field.name
    assert "layers_per_ipu" in text and "inference_layers_per_ipu" in text
    assert max(map(len, text.splitlines())) <= 118
    assert "attention_window" in explained("longformer") and "longformer" in explained("types")
    assert "upstream no longer reads it" in explained("bert")
    with pytest.raises(RecipeError, match="`model_confg` is no block .* did you mean `model_config`"):
        explained("model_confg")


def test_the_schema_has_every_key_of_the_blocks_that_are_read_as_they_are():
    wanted = {
        "input_info": {"input_source", "input_name", "input_type"},
        "input_type_info": {
            *("vocab_file", "max_length", "sampling_strategy_if_longer", "min_freq", "split_on", "tokenizer"),
            *("tokenizer_language", "adaptive_tokenizer_max_vocab_size", "mixing_subtype", "modality_dropout_rate"),
        },
        "model_config": {
            *("model_type", "model_init_config", "embedding_dim", "position", "position_dropout", "window_size"),
            *("pool", "pretrained_model", "freeze_pretrained_model", "masked"),
        },
    }
    for name, keys in wanted.items():
        assert {field.name for field in dataclasses.fields(BLOCKS[name])} == keys


def test_parameters_are_those_of_the_configuration_class():
    signature = inspect.signature(transformers.LongformerConfig.__init__).parameters
    assert set(parameters("longformer")) >= {"attention_window", "sep_token_id", "vocab_size"}
    assert set(TINY) <= set(parameters("bert")) and "num_hidden_layers" in signature
