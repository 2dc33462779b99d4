# SPDX-License-Identifier: Apache-2.0
"""The memory a plan predicts for a training step, against what the process really takes.

BERT, GPT-2 and T5 at three sizes, batch 8, length 128, AdamW, two stages in one process. Each is measured in a process
of its own: libraries are warmed up with a tiny model of the same class, the resident size is read, the model is made
and compiled, the high-water mark is reset, three steps are run. Linux only: it reads and resets the mark in /proc.

Large tensors are given back to the system when they are freed (MALLOC_MMAP_THRESHOLD_), so that the figure is what is
held; with glibc's defaults (--default-malloc) fragmentation comes on top.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

MODELS = ("bert", "gpt2", "t5")
SIZES = {"256/4": (256, 4), "512/6": (512, 6), "768/8": (768, 8)}
TINY = (64, 2)
BATCH = {"batch_size": 8, "length": 128}
MIB = 2**20
TOLERANCE = 0.15
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}


def main() -> int:
    """Measure each model and size in a process of its own, print, and save with --save; 1 when one is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if options.one:
        print(*predicted_and_measured(options.one[0], SIZES[options.one[1]]))
        return 0
    environment = os.environ if options.default_malloc else {**os.environ, **GIVE_BACK}
    rows: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        for size in SIZES:
            print(f"measuring {name} {size} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--one", name, size]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            predicted, measured = (float(figure) for figure in done.stdout.split()[-2:])
            rows[f"{name} {size}"] = {
                "predicted_mib": predicted,
                "measured_mib": measured,
                "predicted_to_measured": predicted / measured,
            }
    name = "peak_memory_default_malloc" if options.default_malloc else "peak_memory"
    report(name, rows, save=options.save)
    off = max(abs(row["predicted_to_measured"] - 1) for row in rows.values())
    print(f"{name}: predictions are within {off:.1%}; {'good' if off <= TOLERANCE else 'too far'} (15 % is the aim)")
    return 0 if off <= TOLERANCE else 1


def warm_up(name: str) -> None:
    """Have torch and the model's own code do once what they do only once."""
    model = model_of(name, TINY)
    executor = executor_of(model)
    for _ in range(2):
        executor(**sample_batch(model, **BATCH))


def predicted_and_measured(name: str, size: tuple[int, int]) -> tuple[float, float]:
    """Return the peak of three steps in MiB above what the libraries take: as planned, and as it was."""
    warm_up(name)
    gc.collect()
    base = resident("VmRSS")
    model = model_of(name, size)
    executor = executor_of(model)
    batch = sample_batch(model, **BATCH)
    executor.compile(**batch)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        executor(**batch)
    return executor.plan.process_peak_bytes / MIB, resident("VmHWM") - base


def executor_of(model: Any) -> Any:
    """Make a training executor of two stages."""
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1], ipus_per_replica=2))
    return training_model(pipelined, torch.optim.AdamW(model.parameters()), outputs=["loss"])


def model_of(name: str, size: tuple[int, int]) -> Any:
    """Make a model of random weights; of T5, half the layers are the decoder's."""
    hidden, layers = size
    heads = hidden // 64
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden
        )
        return transformers.BertForMaskedLM(config).train()
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=hidden, n_layer=layers, n_head=heads)
        ).train()
    config = transformers.T5Config(
        d_model=hidden,
        d_kv=64,
        d_ff=4 * hidden,
        num_layers=layers // 2,
        num_decoder_layers=layers // 2,
        num_heads=heads,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).train()


def resident(field: str) -> float:
    """Read a field of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
