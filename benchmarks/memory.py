# SPDX-License-Identifier: Apache-2.0
"""Peak memory of training steps: plain eager, the host executor, and the host executor with recomputation.

The MiniLM shape (BERT, 6 layers of 384, random weights), batch 32, length 128, four stages; each side is a process of
its own, and the figure is the most memory it held.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
import transformers
from host_overhead import SHAPE
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

SIDES = ("eager", "host", "recompute")


def main() -> None:
    """Measure each side in a process of its own, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(peak_mib(options.side))
        return
    peaks = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side]
        peaks[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    rows = {side: {"peak_mib": peak, "to_eager": peak / peaks["eager"]} for side, peak in peaks.items()}
    report("memory", rows, save=options.save)


def peak_mib(side: str) -> float:
    """Run three training steps and give the most memory this process held, in MiB."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, num_labels=4)).train()
    batch = sample_batch(model, batch_size=32, length=128)
    config = IPUConfig(layers_per_ipu=[1, 2, 2, 1], recompute_checkpoint_every_layer=side == "recompute")
    executor = None if side == "eager" else training_model(to_pipelined(model, config))
    for _ in range(3):
        model.zero_grad()
        if executor is None:
            model(**batch).loss.backward()
        else:
            executor(**batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
