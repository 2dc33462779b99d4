# SPDX-License-Identifier: Apache-2.0
"""Pipelines of texts answer as upstream's do on the plain model, whatever comes; bad input is refused by name."""

import json
import logging

import numpy as np
import pytest
import tiny_texts
import torch
import transformers
from ipu_core import IPUConfig, pipeline, to_pipelined
from ipu_core.cli import main
from ipu_core.errors import InputError, TaskError
from ipu_core.pipelines.lengths import bucket
from ipu_core.pipelines.tasks import TASKS, task_of
from tiny_texts import TEXTS, assert_equal_answers, bert, gpt2, t5, tokenizer
from transformers.pipelines.pt_utils import KeyDataset

FOUR = IPUConfig(layers_per_ipu=[1, 1, 1, 1])
IPUS = pytest.mark.parametrize("ipu_config", [IPUConfig(), FOUR], ids=["1 IPU", "4 IPUs"])
BATCHES = pytest.mark.parametrize("batch_size", [1, 4])
TASK_CASES = {
    "text-classification": ("BertForSequenceClassification", {"top_k": None}, TEXTS),
    "token-classification": ("BertForTokenClassification", {"aggregation_strategy": "simple"}, TEXTS),
    "fill-mask": ("BertForMaskedLM", {"top_k": 3}, [f"[MASK] {text}" for text in TEXTS]),
    "zero-shot-classification": (
        "BertForSequenceClassification",
        {"candidate_labels": ["fox", "lazy dog"], "hypothesis_template": "the {}"},
        TEXTS[:3],
    ),
    "feature-extraction": ("BertModel", {}, TEXTS),
}


def both(task, model, ipu_config=None, **more):
    more.setdefault("tokenizer", tokenizer())
    return pipeline(task, model, ipu_config, **more), transformers.pipeline(task, model, **more)


@IPUS
@BATCHES
@pytest.mark.parametrize("task", TASK_CASES)
@pytest.mark.turns(16)
def test_answers_are_upstreams(task, batch_size, ipu_config):
    head, options, texts = TASK_CASES[task]
    ours, theirs = both(task, bert(head), ipu_config)
    found = ours(texts, batch_size=batch_size, **options)
    assert_equal_answers(found, theirs(texts, batch_size=batch_size, **options))
    assert_equal_answers(ours(texts[0], **options), theirs(texts[0], **options))


def test_lists_generators_data_sets_and_their_columns_are_taken():
    datasets = pytest.importorskip("datasets")
    ours, theirs = both("text-classification", bert("BertForSequenceClassification"), batch_size=3)
    expected = theirs(TEXTS)
    rows = datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(len(TEXTS)))})
    for inputs in (TEXTS, (text for text in TEXTS), KeyDataset(rows, "text")):
        assert_equal_answers(list(ours(inputs)), expected)
    pairs = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS]
    assert_equal_answers(ours(pairs), theirs(pairs))


def test_a_stream_is_read_as_it_is_asked_for():
    ours = pipeline("text-classification", bert("BertForSequenceClassification"), tokenizer=tokenizer())
    seen = []

    def texts():
        for text in TEXTS * 100:
            seen.append(text)
            yield text

    next(ours(texts(), batch_size=2))
    assert len(seen) < 100


@pytest.mark.captures
def test_lengths_share_shapes_whose_number_is_bounded(caplog):
    caplog.set_level(logging.INFO, "ipu_core.pipelines")
    ours = pipeline("ner", bert("BertForTokenClassification"), tokenizer=tokenizer(), max_shapes=2)
    assert str(ours.shapes) == "nothing is compiled yet"
    for count in (3, 5, 4):
        ours(" ".join(["fox"] * count))
    assert [(shape.rows, shape.length, shape.num_calls) for shape in ours.shapes] == [(1, 8, 3)]
    ours(" ".join(["fox"] * 12))
    ours(" ".join(["fox"] * 20))
    assert [shape.length for shape in ours.shapes] == [16, 24]
    assert "compiles a shape: runs 1 rows 16 long" in caplog.text
    assert "drops the shape that was used least recently: runs 1 rows 8 long" in caplog.text
    assert "24 long" in str(ours.shapes)


def test_the_last_batch_is_filled_up_and_cut():
    ours = pipeline("text-classification", bert("BertForSequenceClassification"), tokenizer=tokenizer())
    found = ours(["one two"] * 7, batch_size=4)
    assert len(found) == 7
    assert [(shape.rows, shape.num_calls) for shape in ours.shapes] == [(4, 2)]


def test_rows_are_whole_micro_batches():
    config = IPUConfig(inference_replication_factor=3, inference_device_iterations=2)
    ours, theirs = both("text-classification", bert("BertForSequenceClassification"), config)
    assert_equal_answers(ours(TEXTS, batch_size=4), theirs(TEXTS, batch_size=4))
    assert {shape.rows for shape in ours.shapes} == {6}


