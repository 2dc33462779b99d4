# SPDX-License-Identifier: Apache-2.0
"""What executors leave behind: objects and memory of the process after 50, 100, 150 and 200 that were made and dropped.

BERT, 2 layers of 32, two stages; each executor is made, called once and dropped. Aim: level from 50 on.
"""

from __future__ import annotations

import argparse
import gc

import psutil
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined
from results import report

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SHAPE, vocab_size=64)).eval()
    ids = torch.randint(64, (4, 8))
    rows = {}
    for count in range(1, 201):
        inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1])))(input_ids=ids)
        if count % 50 == 0:
            gc.collect()
            memory = psutil.Process().memory_info().rss / 2**20
            rows[f"after {count} executors"] = {"objects": float(len(gc.get_objects())), "memory MiB": memory}
    report("lifetimes", rows, save=options.save)


if __name__ == "__main__":
    main()
