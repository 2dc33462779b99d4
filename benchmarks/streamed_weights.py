# SPDX-License-Identifier: Apache-2.0
"""What parameters on the host cost and save: training steps with them there, against the same on the device.

A GPT-2 of random weights, in as many stages as layers. Memory is the peak of the plan; on a machine with a CUDA device
also that device's, and the time of a step, of which both sides take turns in one process. The optimizer is SGD, which
leaves no state on the device while the other side runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import transformers
from ipu_core import Executor, IPUConfig, plan, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

DEVICE = "cuda:0"


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = {"n_layer": options.layers, "n_embd": options.width}
    models = [transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)) for _ in range(2)]
    batch = sample_batch(models[0], batch_size=options.rows, length=128)
    sides = [
        to_pipelined(model, IPUConfig(layers_per_ipu=[-1], stages_per_ipu=options.layers, parameters_offchip=offchip))
        for model, offchip in zip(models, (False, True), strict=True)
    ]
    plans = [plan(side, batch, optimizer=torch.optim.SGD) for side in sides]
    rows = {"planned peak, MiB": compared([made.memory[0].peak / 2**20 for made in plans])}
    if torch.cuda.is_available():
        rows |= measured(sides, batch, options.runs)
    else:
        print("no CUDA device is there: nothing is measured")
    report("streamed_weights", rows, save=options.save)


def measured(sides: list[Any], batch: dict[str, torch.Tensor], runs: int) -> dict[str, dict[str, float]]:
    """Train both sides in turn on the device; return the medians of a step, and the peaks of its memory."""
    for side in sides:
        side.ipu_config = side.ipu_config.replace(devices=[DEVICE])
    executors = [training_model(side, torch.optim.SGD(side.parameters(), lr=0.01), outputs=["loss"]) for side in sides]
    found = [[step(executor, batch) for executor in executors] for _ in range(runs + 2)][2:]  # the first warm up
    times = [statistics.median(run[side][0] for run in found) for side in (0, 1)]
    peaks = [max(run[side][1] for run in found) for side in (0, 1)]
    return {"step, ms": compared(times), "peak of a step, MiB": compared(peaks)}


def step(executor: Executor, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Train a step; return its milliseconds, and the most MiB the device had."""
    executor.compile(**batch)
    executor(**batch)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    executor(**batch)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20
    executor.release()
    return 1000 * seconds, peak


def compared(pair: list[float]) -> dict[str, float]:
    """Return both figures, and the ratio of the second to the first."""
    return {"on the device": pair[0], "on the host": pair[1], "ratio": pair[1] / pair[0]}


if __name__ == "__main__":
    main()
