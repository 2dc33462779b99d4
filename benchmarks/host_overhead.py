# SPDX-License-Identifier: Apache-2.0
"""What the captured pipeline costs: one forward and one training step, plain eager against the host executor.

The MiniLM shape (BERT, 6 layers of 384, random weights), batch 8, length 128, four stages. Both sides take turns in one
process; the figure is the median of the ratios of neighbouring runs. Aim: at most 1.05.

Without padding eager attention leaves the mask out, which a static graph cannot: it has to look at the mask's values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, num_labels=4))
    rows = {}
    for padded in (False, True):
        batch = sample_batch(model, batch_size=8, length=128, padded=padded)
        for name, pair in sides(model, batch).items():
            rows[f"{name}, {'padded' if padded else 'unpadded'}"] = compare(
                *pair, runs=options.runs, after=model.zero_grad
            )
    report("host_overhead", rows, save=options.save)


def sides(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return pairs (plain, ours) of a forward and of a training step."""
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1]))
    inference, training = inference_model(pipelined), training_model(pipelined)
    inference.compile(**batch)
    training.compile(**batch)

    def eager_step() -> None:
        model.train()
        model(**batch).loss.backward()

    def eager_forward() -> None:
        model.eval()
        with torch.no_grad():
            model(**batch)

    return {
        "forward": (eager_forward, lambda: inference(**batch)),
        "training step": (eager_step, lambda: training(**batch)),
    }


def compare(
    plain: Callable[[], object], ours: Callable[[], object], *, runs: int, after: Callable[[], None]
) -> dict[str, float]:
    """Time both in turn, in alternating order; give the medians in milliseconds and the median ratio."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for run in range(runs + 3):
        for side in (0, 1) if run % 2 else (1, 0):
            started = time.perf_counter()
            (plain, ours)[side]()
            if run >= 3:  # the first runs warm up
                times[side].append(1000 * (time.perf_counter() - started))
            after()
    ratios = [mine / theirs for theirs, mine in zip(times[0], times[1], strict=True)]
    return {
        "eager_ms": median(times[0]),
        "host_ms": median(times[1]),
        "ratio": median(ratios),
        "runs": runs,
    }


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
