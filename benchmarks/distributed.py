# SPDX-License-Identifier: Apache-2.0
"""Training on two ranks against one process, a thread each: an encoder of 8 layers, 8 micro-batches, 1F1B.

Both sides take turns in one run of `torchrun`: one process trains while the other waits, then both train together.
GPipe's and 1F1B's bound over 2 stages and 8 micro-batches is 2 x 8 / 9 = 1.78. Aim: at least 1.6.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import transformers
from ipu_core import Executor, IPUConfig, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 1024}
MICRO_BATCHES, ROWS, LENGTH = 8, 4, 128


def executor_of(engine: str, schedule: str) -> Executor:
    """Make a model and what trains it: of the same weights for each engine."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, vocab_size=1000))
    layers = [4, 4] if engine == "distributed" else [8]
    ipu_config = IPUConfig(layers_per_ipu=layers, gradient_accumulation_steps=MICRO_BATCHES, schedule=schedule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return training_model(to_pipelined(model, ipu_config), optimizer, engine=engine, outputs=["loss"])


def measured(options: argparse.Namespace) -> None:
    """Measure in one rank; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    is_first = dist.get_rank() == 0
    alone = executor_of("host", "sequential")
    sides = {name: executor_of("distributed", name) for name in ("1f1b", "gpipe", "zero_bubble")}
    batch = sample_batch(
        transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, vocab_size=1000)),
        batch_size=MICRO_BATCHES * ROWS,
        length=LENGTH,
    )
    times: dict[str, list[float]] = {"alone": [], **{name: [] for name in sides}}
    for run in range(options.runs + 1):
        for name in times:
            dist.barrier()
            started = time.perf_counter()
            if name != "alone":
                sides[name](**batch)
            elif is_first:
                alone(**batch)
            dist.barrier()
            if run:
                times[name].append(time.perf_counter() - started)
    print(sides["1f1b"].timeline()) if is_first else sides["1f1b"].timeline()
    rows = {}
    for name in sides:
        ratios = [one / two for one, two in zip(times["alone"], times[name], strict=True)]
        rows[f"{name}, 2 ranks"] = {
            "one process s": statistics.median(times["alone"]),
            "2 ranks s": statistics.median(times[name]),
            "speed-up": statistics.median(ratios),
        }
    if is_first:
        report("distributed", rows, save=options.save)
    dist.destroy_process_group()


def main() -> None:
    """Start two ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    if "RANK" in os.environ:
        measured(options)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *sys.argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    raise SystemExit(subprocess.run(command, env=environment, timeout=1800).returncode)


if __name__ == "__main__":
    main()
