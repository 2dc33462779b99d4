# SPDX-License-Identifier: Apache-2.0
"""What compiling costs: a 24-layer stack beside a 4-layer one, and a warm start from the cache beside a cold one.

BERT for masked language modelling with random weights, training, two IPUs. Each figure is the time from the call of
`training_model` to the end of its first step, in a process of its own; the cold ones begin with an empty cache, torch's
own included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import report

SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "vocab_size": 2000}


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layers:
        print(first_call_seconds(options.layers, options.cache))
        return
    seconds = {}
    for layers in (4, 24):
        with tempfile.TemporaryDirectory() as scratch:
            for start in ("cold", "warm"):
                seconds[layers, start] = in_a_process(layers, Path(scratch))
    rows = {
        f"{layers} layers": {
            "cold_s": seconds[layers, "cold"],
            "warm_s": seconds[layers, "warm"],
            "warm_to_cold": seconds[layers, "warm"] / seconds[layers, "cold"],
            "cold_to_4_layers": seconds[layers, "cold"] / seconds[4, "cold"],
        }
        for layers in (4, 24)
    }
    report("compile_time", rows, save=options.save)


def in_a_process(layers: int, scratch: Path) -> float:
    """Return the seconds another process takes to its first result, with a cache under `scratch`."""
    command = [sys.executable, __file__, "--layers", str(layers), "--cache", str(scratch / "cache")]
    # Torch keeps what it compiles too; a cold start is cold for it as well.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "torch")}
    return float(
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def first_call_seconds(layers: int, cache: str) -> float:
    """Train one step of a compiled model, and give the seconds it took."""
    import torch
    import transformers
    from ipu_core import IPUConfig, to_pipelined, training_model
    from ipu_core.samples import sample_batch

    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, num_hidden_layers=layers)).train()
    config = IPUConfig(layers_per_ipu=[-1], ipus_per_replica=2, compile=True, executable_cache_dir=cache)
    batch = sample_batch(model, batch_size=4, length=64)
    started = time.perf_counter()
    training_model(to_pipelined(model, config))(**batch)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
