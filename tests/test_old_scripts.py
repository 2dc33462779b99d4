# SPDX-License-Identifier: Apache-2.0
"""Scripts in the style of optimum-graphcore, run by `ipu run` as they are, give what this project gives."""

import json
import sys
from pathlib import Path

import datasets
import diffusers
import ipu_diffusers
import numpy as np
import pytest
import tiny_texts
import torch
import transformers
from ipu_core import IPUConfig, generation_model, pipeline, to_pipelined
from ipu_core.cli import main
from ipu_core.migration.graphcore.data import DataCollatorForLanguageModelingWithMaxTokensMasked
from ipu_core.samples import sample_batch
from ipu_diffusers.tiny import tiny_pipeline
from ipu_models_speech.families.wav2vec2 import WAV2VEC2
from ipu_trainer import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments, IPUTrainer, IPUTrainingArguments

SCRIPTS = Path(__file__).parent / "old_scripts"
pytestmark = pytest.mark.turns(16)
# What IPUTrainingArguments had for defaults, and what the scripts say too.
AS_BEFORE = {
    **{"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "logging_nan_inf_filter": False},
    **{"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2},
}
STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HALVES = {"ffn_dim": 64, "layers": 2, "attention_heads": 2}
TWO = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=2)


@pytest.fixture(autouse=True)
def _process(monkeypatch, tmp_path):
    """Leave the process as it was: its arguments, its path, its finders and the modules of old names."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    for name in [name for name in sys.modules if name.startswith(("optimum.graphcore", "poptorch", "popart"))]:
        del sys.modules[name]
    vars(sys.modules["optimum"]).pop("graphcore", None)


def run(script, *arguments):
    """Return the exit status of `ipu run`."""
    try:
        return main(["run", str(SCRIPTS / script), *map(str, arguments)])
    except SystemExit as end:
        return end.code


def saved(folder, model, rows, config=TWO, tokenizer=None):
    """Write a checkpoint with its configuration, and rows as JSON; return both paths."""
    model.save_pretrained(folder / "model")
    config.save_pretrained(folder / "model")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "model")
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "model", folder / "rows.json"


def rows_of(model, count, **more):
    """Return rows of a batch, as lists."""
    batch = sample_batch(model, batch_size=count, length=more.pop("length", 12), **more)
    return [{name: value[i].tolist() for name, value in batch.items()} for i in range(count)]


def tensors(rows):
    return [{name: torch.tensor(value) for name, value in row.items()} for row in rows]


def trained(
    model,
    config,
    folder,
    *,
    trainer=IPUTrainer,
    arguments=IPUTrainingArguments,
    evaluate=None,
    **options,
):
    """Train and evaluate as the scripts do, with today's names; return the trainer and the metrics."""
    model = type(model).from_pretrained(folder / "model")
    if options.pop("freeze_feature_encoder", False):
        model.freeze_feature_encoder()
    names = arguments.__dataclass_fields__
    args = {name: options.pop(name) for name in list(options) if name in names}
    transformers.set_seed(42)
    made = trainer(model, config, arguments(str(folder / "today"), **{**AS_BEFORE, **args}), **options)
    made.train()
    return made, made.evaluate(**(evaluate or {}))


def assert_same(folder, today, metrics, *names):
    """Compare the weights and the metrics that a script wrote with those of today."""
    written = json.loads((folder / "eval_results.json").read_text())
    for name in ("eval_loss", *names):
        assert written[name] == pytest.approx(metrics[name], rel=1e-5), name
    found = today.model.plain_class().from_pretrained(folder).state_dict()
    for name, tensor in today.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def sentences(count):
    return [{"sentence": " ".join(tiny_texts.WORDS[i : i + 5]), "label": i % 2} for i in range(count)]


def bert(head, **more):
    return tiny_texts.bert(head, num_hidden_layers=2, **STEADY, **more)


def test_classification_of_sentences(tmp_path):
    tokenizer = tiny_texts.tokenizer()
    model = bert("BertForSequenceClassification")
    folder, data = saved(tmp_path, model, sentences(8), tokenizer=tokenizer)
    out = tmp_path / "out"
    options = [
        "--do_train",
        "--do_eval",
        "--max_steps",
        3,
        "--learning_rate",
        1e-2,
        "--use_cpu",
        "--disable_tqdm",
        "true",
    ]
    options += ["--save_strategy", "no", "--overwrite_output_dir", "--fp32", "--ipu_config_name", folder]
    assert run("run_glue.py", "--model_name_or_path", folder, "--train_file", data, "--output_dir", out, *options) == 0

    rows = datasets.Dataset.from_list(sentences(8))
    rows = rows.map(lambda example: tokenizer(example["sentence"], padding="max_length", max_length=12), batched=True)
    today, metrics = trained(
        *(model, TWO, tmp_path),
        train_dataset=rows,
        eval_dataset=rows,
        max_steps=3,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )
    assert_same(out, today, metrics, "eval_accuracy")


def test_masked_language_modelling(tmp_path):
    tokenizer = tiny_texts.tokenizer()
    model = bert("BertForMaskedLM")
    folder, data = saved(tmp_path, model, sentences(8), tokenizer=tokenizer)
    out = tmp_path / "out"
    options = [
        "--max_steps",
        3,
        "--learning_rate",
        1e-2,
        "--use_cpu",
        "--disable_tqdm",
        "true",
        "--save_strategy",
        "no",
    ]
    assert run("run_mlm.py", "--output_dir", out, *options, folder, data) == 0

    encoded = [tokenizer(s["sentence"], padding="max_length", max_length=32) for s in sentences(8)]
    today, metrics = trained(
        *(model, TWO, tmp_path),
        train_dataset=[dict(row) for row in encoded],
        eval_dataset=[dict(row) for row in encoded],
        data_collator=DataCollatorForLanguageModelingWithMaxTokensMasked(32, tokenizer, mlm_probability=0.6),
        max_steps=3,
    )
    assert_same(out, today, metrics)


def test_causal_language_modelling(tmp_path):
    model = tiny_texts.gpt2()
    model.config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    rows = [row["input_ids"] for row in rows_of(model, 12)]
    folder, data = saved(tmp_path, model, rows)
    assert run("run_clm.py", folder, data, tmp_path / "out") == 0

    # 4 IPUs are two replicas of two, in training and in inference.
    config = IPUConfig(
        layers_per_ipu=[1, 3], gradient_accumulation_steps=2, replication_factor=2, inference_replication_factor=2
    )
    labelled = tensors([{"input_ids": row, "labels": row} for row in rows])
    today, metrics = trained(
        *(model, config, tmp_path), train_dataset=labelled, eval_dataset=labelled[:5], max_steps=3, warmup_steps=0.5
    )
    assert_same(tmp_path / "out", today, metrics)


def test_question_answering(tmp_path):
    tokenizer, model = tiny_texts.tokenizer(), bert("BertForQuestionAnswering")
    rows = rows_of(model, 8)
    folder, data = saved(tmp_path, model, rows, tokenizer=tokenizer)
    assert run("run_qa.py", folder, data, tmp_path / "out") == 0

    today, metrics = trained(
        *(model, TWO, tmp_path),
        train_dataset=tensors(rows),
        eval_dataset=tensors(rows[:7]),
        max_steps=3,
        per_device_train_batch_size=2,
    )
    assert_same(tmp_path / "out", today, metrics)
    answer = pipeline("question-answering", today.model, TWO, tokenizer=tokenizer)
    found = answer(question="one two", context="the quick brown fox jumps over a lazy dog")
    tiny_texts.assert_equal_answers(json.loads((tmp_path / "out" / "answer.json").read_text()), found)


def test_token_classification_resumed(tmp_path):
    tokenizer, model = tiny_texts.tokenizer(), bert("BertForTokenClassification")
    rows = rows_of(model, 8)
    folder, data = saved(tmp_path, model, rows, tokenizer=tokenizer)
    assert run("run_ner.py", folder, data, tmp_path / "out") == 0

    collator = transformers.DataCollatorForTokenClassification(tokenizer, padding="max_length", max_length=16)
    today, metrics = trained(
        *(model, TWO, tmp_path),
        train_dataset=rows,
        eval_dataset=rows[:5],
        data_collator=collator,
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
    )
    assert_same(tmp_path / "out", today, metrics)


def test_summarisation_with_generation_in_evaluation(tmp_path):
    model = tiny_texts.t5()
    model.config.dropout_rate = 0.0
    rows = [{n: v for n, v in row.items() if n != "decoder_input_ids"} for row in rows_of(model, 8)]
    config = IPUConfig(layers_per_ipu=[2, 2])
    folder, data = saved(tmp_path, model, rows, config)
    options = ["--predict_with_generate", "--generation_max_length", 8, "--max_steps", 2, "--learning_rate", 1e-2]
    options += ["--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--report_to", "none"]
    assert run("run_summarization.py", "--output_dir", tmp_path / "out", *options, folder, data) == 0

    today, metrics = trained(
        *(model, config, tmp_path),
        trainer=IPUSeq2SeqTrainer,
        arguments=IPUSeq2SeqTrainingArguments,
        evaluate={"max_length": 8, "num_beams": 2},
        train_dataset=tensors(rows),
        eval_dataset=tensors(rows[:5]),
        predict_with_generate=True,
        generation_max_length=8,
        max_steps=2,
        compute_metrics=lambda both: {"sum": float(both[0].sum())},
    )
    assert_same(tmp_path / "out", today, metrics, "eval_sum")


def test_speech_recognition(tmp_path):
    tiny = {**WAV2VEC2.tiny, "apply_spec_augment": False, "layerdrop": 0.0}
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**tiny)
    for name in vars(config):
        if name.endswith("dropout") or name.endswith("dropout_prob"):
            setattr(config, name, 0.0)
    model = transformers.Wav2Vec2ForCTC(config)
    rows = rows_of(model, 6, length=256)
    one = IPUConfig(ipus_per_replica=2)
    folder, data = saved(tmp_path, model, rows, one)
    assert run("run_speech_recognition_ctc.py", folder, data, tmp_path / "out") == 0

    today, metrics = trained(
        *(model, one, tmp_path),
        train_dataset=tensors(rows),
        eval_dataset=tensors(rows[:3]),
        num_train_epochs=1,
        gradient_accumulation_steps=2,
        freeze_feature_encoder=True,
    )
    assert_same(tmp_path / "out", today, metrics)


