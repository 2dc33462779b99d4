# SPDX-License-Identifier: Apache-2.0
"""What it costs to hold a model against its graph at every call: the training step of a tiny BERT with and without.

BERT, 2 layers of 32, batch 4, length 8, two stages, whose step is all overhead. Both sides take turns in one process;
the figure is the median of the ratios of neighbouring runs. Aim: at most 1.01.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.capture.guards import Guards
from ipu_core.samples import sample_batch
from results import report

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, vocab_size=64)).train()
    batch = sample_batch(model, batch_size=4, length=8)
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])))
    executor(**batch)
    times: dict[bool, list[float]] = {True: [], False: []}
    for run in range(options.runs + 20):
        for checks in (True, False) if run % 2 else (False, True):
            with mock.patch.object(Guards, "check", Guards.check if checks else lambda self: None):
                started = time.perf_counter()
                executor(**batch)
                if run >= 20:
                    times[checks].append(1000 * (time.perf_counter() - started))
            model.zero_grad()
    ratios = [mine / theirs for mine, theirs in zip(times[True], times[False], strict=True)]
    assert executor._compiled is not None
    guards = executor._compiled.guards
    started = time.perf_counter()
    for _ in range(1000):
        guards.check()
    row = {
        "without ms": statistics.median(times[False]),
        "with ms": statistics.median(times[True]),
        "ratio": statistics.median(ratios),
        "a check, µs": 1000 * (time.perf_counter() - started),
    }
    report("guards", {f"training step, {len(dict(model.named_modules()))} modules": row}, save=options.save)


if __name__ == "__main__":
    main()
