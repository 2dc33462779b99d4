# SPDX-License-Identifier: Apache-2.0
"""Pipelines of images answer as upstream's do on the plain model; what is no image is refused by name."""

import json

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig, pipeline
from ipu_core.cli import main
from ipu_core.errors import InputError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils import _pytree as pytree

Image = pytest.importorskip("PIL.Image")
IPUS = pytest.mark.parametrize("ipu_config", [IPUConfig(), IPUConfig(layers_per_ipu=[1, 1, 1, 1])], ids=["1", "4"])
SIZE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "red", "what", "is", "there"]


def image(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (20 + seed, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = [image(seed) for seed in range(3)]


def vit(head, **more):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, num_hidden_layers=4, initializer_range=0.3, **SIZE, **more
    )
    return getattr(transformers, head)(config).eval()


def tokenizer():
    numbers = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=24, **names)


def assert_equal(found, expected):
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5) if isinstance(theirs, float) else ours == theirs


@IPUS
@pytest.mark.parametrize(
    ("task", "head"), [("image-classification", "ViTForImageClassification"), ("image-feature-extraction", "ViTModel")]
)
@pytest.mark.turns(4)
def test_images_are_told_apart_as_by_upstream(task, head, ipu_config):
    model = vit(head, **({"num_labels": 3} if "Image" in head else {}))
    more = {"image_processor": transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})}
    ours, theirs = pipeline(task, model, ipu_config, **more), transformers.pipeline(task, model, **more)
    for batch_size in (1, 2):
        assert_equal(ours(IMAGES, batch_size=batch_size), theirs(IMAGES, batch_size=batch_size))
    assert_equal(ours(IMAGES[0]), theirs(IMAGES[0]))


@IPUS
@pytest.mark.turns(4)
def test_labels_for_images_are_upstreams(ipu_config):
    torch.manual_seed(0)
    layers = 2 if len(ipu_config.layers_per_ipu) == 4 else 1
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config={**SIZE, **text, "num_hidden_layers": layers},
        vision_config={**SIZE, "num_hidden_layers": layers, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config).eval()
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    more = {"tokenizer": tokenizer(), "image_processor": transformers.CLIPImageProcessorPil(**sizes)}
    task = "zero-shot-image-classification"
    ours, theirs = pipeline(task, model, ipu_config, **more), transformers.pipeline(task, model, **more)
    for labels in (["cat", "red dog", "what is there"], ["cat", "dog"]):
        for batch_size in (1, 2):
            options = {"candidate_labels": labels, "batch_size": batch_size}
            assert_equal(ours(IMAGES, **options), theirs(IMAGES, **options))
    assert_equal(ours(IMAGES[0], candidate_labels=["cat"]), theirs(IMAGES[0], candidate_labels=["cat"]))


@IPUS
@pytest.mark.turns(4)
def test_questions_about_features_are_answered_as_by_the_plain_model(ipu_config):
    torch.manual_seed(0)
    layers = {"l_layers": 2, "x_layers": 1, "r_layers": 1}
    config = transformers.LxmertConfig(
        vocab_size=len(WORDS), num_qa_labels=5, visual_feat_dim=6, initializer_range=0.3, **layers, **SIZE
    )
    model = transformers.LxmertForQuestionAnswering(config).eval()
    words = tokenizer()
    draw = torch.Generator().manual_seed(0)
    questions = ["what is there", "what", "is a cat there a dog"]
    inputs = [
        {
            "question": question,
            "visual_feats": torch.randn(3, 6, generator=draw),
            "visual_pos": torch.rand(3, 4, generator=draw),
        }
        for question in questions
    ]
    expected = []
    for one in inputs:
        visual = {name: one[name][None] for name in ("visual_feats", "visual_pos")}
        with torch.no_grad():
            scores = model(**words(one["question"], return_tensors="pt"), **visual).question_answering_score[0]
        best = scores.softmax(0).topk(2)
        expected.append(best.values.tolist())
    ours = pipeline("vqa", model, ipu_config, tokenizer=words)
    for batch_size in (1, 2):
        found = ours(inputs, top_k=2, batch_size=batch_size)
        assert_equal([[answer["score"] for answer in answers] for answers in found], expected)
    with pytest.raises(InputError, match="give a dictionary with question, visual_feats, visual_pos"):
        ours({"question": "what"})


def test_files_are_read_and_what_is_no_image_is_refused(tmp_path, capsys):
    model = vit("ViTForImageClassification", num_labels=3)
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for place, picture in enumerate(IMAGES):
        picture.save(tmp_path / f"{place}.png")
    paths = [str(tmp_path / f"{place}.png") for place in range(3)]
    ours = pipeline("image-classification", str(tmp_path))
    theirs = transformers.pipeline("image-classification", str(tmp_path), image_processor=processor)
    assert_equal(ours(paths), theirs(paths))
    assert_equal(ours((tmp_path / "0.png").read_bytes()), theirs(paths[0]))
    assert main(["pipeline", "image-classification", "--model", str(tmp_path), "--json", *paths]) == 0
    assert_equal([json.loads(line) for line in capsys.readouterr().out.splitlines()], theirs(paths))
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:80])
    with pytest.raises(InputError, match=r"`.*broken.png` cannot be read as an image"):
        ours(str(tmp_path / "broken.png"))
    with pytest.raises(InputError, match=r"there is no image `.*gone.png`: give the path of a file that is there"):
        ours(str(tmp_path / "gone.png"))
    with pytest.raises(InputError, match="an image is a int"):
        ours(7)