def test_buckets_are_bounded_by_the_model():
    assert [bucket(n) for n in (1, 8, 9, 33, 65, 129, 500)] == [8, 8, 16, 40, 80, 160, 512]
    assert bucket(500, limit=510) == 510
    assert bucket(40, limit=30) == 40  # what is too long is refused elsewhere


def test_where_padding_changes_numbers_lengths_are_exact(caplog):
    """ConvBERT's convolutions see beyond the end of a text, whatever its mask says."""
    torch.manual_seed(0)
    config = transformers.ConvBertConfig(vocab_size=21, head_ratio=1, conv_kernel_size=3, **tiny_texts.SIZE)
    ours, theirs = both("text-classification", transformers.ConvBertForSequenceClassification(config).eval())
    for options in ({}, {"batch_size": 2}):
        assert_equal_answers(ours(TEXTS[:4], **options), theirs(TEXTS[:4], **options))
    assert caplog.text.count("padding changes what it computes") == 1
    assert {shape.length for shape in ours.shapes} == {None}


def test_rows_of_a_decoder_keep_their_places():
    """GPT-2 counts positions from the left, padding too: who shares a batch matters."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=21, n_embd=16, n_layer=2, n_head=2, n_positions=48, pad_token_id=0, initializer_range=0.3
    )
    ours, theirs = both(
        "text-classification", transformers.GPT2ForSequenceClassification(config).eval(), tokenizer=tokenizer("left")
    )
    assert_equal_answers(ours(TEXTS, batch_size=3), theirs(TEXTS, batch_size=3))


@IPUS
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6, "do_sample": False},
        {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "num_return_sequences": 2},
        {"max_new_tokens": 5, "do_sample": True, "top_k": 5, "return_full_text": False},
    ],
    ids=["greedy", "beams", "sampled"],
)
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.turns(16)
def test_texts_go_on_as_upstreams(options, batch_size, ipu_config):
    ours, theirs = both("text-generation", gpt2(), ipu_config, tokenizer=tokenizer("left"))
    answers = []
    for pipe in (ours, theirs):
        torch.manual_seed(0)
        answers.append(pipe(TEXTS[:3], batch_size=batch_size, **options))
    assert answers[0] == answers[1]


@IPUS
@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("text2text-generation", "generated_text"),
        ("summarization", "summary_text"),
        ("translation_en_to_fr", "translation_text"),
    ],
)
@pytest.mark.turns(6)
def test_texts_become_others_as_with_generate(task, key, ipu_config):
    model, words = t5(), tokenizer()
    ours = pipeline(task, model, ipu_config, tokenizer=words, max_new_tokens=6)
    expected = []
    for text in TEXTS[:3]:
        encoded = words(text, return_tensors="pt")
        tokens = model.generate(encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=6)
        expected.append({key: words.decode(tokens[0], skip_special_tokens=True)})
    assert ours(TEXTS[:3]) == expected
    assert ours(TEXTS[:3], batch_size=2) == expected
    assert ours(TEXTS[0]) == expected[:1]


def test_a_checkpoint_says_the_prefix_of_a_task():
    model, words = t5(), tokenizer()
    model.config.task_specific_params = {"summarization": {"prefix": "seven ", "max_new_tokens": 3}}
    tokens = model.generate(**{**words("seven one two", return_tensors="pt"), "token_type_ids": None}, max_new_tokens=3)
    found = pipeline("summarization", model, tokenizer=words)("one two")
    assert found == [{"summary_text": words.decode(tokens[0], skip_special_tokens=True)}]


def best_span(model, words, question, context, longest=15):
    """Return the best answer the long way, span by span."""
    encoded = words(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, places = encoded.pop("offset_mapping")[0], encoded.sequence_ids(0)
    with torch.no_grad():
        outputs = model(**encoded)
    inside = [i for i, place in enumerate(places) if place == 1]
    start, end = (scores[0][inside].softmax(0) for scores in (outputs.start_logits, outputs.end_logits))
    spans = [
        (float(start[i] * end[j]), i, j) for i in range(len(inside)) for j in range(i, len(inside)) if j - i < longest
    ]
    score, i, j = max(spans)
    first, last = int(offsets[inside[i]][0]), int(offsets[inside[j]][1])
    return {"score": score, "start": first, "end": last, "answer": context[first:last]}


@IPUS
@BATCHES
@pytest.mark.turns(4)
def test_questions_are_answered_by_the_best_span(batch_size, ipu_config):
    model, words = bert("BertForQuestionAnswering", num_labels=2), tokenizer()
    ours = pipeline("question-answering", model, ipu_config, tokenizer=words)
    inputs = [{"question": "two fox", "context": text} for text in TEXTS]
    assert_equal_answers(
        ours(inputs, batch_size=batch_size),
        [best_span(model, words, one["question"], one["context"]) for one in inputs],
    )
    assert_equal_answers(ours(**inputs[1]), best_span(model, words, *inputs[1].values()))


def test_long_contexts_are_read_in_parts():
    ours = pipeline("question-answering", bert("BertForQuestionAnswering", num_labels=2), tokenizer=tokenizer())
    context = " ".join(tiny_texts.WORDS * 8)
    found = ours(question="two", context=context, top_k=3, max_seq_len=32)
    assert len(found) == 3
    assert all(context[one["start"] : one["end"]] == one["answer"] for one in found)
    assert found == sorted(found, key=lambda one: -one["score"])
    nothing = ours(question="two", context="fox dog", handle_impossible_answer=True, top_k=20)
    assert "" in [one["answer"] for one in nothing]


def test_a_directory_has_it_all(tmp_path):
    model = bert("BertForSequenceClassification")
    to_pipelined(model, FOUR).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ours = pipeline(model=tmp_path)
    assert ours.task == "text-classification"
    assert len(ours.plan.stages) == 4
    expected = transformers.pipeline("text-classification", str(tmp_path))(TEXTS[:2])
    assert_equal_answers(ours(TEXTS[:2]), expected)
    assert len(pipeline("sentiment-analysis", str(tmp_path), IPUConfig()).plan.stages) == 1
    assert "for inference on 4 IPUs" in str(ours.plan)


def test_a_pipelined_model_keeps_its_configuration():
    model = bert("BertForSequenceClassification")
    ours = pipeline("text-classification", to_pipelined(model, FOUR), tokenizer=tokenizer())
    ours("one")
    assert len(ours.plan.stages) == 4
    assert type(model) is transformers.BertForSequenceClassification
    assert not hasattr(model, "ipu_config")


def test_without_plugins_the_layout_is_discovered(no_plugins):
    ours, theirs = both("text-classification", bert("BertForSequenceClassification"), FOUR)
    assert_equal_answers(ours(TEXTS[:2]), theirs(TEXTS[:2]))


def test_two_pipelines_leave_each_other_alone():
    model, other = bert("BertForSequenceClassification"), bert("BertForTokenClassification")
    pipes = [both("text-classification", model), both("ner", other, FOUR), both("text-classification", model, FOUR)]
    for ours, theirs in (*pipes, *reversed(pipes)):
        assert_equal_answers(ours(TEXTS[:3], batch_size=2), theirs(TEXTS[:3], batch_size=2))


def test_a_model_in_training_answers_as_in_evaluation():
    model = bert("BertForSequenceClassification")
    expected = transformers.pipeline("text-classification", model, tokenizer=tokenizer())(TEXTS[1])
    model.train()
    assert_equal_answers(pipeline("text-classification", model, tokenizer=tokenizer())(TEXTS[1]), expected)
    assert model.training


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("LlamaForCausalLM", "text-generation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("LxmertForQuestionAnswering", "visual-question-answering"),
        ("ViTModel", "image-feature-extraction"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_a_head_says_its_task(head, task):
    assert task_of(getattr(transformers, head)).name == task


def test_every_task_has_a_class_and_heads():
    for task in TASKS.values():
        assert issubclass(task.implementation, transformers.Pipeline)
        assert all(hasattr(transformers, head) for head in task.heads)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("text-clasification",),
            TaskError,
            "there is no task `text-clasification`; there are .*, did you mean `text-classification`",
        ),
        ((7,), TaskError, "`task=7` is a int"),
        ((None, None), TaskError, "neither a task nor a model is given"),
        (("fill-mask", 7), TypeError, "`model` is a int: give a transformers model"),
        (("fill-mask", torch.nn.Linear(1, 1)), TypeError, "`Linear` is no transformers model"),
    ],
)
def test_what_is_no_task_or_model_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        pipeline(*arguments)


def test_a_task_without_a_head_is_refused(tmp_path):
    model = bert("BertModel")
    with pytest.raises(TaskError, match="`BertModel` has no head for `fill-mask`: it has what feature-extraction"):
        pipeline("fill-mask", model, tokenizer=tokenizer())
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(TaskError, match="has no weights for a head for `ner`|has no weights for a head for `token-cl"):
        pipeline("ner", tmp_path)
    with pytest.raises(TaskError, match="is a `bert` model .BertModel., and no class of that type has a head for"):
        pipeline("image-classification", tmp_path)


def test_a_checkpoint_without_a_tokenizer_is_refused_where_texts_are_read(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **size)).save_pretrained(tmp_path)
    with pytest.raises(TaskError, match=f"`{tmp_path}` has no tokenizer: save one beside the checkpoint, or pass"):
        pipeline("text-classification", str(tmp_path))


def test_what_a_task_needs_is_asked_for():
    with pytest.raises(TaskError, match="`text-classification` needs `tokenizer=`"):
        pipeline("text-classification", bert("BertForSequenceClassification"))
    with pytest.raises(TypeError, match="`ipu_config=3` is a int"):
        pipeline("text-classification", bert("BertForSequenceClassification"), 3, tokenizer=tokenizer())
    with pytest.raises(ValueError, match=r"`device=0`: where stages run is an option .* `IPUConfig\(devices"):
        pipeline("ner", bert("BertForTokenClassification"), tokenizer=tokenizer(), device=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "was given None"),
        ([], "was given an empty list"),
        ("", "was given an empty text, ''"),
        (["[MASK]", " "], "was given an empty text, ' '"),
        (["[MASK]", None], "was given None"),
    ],
)
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask", "feature-extraction"])
def test_nothing_is_refused(task, given, message):
    ours = pipeline(task, bert(TASK_CASES[task][0]), tokenizer=tokenizer())
    with pytest.raises(InputError, match=f"`{task}` {message}"):
        ours(given)


@pytest.mark.parametrize("task", TASK_CASES)
@pytest.mark.turns(4)
def test_a_text_that_is_too_long_is_refused_with_its_length_and_truncated_when_asked(task):
    head, options, _ = TASK_CASES[task]
    ours, theirs = both(task, bert(head))
    text = " ".join([*(["[MASK]"] if task == "fill-mask" else []), *["fox"] * 60])
    with pytest.raises(InputError, match=rf"a text has 6\d tokens and `{head}` takes 48: .*`truncation=True`"):
        ours(text, **options)
    asked = {"truncation": True}
    asked = {"tokenizer_kwargs": asked} if task == "fill-mask" else asked
    theirs_asked = {} if task in ("token-classification", "zero-shot-classification") else asked
    assert_equal_answers(ours(text, truncation=True, **options), theirs(text, **theirs_asked, **options))


def test_more_tokens_than_positions_are_refused():
    ours = pipeline("text-generation", gpt2(), tokenizer=tokenizer("left"))
    with pytest.raises(InputError, match="a prompt of 42 tokens and the new ones are more than `GPT2LMHeadModel` has"):
        ours("fox " * 40, max_new_tokens=30, do_sample=False)


def test_a_question_without_context_is_refused():
    ours = pipeline("question-answering", bert("BertForQuestionAnswering", num_labels=2), tokenizer=tokenizer())
    with pytest.raises(InputError, match="give a dictionary with `question` and `context`"):
        ours("who?")
    with pytest.raises(InputError, match="`context=''` is no text"):
        ours(question="two", context="")
    with pytest.raises(TypeError, match="`top` is no argument of `question-answering`"):
        ours(question="two", context="one", top=2)


def test_a_long_list_shows_how_far_it_is(monkeypatch):
    shown = []

    def seen(things, doing, unit, total=None):
        shown.append((doing, unit, total))
        return iter(things)

    monkeypatch.setattr("ipu_core.pipelines.pipeline.progress", seen)
    ours = pipeline("text-classification", bert("BertForSequenceClassification"), tokenizer=tokenizer())
    ours(TEXTS[:3])
    ours(["one two"] * 40, batch_size=8)
    assert shown == [("text-classification", "input", 40)]


def test_the_command_line(tmp_path, capsys, monkeypatch):
    bert("BertForSequenceClassification").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    expected = transformers.pipeline("text-classification", str(tmp_path))(TEXTS[:2])
    arguments = ["pipeline", "text-classification", "--model", str(tmp_path)]
    assert main([*arguments, "--json", *TEXTS[:2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert_equal_answers([json.loads(line) for line in lines], expected)
    monkeypatch.setattr("sys.stdin", iter([f"{text}\n" for text in TEXTS[:2]]))
    assert main([*arguments, "--layers-per-ipu", "1,1,1,1", "-"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one["label"] for one in expected]
    assert main([*arguments, ""]) == 2
    assert "ipu pipeline: `text-classification` was given an empty text" in capsys.readouterr().err
    assert main(["pipeline", "text-clas", "--model", str(tmp_path), "one"]) == 2
    assert "did you mean `text-classification`" in capsys.readouterr().err


def test_numbers_of_a_half_precision_model_are_near():
    model = bert("BertForSequenceClassification").to(torch.bfloat16)
    ours, theirs = both("text-classification", model)
    assert np.allclose(ours(TEXTS[1])[0]["score"], theirs(TEXTS[1])[0]["score"], atol=2e-2)
