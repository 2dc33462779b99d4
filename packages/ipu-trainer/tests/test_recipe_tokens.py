# SPDX-License-Identifier: Apache-2.0
"""Texts to tokens: splitting, vocabularies of each kind, and rows of one length."""

import json

import pytest
import tokenizers
import torch
import transformers
from ipu_trainer.errors import RecipeError
from ipu_trainer.recipes.schema import InputTypeInfo
from ipu_trainer.recipes.sequences import Encoder, Rows, length_of
from ipu_trainer.recipes.tokens import Vocabulary, basic_english, pieces, vocabulary_of, words

TEXTS = ["the cat sat", "the cat ran", "the dog ran away"]


def info(**values):
    return InputTypeInfo(**{"min_freq": 1, **values})


def made(texts=TEXTS, **values):
    return vocabulary_of(info(**values), texts, checkpoint=None)


def test_a_text_is_split_where_it_is_told():
    assert pieces(" to  be\nor", " ") == ["to", "be", "or"]
    assert pieces("to be,or,,not", ",") == ["to be", "or", "not"]
    assert pieces("to b", None) == list("to b")


def test_basic_english_has_lower_case_and_marks_apart():
    assert basic_english('The "cat", (mine); sat<br />here!') == [
        *("the", "cat", ",", "(", "mine", ")", "sat", "here", "!"),
    ]
    assert words("A.b,C", ",", "basic_english") == ["a", ".", "b", "c"]


def test_words_are_numbered_by_frequency_and_rare_ones_are_unknown():
    vocabulary = made(min_freq=2)
    assert vocabulary.numbers == {"<pad>": 0, "<unk>": 1, "the": 2, "cat": 3, "ran": 4}
    assert vocabulary.encode("the dog ran") == [2, 1, 4]
    assert made(min_freq=None, texts=["a b"] * 10).numbers.keys() == {"<pad>", "<unk>", "a", "b"}
    with pytest.raises(RecipeError, match=r"no token of 3 training texts .* lower `min_freq` \(now 10\)"):
        made(min_freq=None)


@pytest.mark.parametrize(
    ("name", "text"), [("v.txt", "cat\nthe\n<unk>\n"), ("v.json", '{"the": 1, "cat": 0, "<unk>": 2}')]
)
def test_a_vocabulary_can_be_given(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    vocabulary = made(vocab_file=str(tmp_path / name), min_freq=None)
    assert vocabulary.numbers == {"<pad>": 0, "cat": 1, "the": 2, "<unk>": 3}
    assert vocabulary.encode("the dog") == [2, 3]
    rarer = made(vocab_file=str(tmp_path / name), min_freq=3)
    assert set(rarer.numbers) == {"<pad>", "the", "<unk>"} and rarer.encode("the cat") == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v.txt", "a\nb\na\n", "has 1 tokens twice, such as 'a'"),
        ("v.json", '{"a": 0, "b": 7}', "maps 2 tokens to other numbers than 0 to 1"),
        ("v.json", "[1]", "is no list of tokens"),
        ("v.json", "{", "cannot be read"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        made(vocab_file=str(tmp_path / name))
    with pytest.raises(RecipeError, match="`vocab_file: nowhere` is not there"):
        made(vocab_file="nowhere")


def test_pairs_are_learned_up_to_a_number_within_pieces(tmp_path):
    vocabulary = made(tokenizer="bpe", adaptive_tokenizer_max_vocab_size=16)
    assert len(vocabulary) == 16
    assert vocabulary.encode("the the") == vocabulary.encode("the") * 2
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.encode("the cat was here") == vocabulary.encode("the cat was here")
    given = made(tokenizer="bpe", vocab_file=str(tmp_path / "tokenizer.json"))
    assert given.encode("the cat") == vocabulary.encode("the cat")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "##s"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({t: n for n, t in enumerate(known)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_the_tokenizer_of_a_checkpoint_keeps_its_numbers(checkpoint, tmp_path):
    vocabulary = vocabulary_of(InputTypeInfo(), TEXTS, checkpoint=str(checkpoint))
    assert vocabulary.encode("the cats") == [4, 5, 7] and vocabulary.around == ([2], [3])
    assert (len(vocabulary), vocabulary.pad, vocabulary.unknown) == (8, 0, 1)
    rare = vocabulary_of(InputTypeInfo(min_freq=2), TEXTS, checkpoint=str(checkpoint))
    assert rare.encode("the cats dog") == [4, 5, 1, 1]
    rare.save(tmp_path)
    assert Vocabulary.load(tmp_path).encode("the cats dog") == [4, 5, 1, 1]
    with pytest.raises(RecipeError, match="has no tokenizer that can be loaded"):
        vocabulary_of(InputTypeInfo(), TEXTS, checkpoint=str(tmp_path / "nowhere"))


def test_lengths_are_a_number_the_longest_or_the_average():
    tokens = [[5] * 2, [5] * 3, [5] * 10]
    lengths = {said: length_of(info(max_length=said), tokens, around=2, window=0) for said in ("max", "average", 7)}
    assert lengths == {"max": 12, "average": 7, 7: 7}
    assert length_of(info(max_length=7), tokens, around=0, window=4) == 8


def encoder(strategy, length=4):
    return Encoder(vocabulary=made(), length=length, strategy=strategy)


def test_a_shorter_text_is_padded_and_a_longer_one_read_from_its_start_or_anywhere():
    assert encoder("from_start").row([5, 6]) == ([5, 6, 0, 0], [1, 1, 0, 0])
    assert encoder("from_start").row(range(10))[0] == [0, 1, 2, 3]
    torch.manual_seed(0)
    drawn = {tuple(encoder("uniform").row(range(10))[0]) for _ in range(200)}
    assert drawn == {tuple(range(start, start + 4)) for start in range(7)}


def test_a_text_without_a_token_is_an_unknown_one():
    assert encoder("from_start").row([]) == ([1, 0, 0, 0], [1, 0, 0, 0])


def test_a_checkpoints_tokens_are_around_the_part_that_is_read(checkpoint):
    vocabulary = vocabulary_of(InputTypeInfo(), TEXTS, checkpoint=str(checkpoint))
    ids, mask = Encoder(vocabulary=vocabulary, length=4, strategy="from_start").row([4, 5, 4, 5])
    assert (ids, mask) == ([2, 4, 5, 3], [1, 1, 1, 1])


def test_evaluation_reads_a_text_from_the_same_place_each_time_and_training_does_not():
    rows = {t: Rows({"a": encoder("uniform")}, {"a": [list(range(99))]}, None, is_training=t) for t in (True, False)}
    torch.manual_seed(0)
    seen = {t: {tuple(rows[t][0]["input_ids"].tolist()) for _ in range(20)} for t in rows}
    assert len(seen[False]) == 1 and len(seen[True]) > 10


def test_inputs_are_side_by_side():
    encoders = {"a": encoder("from_start"), "b": encoder("from_start", length=2)}
    rows = Rows(encoders, {"a": [[5]], "b": [[6, 7, 8]]}, torch.tensor([[1.0]]), is_training=True)
    assert rows[0]["input_ids"].tolist() == [5, 0, 0, 0, 6, 7]
    assert rows[0]["attention_mask"].tolist() == [1, 0, 0, 0, 1, 1] and rows[0]["labels"].tolist() == [1.0]


def test_what_was_not_saved_is_not_loaded(tmp_path):
    with pytest.raises(RecipeError, match="has no vocabulary that was saved with a model"):
        Vocabulary.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text(json.dumps({"kind": "words"}))
    with pytest.raises(RecipeError, match="has no vocabulary"):
        Vocabulary.load(tmp_path)