def whisper():
    """Return a small Whisper that says many tokens."""
    torch.manual_seed(0)
    size = {"d_model": 32, "num_mel_bins": 8, "vocab_size": 200, "max_source_positions": 20, "max_target_positions": 64}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in HALVES.items()}
    tokens = {"pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50, "decoder_start_token_id": 60}
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**size, **sides, **tokens)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_transcription_with_whisper(tmp_path):
    model = whisper()
    features = torch.randn(1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    folder, data = saved(tmp_path, model, features.tolist())
    assert run("run_whisper.py", folder, data, tmp_path / "tokens.json") == 0

    generator = generation_model(to_pipelined(model, IPUConfig(ipus_per_replica=2)), batch_size=1, max_length=24)
    expected = generator.generate(features, max_length=20)
    assert json.loads((tmp_path / "tokens.json").read_text()) == expected.tolist()
    assert expected.tolist() == model.generate(features, max_length=20).tolist()


def test_image_classification(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=2, **size)
    model = transformers.ViTForImageClassification(config)
    pixels = torch.rand(8, 3, 16, 16)
    rows = [{"pixels": pixels[i].tolist(), "label": i % 2} for i in range(8)]
    folder, data = saved(tmp_path, model, rows)
    assert run("run_image_classification.py", folder, data, tmp_path / "out") == 0

    labelled = [{"pixel_values": pixels[i], "labels": i % 2} for i in range(8)]
    today, metrics = trained(
        *(model, TWO, tmp_path),
        train_dataset=labelled,
        eval_dataset=labelled[:3],
        num_train_epochs=2,
        per_device_train_batch_size=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        logging_strategy="epoch",
    )
    assert_same(tmp_path / "out", today, metrics)


PACKED = {"attention_mask": [1, 1, 1, 2, 2, 2, 2, 0, 1, 2], "position_ids": [1, 2, 3, 1, 2, 3, 4, 0, 0, 0]}


def packs(count):
    """Return rows of two sentences, of which every third row lacks the label of the second."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (count, 10), generator=generator).tolist()
    labels = [[i % 2, (i // 2) % 2 if i % 3 else -100] for i in range(count)]
    return [{"input_ids": row, "labels": both, **PACKED} for row, both in zip(ids, labels, strict=True)]


def test_packed_bert(tmp_path):
    rows = packs(8)
    # Eight micro-batches an update: an update sees every pack, whatever their order.
    config = IPUConfig(layers_per_ipu=[1, 1], gradient_accumulation_steps=8)
    folder, data = saved(tmp_path, bert("BertForSequenceClassification"), rows, config)
    assert run("run_packed_bert.py", folder, data, tmp_path / "out") == 0

    plain = transformers.BertForSequenceClassification.from_pretrained(folder)
    losses = trained_alone(plain, rows, rates=[1e-2, 2e-2 / 3, 1e-2 / 3])
    written = json.loads((tmp_path / "out" / "train_results.json").read_text())
    assert written["train_loss"] == pytest.approx(mean(losses), rel=1e-5)
    found = plain.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        expected = sum(mean(losses_of_sentences(found.eval(), **row)).item() for row in rows[:3]) / 3
    written = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert written["eval_loss"] == pytest.approx(expected, rel=1e-5)
    for (name, tensor), weight in zip(found.state_dict().items(), plain.state_dict().values(), strict=True):
        if not name.endswith("key.bias"):  # it moves no attention: its gradient is rounding alone
            torch.testing.assert_close(tensor, weight, atol=1e-5, rtol=1e-4, msg=name)


def trained_alone(plain, rows, rates):
    """Step a plain model on sentences that each run alone, once on all of them for each rate; return the losses.

    A loss of an update is the mean over the labels of all its micro-batches.
    """
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.0)
    losses = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = mean([loss for row in rows for loss in losses_of_sentences(plain, **row)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean(losses):
    return sum(losses) / len(losses)


def losses_of_sentences(plain, input_ids, attention_mask, labels, **_):
    """Return the losses of the sentences of a row, each run alone, its first token at the end of the row."""
    losses = []
    for number, label in enumerate(labels, 1):
        *rest, first = [token for token, of in zip(input_ids, attention_mask, strict=True) if of == number]
        logits = plain.classifier(plain.bert(torch.tensor([[first, *rest]]))[0][:, 0])
        if label != -100:
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])))
    return losses


def test_stable_diffusion(tmp_path):
    tiny_pipeline(diffusers.StableDiffusionPipeline).save_pretrained(tmp_path / "model")
    assert run("stable_diffusion.py", tmp_path / "model", tmp_path / "image.npy") == 0
    unet = {"layers_per_ipu": [-1, -1]}
    arguments = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 7.5, "output_type": "np"}
    today = ipu_diffusers.IPUStableDiffusionPipeline.from_pretrained(tmp_path / "model", unet_ipu_config=unet)
    today.set_progress_bar_config(disable=True)
    expected = today("a lighthouse", generator=torch.manual_seed(0), **arguments).images[0]
    np.testing.assert_allclose(np.load(tmp_path / "image.npy"), expected, atol=1e-5)
