# SPDX-License-Identifier: Apache-2.0
"""Every example, run as a user runs it: on its tiny sample, on folders, and with arguments that are wrong."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from scipy.io import wavfile
from transformers.trainer_pt_utils import nested_numpify

EXAMPLES = Path(__file__).parent.parent / "examples"
QUIET = ["--disable_tqdm", "true", "--log_level", "error", "--use_cpu", "true"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Find the modules beside the scripts, keep no cache, and leave no module behind."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES:
            del sys.modules[name]


def run(script: str, folder: Path, *arguments: str):
    return importlib.import_module(script).main(["--output_dir", str(folder), *QUIET, *map(str, arguments)])


def said(folder: Path) -> list:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def assert_checkpoint_equals_plain(outcome, folder: Path) -> None:
    """Compare what is predicted with what plain transformers predicts from the checkpoint."""
    trainer = outcome.trainer
    trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
    trainer.args.predict_with_generate = False
    rows = trainer.eval_dataset.select(range(9))
    ours = trainer.predict(rows)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    plain = getattr(transformers, name).from_pretrained(folder).eval()
    batch = next(iter(trainer.get_test_dataloader(rows.select(range(8)))))
    with torch.inference_mode():
        theirs = plain(**batch)
    logits = [value for name, value in theirs.items() if name.endswith("logits")]
    predictions = ours.predictions if isinstance(ours.predictions, tuple) else (ours.predictions,)
    for mine, logit in zip(predictions, nested_numpify(logits), strict=False):
        np.testing.assert_allclose(mine[:8], logit, atol=1e-5, rtol=1e-5)
    assert np.isfinite(ours.metrics["test_loss"])


# Script, arguments, metric, at most or at least what before, at least or at most what after.
LEARNS = [
    ("text_classification", (), "accuracy", 0.6, 0.95),
    ("text_classification", ("--problem_type", "regression"), "pearson", 0.5, 0.9),
    ("text_classification", ("--problem_type", "multi_label_classification"), "f1", 0.6, 0.95),
    ("token_classification", (), "f1", 0.3, 0.95),
    ("question_answering", (), "f1", 0.3, 0.95),
    ("multiple_choice", (), "accuracy", 0.5, 0.95),
    ("masked_language_modeling", (), "perplexity", 12, 6),
    ("masked_language_modeling", ("--ipu_config_overrides", "max_masked_tokens=10"), "perplexity", 12, 6),
    ("causal_language_modeling", (), "perplexity", 12, 3),
    ("summarization", ("--predict_with_generate",), "rougeL", 0.2, 0.9),
    ("translation", ("--predict_with_generate",), "bleu", 5, 90),
    ("translation", (), "perplexity", 12, 2),
    ("speech_recognition_ctc", (), "cer", 0.9, 0.2),
    ("speech_recognition_whisper", ("--predict_with_generate",), "cer", 0.9, 0.1),
    ("audio_classification", (), "accuracy", 0.5, 0.9),
    ("image_classification", (), "accuracy", 0.6, 0.9),
]


@pytest.mark.parametrize(("script", "arguments", "metric", "before", "after"), LEARNS)
def test_it_learns_its_sample_and_saves_what_plain_transformers_loads(
    script, arguments, metric, before, after, tmp_path, capsys
):
    outcome = run(script, tmp_path, *arguments)
    first, last = outcome.before[f"before_{metric}"], outcome.after[f"eval_{metric}"]
    learned = (first <= before and last >= after) if before < after else (first >= before and last <= after)
    assert learned, (first, last)
    assert "for training on 2 IPUs" in capsys.readouterr().out
    assert len(said(tmp_path)) >= 20
    assert json.loads((tmp_path / "eval_results.json").read_text())[f"eval_{metric}"] == last
    if "max_masked_tokens" not in "".join(arguments):
        assert_checkpoint_equals_plain(outcome, tmp_path)


def test_it_starts_from_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLES / "multiple_choice.py", "--output_dir", tmp_path, "--max_steps", "2", *QUIET]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "eval_accuracy" in output
    assert "for training on 2 IPUs" in output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("resume", ["checkpoint-3", "last"])
def test_it_resumes_as_if_it_had_not_stopped(resume, tmp_path):
    steps = ("--do_train", "--save_steps", 3, "--rows", 48, "--num_train_epochs", 1)
    run("text_classification", tmp_path / "whole", *steps)
    stopped = tmp_path / "stopped"
    run("text_classification", stopped, *steps)
    for name in ("checkpoint-6", "model.safetensors"):
        delete(stopped / name)
    where = resume if resume == "last" else stopped / resume
    outcome = run("text_classification", stopped, *steps, "--resume_from_checkpoint", where)
    assert outcome.trainer.state.global_step == 6
    for name, weight in weights(stopped).items():
        torch.testing.assert_close(weight, weights(tmp_path / "whole")[name], atol=0, rtol=0)


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_checkpoint_is_evaluated_and_predicts_on_a_folder(tmp_path):
    trained = run("text_classification", tmp_path / "out", "--max_steps", 20)
    sample = importlib.import_module("text_classification").sample
    made = importlib.import_module("corpus").made(lambda draw: sample(draw, None))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in made.items():
        rows.rename_columns({"text": "sentence", "label": "gold"}).to_csv(folder / f"{split}.csv")
    made["validation"].select(range(5)).remove_columns("label").rename_column("text", "sentence").to_csv(
        folder / "test.csv"
    )
    columns = ("--columns", "text=sentence,label=gold")
    outcome = run(
        "text_classification", tmp_path / "again", "--model", tmp_path / "out", "--data", folder, *columns,
        "--max_length", 12, "--do_eval", "--do_predict",
    )  # fmt: skip
    assert outcome.after["eval_loss"] == pytest.approx(trained.after["eval_loss"], abs=1e-6)
    assert said(tmp_path / "again") == said(tmp_path / "out")[:5]
    assert outcome.trainer.ipu_config.layers_per_ipu == [1, 1]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))


ONE_STEP = ("--max_steps", 1)


@pytest.mark.parametrize(
    ("script", "row"),
    [
        ("token_classification", {"tokens": ["ada", "sleeps"], "tags": ["B-PER", "O"]}),
        ("multiple_choice", {"text": "it rains", "endings": ["run", "sit"], "label": 0}),
        ("masked_language_modeling", {"text": "one text after another goes by and by"}),
        ("causal_language_modeling", {"text": "one text after another goes by and by"}),
        ("summarization", {"text": "a long text", "summary": "short"}),
        ("text_classification", {"text": "a text", "label": ["a", "b"]}),
        ("text_classification", {"text": "a text", "pair": "another", "label": 0.5}),
    ],
)
def test_it_reads_a_folder_of_json(script, row, tmp_path):
    write_lines(tmp_path / "data" / "train.jsonl", [row] * 40)
    outcome = run(script, tmp_path / "out", "--data", tmp_path / "data", *ONE_STEP)
    assert outcome.after["eval_samples_per_second"] > 0


def test_translations_in_one_column_are_told_apart(tmp_path):
    write_lines(tmp_path / "train.json", [{"translation": {"en": f"word {i}", "de": f"Wort {i}"}} for i in range(40)])
    columns = ("--columns", "source=translation.en,target=translation.de")
    run("translation", tmp_path / "out", "--data", tmp_path / "train.json", *columns, *ONE_STEP)


def test_questions_without_an_answer_are_read(tmp_path):
    told = {"question": "who ?", "context": "ada sleeps"}
    rows = [
        told | {"answers": {"text": ["ada"], "answer_start": [0]}},
        told | {"answers": {"text": [], "answer_start": []}},
    ]
    folder = tmp_path / "data"
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows * 20)).save_to_disk(folder)
    run("question_answering", tmp_path / "out", "--data", folder, *ONE_STEP)


def test_images_in_folders_of_their_labels_are_read(tmp_path):
    for i in range(24):
        path = tmp_path / "data" / "train" / ("dark", "bright")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 200 * (i % 2)).save(path)
    run("image_classification", tmp_path / "out", "--data", tmp_path / "data", "--num_train_epochs", 6)
    assert set(said(tmp_path / "out")) <= {0, 1}


def write_waves(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        samples = np.sin(np.arange(2000 + 200 * i) / 5) * 2**14
        wavfile.write(folder / name, 8000, np.stack([samples, samples], -1).astype(np.int16))


@pytest.mark.parametrize("script", ["speech_recognition_ctc", "speech_recognition_whisper"])
def test_recordings_that_a_table_lists_are_read(script, tmp_path):
    names = [f"{i}.wav" for i in range(24)]
    write_waves(tmp_path / "data", names)
    table = "\n".join(["file_name,text", *(f"{name},abc" for name in names)])
    (tmp_path / "data" / "metadata.csv").write_text(table)
    run(script, tmp_path / "out", "--data", tmp_path / "data", *ONE_STEP)


def test_recordings_in_folders_of_their_labels_are_read_and_long_ones_left_out(tmp_path, capsys):
    write_waves(tmp_path / "data" / "train", [f"{'ab'[i % 2]}/{i}.wav" for i in range(24)])
    run("audio_classification", tmp_path / "out", "--data", tmp_path / "data", "--max_seconds", 0.7, *ONE_STEP)
    assert "recordings are longer than 0.7 s, and left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bogus", "1"), "unknown argument `--bogus`"),
        (("--max_lenght", "8"), "unknown argument `--max_lenght`, did you mean `--max_length`"),
        (("--max_steps", "two"), "--max_steps: invalid int value: 'two'"),
        (("--fp16",), "`fp16=True` has no effect on a pipelined model"),
        (("--layers_per_ipu", "1,x"), "--layers_per_ipu=1,x: give whole numbers, such as 1,2,2,1, or auto"),
        (("--layers_per_ipu", "1,2"), "places 3 layers, and the model has 2"),
        (("--ipu_config", "nowhere/here"), "--ipu_config=nowhere/here"),
        (("--model", "nowhere/here"), "--model=nowhere/here cannot be read"),
        (("--data", "nowhere/here"), "--data=nowhere/here cannot be read"),
        (("--data", "nowhere/at/all"), "--data=nowhere/at/all is not there: there is no folder `nowhere`"),
        (("--data", "{folder}/trian.json"), "is not there, did you mean `.*train.json`"),
        (("--max_length", "1000"), "--max_length=1000: `BertForSequenceClassification` has 512 positions: give "),
        (("--output_dir", "{data}"), "--output_dir=.*train.json cannot be written \\(File exists\\)"),
        (("--model", "./nowhere"), "`--model ./nowhere` is not there; give a checkpoint's folder"),
        (("--report_to", "tensorboard"), "TensorBoardCallback requires tensorboard to be installed"),
        (("--ipu_config_overrides", "devices=[cuda:99 cpu]"), "names `cuda:99` for IPU 0, and it is not there"),
        (("--data", "{data}"), "has no column text, label: it has sentence, gold; .* `--columns text=NAME`"),
        (("--data", "{data}", "--columns", "text=words"), "--columns text=words: give NAME=COLUMN, .*: sentence, gold"),
        (("--data", "{data}", "--columns", "text"), "--columns text: give NAME=COLUMN"),
        (("--data", "{data}", "--validation", "dev"), "--validation=dev is not a split of the data: train"),
        (("--problem_type", "guess"), "--problem_type=guess: give single_label_classification"),
        (("--per_device_train_batch_size", "300"), "has 256 rows, and one step takes 300"),
    ],
)
def test_a_wrong_argument_ends_the_run_with_what_to_change(arguments, message, tmp_path):
    data = tmp_path / "train.json"
    write_lines(data, [{"sentence": "a text", "gold": 0}] * 20)
    with pytest.raises(SystemExit, match=message) as ended:
        run(
            "text_classification",
            tmp_path / "out",
            *(argument.format(data=data, folder=tmp_path) for argument in arguments),
        )
    assert ended.value.code == 2


TABLES = [
    ("t.csv", "", "t.csv is empty: give a file with a row of names, and rows"),
    ("t.csv", "text,label\n", "t.csv has the names of columns and no rows: text,label; add rows"),
    ("t.csv", "text,label\na,b\n", "t.csv has 1 row, and one is taken to evaluate on: add rows"),
    ("t.csv", "text,label\na,b\nc,\n", "row 2 \\(line 3\\) of --data=.*t.csv has no `label`: fill it in, or take"),
    ("t.csv", "text,label\n,b\n", "row 1 \\(line 2\\) of --data=.*t.csv has no `text`"),
    ("t.csv", "text,label\na,b\nc,d,e\n", "t.csv cannot be read: Expected 2 fields in line 3, saw 3; mend"),
    (
        "t.jsonl",
        '{"text": "a", "label": 0}\n{"text": "a" "label": 0}',
        "t.jsonl cannot be read: line 2, column 14: E",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), TABLES)
def test_a_table_that_cannot_be_read_is_named_with_row_and_column(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        run("text_classification", tmp_path / "out", "--data", tmp_path / name)


def test_a_checkpoint_that_is_broken_is_named_by_its_file(tmp_path):
    folder = tmp_path / "checkpoint"
    transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=99, **TINY)).save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    message = f"model.safetensors` has {len(weights) - 100:,} bytes, and its header says {len(weights):,}: it was cut"
    with pytest.raises(SystemExit, match=message):
        run("text_classification", tmp_path / "out", "--model", folder)
    (folder / "ipu_config.json").write_text('{"seed": 1,\n "b" 2}')
    with pytest.raises(SystemExit, match="--model=.* `.*ipu_config.json` is no JSON: line 2, column 6"):
        run("text_classification", tmp_path / "out", "--model", folder)


def test_texts_that_are_cut_are_counted(capsys):
    corpus = importlib.import_module("corpus")
    tokenizer = importlib.import_module("task").tiny_tokenizer(["a b c"])
    rows = datasets.Dataset.from_dict({"text": ["a", "a b c", "b"]})
    encoded = corpus.encoded(
        datasets.DatasetDict(train=rows),
        lambda rows: dict(corpus.tokens_of(tokenizer, rows["text"], length=4)),
    )
    assert capsys.readouterr().out == "train: 1 of 3 rows are longer than --max_length, and cut to it\n"
    assert sorted(encoded["train"].column_names) == ["attention_mask", "input_ids"]


def test_a_run_that_is_stopped_says_which_checkpoint_is_there_and_how_to_go_on(monkeypatch, tmp_path, capsys):
    def stop(trainer, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ipu_trainer.IPUTrainer.train", stop)
    monkeypatch.setattr(sys, "argv", ["text_classification.py", "--do_train", "--resume_from_checkpoint", "x"])
    with pytest.raises(SystemExit, match="130"):
        run("text_classification", tmp_path, "--do_train")
    assert f"stopped; no checkpoint is in {tmp_path} yet: --save_steps N writes one" in capsys.readouterr().err
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(SystemExit, match="130"):
        run("text_classification", tmp_path, "--do_train")
    said = capsys.readouterr().err
    assert f"the last checkpoint is {tmp_path / 'checkpoint-7'}; to go on from it:\n" in said
    assert said.endswith("python text_classification.py --do_train --resume_from_checkpoint last\n")


def test_a_run_that_is_stopped_before_it_trains_ends_in_a_line(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        importlib.import_module("task").start(stopped)
    assert capsys.readouterr().err == "\nstopped, before anything was trained\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a text of 2 tokens and 24 new ones: the model has 16 positions: give --max_new_tokens=14 or less, or a"),
        (("--layers_per_ipu", "two"), "--layers_per_ipu=two: give whole numbers, such as 1,2,2,1, or auto"),
    ],
)
def test_a_text_that_cannot_be_written_is_refused_before_it_begins(arguments, message, tmp_path):
    script = importlib.import_module("text_generation")
    importlib.import_module("task").tiny_tokenizer(["two roads"]).save_pretrained(tmp_path)
    config = transformers.GPT2Config(vocab_size=9, n_embd=16, n_head=2, n_layer=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=message):
        script.main(["two roads", "--model", str(tmp_path), *arguments])


def imports_of(script: str) -> set[str]:
    """Return what a script imports, and the modules beside it that it imports do."""
    found: set[str] = set()
    waiting = [script]
    while waiting:
        tree = ast.parse((EXAMPLES / f"{waiting.pop()}.py").read_text(encoding="utf-8"))
        froms = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        new = {name.partition(".")[0] for name in (*froms, *names)} - found
        found |= new
        waiting += [name for name in new if (EXAMPLES / f"{name}.py").is_file()]
    return found


@pytest.mark.parametrize("script", sorted({script for script, *_ in LEARNS} | {"text_generation"}))
def test_texts_need_neither_scipy_nor_pillow(script):
    needed = imports_of(script) & {"scipy", "PIL"}
    expected = {"PIL"} if "image" in script else {"scipy"} if "speech" in script or "audio" in script else set()
    assert needed == expected


@pytest.mark.turns(4)
def test_a_table_of_reviews_is_learned(tmp_path, capsys):
    table = ("--data", EXAMPLES / "reviews.csv", "--max_length", 16, "--num_train_epochs", 4)
    outcome = run("text_classification", tmp_path, *table)
    assert outcome.after["eval_accuracy"] >= 0.9


@pytest.mark.turns(4)
def test_a_tiny_model_writes_what_it_learned(tmp_path, capsys):
    text = importlib.import_module("text_generation").main(["the sun", "--output_dir", str(tmp_path)])
    assert text.startswith("the sun shines")
    assert "24 tokens in " in capsys.readouterr().out


def test_windows_that_do_not_move_on_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--stride=20 --max_length=20: .* stride"):
        run("question_answering", tmp_path, "--stride", "20")


def test_a_label_that_training_has_not_is_refused(tmp_path):
    for split, label in (("train", "a"), ("validation", "b")):
        rows = [{"text": "x", "label": "a"}] * 4 + [{"text": "x", "label": label}] * 4
        write_lines(tmp_path / "data" / f"{split}.json", rows)
    with pytest.raises(SystemExit, match="row 5 of `validation` has the label 'b', which `train` has not: \\['a'\\]"):
        run("text_classification", tmp_path / "out", "--data", tmp_path / "data")


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
FAMILIES = [
    ("text_classification", transformers.DistilBertConfig, {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}),
    ("question_answering", transformers.DebertaV2Config, TINY, "--stride", 4),
    ("causal_language_modeling", transformers.MistralConfig, {**TINY, "num_key_value_heads": 2}),
    ("translation", transformers.BartConfig, {**BART, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}),
    (
        "speech_recognition_ctc",
        transformers.HubertConfig,
        {**TINY, "conv_dim": [16], "conv_kernel": [40], "conv_stride": [40]},
    ),
    ("image_classification", transformers.ConvNextConfig, {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family[0]}-{family[1].model_type}")
def test_a_checkpoint_of_another_family_is_trained(family, tmp_path):
    """The tokenizer, or the processor, of a first run serves a checkpoint of another architecture."""
    script, config, sizes, *arguments = family
    first = run(script, tmp_path / "checkpoint", *ONE_STEP, "--rows", 32).trainer.model
    special = {name: getattr(first.config, name, None) for name in ("vocab_size", "pad_token_id", "eos_token_id")}
    special = {name: value for name, value in special.items() if value is not None}
    transformers.MODEL_MAPPING[config](config(**sizes, **special)).save_pretrained(tmp_path / "checkpoint")
    outcome = run(
        script,
        tmp_path / "out",
        "--model",
        tmp_path / "checkpoint",
        *ONE_STEP,
        "--rows",
        32,
        "--max_length",
        16,
        "--layers_per_ipu",
        "auto",
        *arguments,
    )
    assert outcome.trainer.model.config.model_type == config.model_type
    assert_checkpoint_equals_plain(outcome, tmp_path / "out")
