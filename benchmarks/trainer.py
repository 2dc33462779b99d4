# SPDX-License-Identifier: Apache-2.0
"""`IPUTrainer` against `transformers.Trainer`: speed, losses and peak memory, on rows of full length.

The MiniLM shape (BERT, 6 layers of 384, a vocabulary of 30,522, random weights), 16 rows of 128 tokens a step, dropout
on. `classification` has nothing to gain and shows what the pipeline costs; `masked language` projects only the masked
tokens on our side (15 %, and room for 2 standard deviations more). Both sides take turns in one process, a few steps
each; the first step of a turn is left out, and the figure is the median of the ratios of neighbouring turns. Both sides
see the same rows in the same order, so their losses can be compared step by step. Peak memory is that of a process of
its own for each side, and the figure of each is the median of three.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
from host_overhead import SHAPE
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from results import report

ROWS, LENGTH, MASKED, VOCABULARY = 16, 128, 0.15, 30_522
TASKS = ("classification", "masked language")
SIDES = ("transformers", "ours")


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn that count")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_mib(*options.memory))
        return
    # First, while this process is small: Linux counts the peak of what starts a process as that of the process, too.
    rows = {task: dict(memory(task)) for task in TASKS}
    for task, row in rows.items():
        row |= speed(task, options.turns, options.steps)
    report("trainer", rows, save=options.save)


def speed(task: str, turns: int, steps: int) -> dict[str, Any]:
    """Let both sides take turns."""
    sides = {side: Side(side, task, steps + 1) for side in SIDES}
    for side in sides.values():
        side.take_turn()  # captures, and makes the optimizer's state
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(turns):
        for name, side in sides.items():
            seconds[name].append(side.take_turn())
    theirs, ours = (seconds[name] for name in SIDES)
    samples = ROWS * steps
    losses = [side.losses for side in sides.values()]
    return {
        "theirs_samples_per_s": samples / statistics.median(theirs),
        "ours_samples_per_s": samples / statistics.median(ours),
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "largest_loss_difference": max(abs(t - o) for t, o in zip(*losses, strict=True)),
        "last_loss": losses[1][-1],
        "turns": turns,
    }


def memory(task: str) -> dict[str, float]:
    """Measure the most memory of a process for each side."""
    peaks = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--memory", side, task]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
        peaks[side] = statistics.median(float(run.split()[-1]) for run in runs)
    return {
        "theirs_peak_mib": peaks["transformers"],
        "ours_peak_mib": peaks["ours"],
        "peak_ratio": peaks["ours"] / peaks["transformers"],
    }


def peak_mib(side: str, task: str) -> float:
    """Train some steps, and give the most memory this process held, in MiB."""
    Side(side, task, 4).take_turn()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Side(transformers.TrainerCallback):
    """One trainer, and the time its steps take."""

    def __init__(self, side: str, task: str, steps: int) -> None:
        transformers.set_seed(0)
        self.starts: list[float] = []
        self.losses: list[float] = []
        arguments = {
            **{"per_device_train_batch_size": ROWS, "max_steps": steps, "learning_rate": 1e-4, "logging_steps": 1},
            **{"report_to": [], "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False},
            "lr_scheduler_type": "constant",
        }
        data = [row_of(task) for _ in range(ROWS * steps)]
        folder = tempfile.mkdtemp()
        if side == "ours":
            config = IPUConfig(layers_per_ipu=[1, 2, 2, 1], max_masked_tokens=_most() if task != TASKS[0] else None)
            args = IPUTrainingArguments(folder, **arguments)
            self.trainer = IPUTrainer(model_of(task), config, args, train_dataset=data, callbacks=[self])
        else:
            plain = transformers.TrainingArguments(folder, **arguments)
            self.trainer = transformers.Trainer(model_of(task), plain, train_dataset=data, callbacks=[self])
        self.trainer.remove_callback(transformers.PrinterCallback)

    def take_turn(self) -> float:
        """Train, and give the seconds of all steps but the first."""
        self.starts = []
        self.trainer.train()
        self.losses += [log["loss"] for log in self.trainer.state.log_history if "loss" in log]
        return self.starts[-1] - self.starts[0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when a step is done."""
        self.starts.append(time.perf_counter())


def model_of(task: str) -> Any:
    """Make the model of a task, the same for both sides."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, num_labels=4)
    return (transformers.BertForSequenceClassification if task == TASKS[0] else transformers.BertForMaskedLM)(config)


def row_of(task: str) -> dict[str, torch.Tensor]:
    """Make a random row of full length."""
    ids = torch.randint(1000, VOCABULARY, (LENGTH,))
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == TASKS[0]:
        return {**row, "labels": ids[0] % 4}
    chosen = torch.rand(LENGTH) < MASKED
    chosen &= chosen.cumsum(0) <= _most()
    return {**row, "input_ids": torch.where(chosen, 103, ids), "labels": torch.where(chosen, ids, -100)}


def _most() -> int:
    return round(LENGTH * MASKED + 2 * math.sqrt(LENGTH * MASKED * (1 - MASKED)))


if __name__ == "__main__":
    main()
