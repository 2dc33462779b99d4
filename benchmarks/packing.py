# SPDX-License-Identifier: Apache-2.0
"""What packing gains: fine-tuning on short sentences, `transformers.Trainer` against `IPUTrainer` on packed rows.

The MiniLM shape (BERT, 6 layers of 384, a vocabulary of 30,522, random weights), sequence classification, 32 sentences
an update. Lengths are 3 plus a gamma variate of shape 1.3 and scale 7.4, rounded, at most 66: like SST-2's they have a
mean of 12.6 tokens and are skewed to the right. In each sentence a few of its words say its label. Upstream's side pads
every batch to its longest sentence, `DataCollatorWithPadding`; ours packs it.

Each side is a process of its own that waits while the other one runs, so that its peak memory is its own. They take
turns in segments of some steps; the ratio is the median of those of neighbouring segments. The first ones, with the
capture, are left out. Aim: at least 2.0, with equal losses at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"  # read when torch is imported, here and in both processes

from results import report

VOCABULARY, ROWS, LABELS = 30522, 32, 2
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
WARM_UP = 1
TELLING = 40  # words that say a label, half of them each


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=24, help="segments of each side that are measured")
    parser.add_argument("--steps", type=int, default=10, help="steps of a segment")
    parser.add_argument("--packed-length", type=int, default=70, help="tokens of a packed row")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    sides = {name: _Side(name, options) for name in ("padded", "packed")}
    for segment in range(options.segments + WARM_UP):
        for name in sorted(sides, reverse=bool(segment % 2)):
            sides[name].run()
    padded, packed = (side.finish() for side in sides.values())
    ratios = [p / q for p, q in zip(sides["padded"].seconds, sides["packed"].seconds, strict=True)]
    rows = {
        "transformers.Trainer": padded,
        "IPUTrainer, packed": packed,
        "ratio": {
            "samples_per_s": statistics.median(ratios[WARM_UP:]),
            "peak_mb": packed["peak_mb"] / padded["peak_mb"],
            "segments": options.segments,
        },
    }
    report("packing", rows, save=options.save)


class _Side:
    """One trainer in a process of its own, which waits between segments."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        steps = options.steps * (options.segments + WARM_UP)
        target = (name, theirs, steps, options.steps, options.packed_length)
        self.process = context.Process(target=_train, args=target)
        self.process.start()
        self.samples = ROWS * options.steps
        self.seconds: list[float] = []

    def run(self) -> None:
        self.connection.send("run")
        self.seconds.append(self.connection.recv())

    def finish(self) -> dict[str, Any]:
        figures = self.connection.recv()
        self.process.join()
        return {"samples_per_s": self.samples / statistics.median(self.seconds[WARM_UP:]), **figures}


def _train(side: str, connection: Connection, steps: int, segment: int, packed_length: int) -> None:
    import transformers
    from ipu_core import IPUConfig
    from ipu_trainer import IPUTrainer, IPUTrainingArguments

    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, vocab_size=VOCABULARY))
    sentences = _sentences(steps * ROWS)
    arguments = {
        "per_device_train_batch_size": ROWS,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_strategy": "steps",
        "use_cpu": True,
        "log_level": "error",
    }
    parts = {
        "train_dataset": sentences,
        "data_collator": transformers.DataCollatorWithPadding(_tokenizer()),
        "callbacks": [_turns(connection, segment)],
    }
    with tempfile.TemporaryDirectory() as folder:
        if side == "padded":
            trainer = transformers.Trainer(model, transformers.TrainingArguments(folder, **arguments), **parts)
        else:
            ipu_config = IPUConfig(layers_per_ipu=[1, 2, 2, 1])
            packing = IPUTrainingArguments(folder, packed_length=packed_length, **arguments)
            trainer = IPUTrainer(model, ipu_config, packing, **parts)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    fifth = len(losses) // 5
    slots = {} if side == "padded" else {"rows": trainer.ipu_config.packed_rows, "length": packed_length}
    connection.send(
        {
            "first_loss": statistics.fmean(losses[:fifth]),
            "last_loss": statistics.fmean(losses[-fifth:]),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **slots,
        }
    )


def _turns(connection: Connection, steps: int) -> Any:
    """Make a callback that waits for each segment's turn, and tells how long it took."""
    import transformers

    class Turns(transformers.TrainerCallback):
        started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                connection.recv()
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                connection.send(time.perf_counter() - self.started)

    return Turns()


def _sentences(count: int) -> list[dict[str, Any]]:
    """Make sentences of frequent and rare words, of which a few say the label."""
    draw = random.Random(0)
    sentences = []
    for _ in range(count):
        size = 67
        while size > 66:
            size = round(3 + draw.gammavariate(1.3, 7.4))
        label = draw.randrange(LABELS)
        words = [min(VOCABULARY - 1, 100 + TELLING + int(draw.paretovariate(0.7))) for _ in range(size)]
        for place in draw.sample(range(1, size), max(1, size // 6)):
            words[place] = 100 + LABELS * draw.randrange(TELLING // LABELS) + label
        sentences.append({"input_ids": [1, *words[1:]], "labels": label})
    return sentences


def _tokenizer() -> Any:
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


if __name__ == "__main__":
    main()
