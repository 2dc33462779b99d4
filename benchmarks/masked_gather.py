# SPDX-License-Identifier: Apache-2.0
"""What projecting only the masked tokens saves: one training step, without and with `max_masked_tokens`.

The MiniLM shape (BERT, 6 layers of 384, a vocabulary of 30,522, random weights), batch 8, length 128, four stages, 15 %
of the tokens masked in each row, and room for 2 standard deviations more. Both sides take turns in one process; the
figure is the median of the ratios of neighbouring runs. The losses are compared, too.
"""

from __future__ import annotations

import argparse
import math

import torch
import transformers
from host_overhead import SHAPE, compare
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.rewrites.masked_lm_head import IGNORED
from results import report

ROWS, LENGTH, MASKED = 8, 128, 0.15


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    # Without dropout, so that the losses can be compared.
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, **dropout))
    batch = masked_batch(model.config.vocab_size)
    most = round(LENGTH * MASKED + 2 * math.sqrt(LENGTH * MASKED * (1 - MASKED)))
    whole, masked = (
        training_model(
            to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1], max_masked_tokens=k)), outputs=["loss"]
        )
        for k in (None, most)
    )
    difference = abs(whole(**batch).loss - masked(**batch).loss).item()
    work = [sum(stage.flops for stage in executor.plan.stages) for executor in (whole, masked)]
    times = compare(lambda: whole(**batch), lambda: masked(**batch), runs=options.runs, after=model.zero_grad)
    row = {
        "whole_ms": times["eager_ms"],
        "masked_ms": times["host_ms"],
        "ratio": times["ratio"],
        "flops_ratio": work[1] / work[0],
        "loss_difference": difference,
        "max_masked_tokens": most,
        "runs": options.runs,
    }
    report("masked_gather", {"training step": row}, save=options.save)


def masked_batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Make rows of random tokens, each with 15 % of them labelled."""
    ids = torch.randint(1, vocabulary, (ROWS, LENGTH))
    chosen = torch.rand(ROWS, LENGTH).argsort(dim=1) < round(LENGTH * MASKED)
    return {
        "input_ids": torch.where(chosen, 103, ids),
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(chosen, ids, IGNORED),
    }


if __name__ == "__main__":
    main()
