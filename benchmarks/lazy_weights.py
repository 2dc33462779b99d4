# SPDX-License-Identifier: Apache-2.0
"""A model that one process has no room for, on two ranks that each read their part of it: they train, and generate.

A Llama shape with AdamW. Every process is warmed up with a tiny model on the same ranks; then its address space is
limited (RLIMIT_AS) to what it has by then and LIMIT more, which is room for the plan's figure of a rank and not for the
whole. One process ends with an error of the allocator; two ranks train, write a checkpoint that plain transformers
loads, and their peak is compared with the plan's figure for their IPU. Generation has room for GENERATING of the whole
model's parameters, and gives the plain model's tokens. Linux only: it reads and resets /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, generation_model, plan, to_pipelined, training_model
from ipu_core.checkpoints import read_lazily
from peak_memory import GIVE_BACK, MIB, resident
from results import report
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 8000
MICRO_BATCHES, LENGTH = 4, 64
ROOM = 1.5  # of the plan's figure of the larger rank; both together are twice as much or so
TOLERANCE = 0.2
GENERATING = 0.85


def main() -> int:
    """Run one process, then two, in the same room; print, and save with --save; 1 when a figure is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--rank", nargs=2, metavar=("FOLDER", "MIB"), help=argparse.SUPPRESS)
    parser.add_argument("--generate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.rank:
        folder, limit = Path(options.rank[0]), float(options.rank[1])
        print(*(generated(folder, limit) if options.generate else trained(folder, limit)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, shape in (("whole", SHAPE), ("tiny", TINY)):
            LlamaForCausalLM(configured(shape)).save_pretrained(folder / kind, max_shard_size="50MB")
        expected = LlamaForCausalLM.from_pretrained(folder / "whole").generate(**prompt(), **GREEDY)
        torch.save(expected, folder / "tokens.pt")
        whole = (folder / "whole" / "model.safetensors.index.json").read_text()
        whole_mib = json.loads(whole)["metadata"]["total_size"] / MIB
        planned = planned_mib()
        limit = ROOM * max(planned)
        (alone,) = run(1, folder, limit)
        assert alone.returncode, f"one process has room for the whole model in {limit:.0f} MiB: {alone.stdout}"
        print(f"lazy_weights: one process in {limit:.0f} MiB: {alone.stderr.strip().splitlines()[-1]}")
        ranks = run(2, folder, limit)
        assert not any(rank.returncode for rank in ranks), "\n".join(rank.stderr for rank in ranks)
        LlamaForCausalLM.from_pretrained(folder / "trained")
        (alone,) = run(1, folder, GENERATING * whole_mib, "--generate")
        assert alone.returncode, f"one process has room to generate with the whole model: {alone.stdout}"
        generating = run(2, folder, GENERATING * whole_mib, "--generate")
        assert not any(rank.returncode for rank in generating), "\n".join(rank.stderr for rank in generating)
    rows: dict[str, dict[str, Any]] = {}
    for number, rank in enumerate(generating):
        peak = float(rank.stdout.split()[-1])
        rows[f"rank {number}, generating"] = {"limit_mib": GENERATING * whole_mib, "measured_mib": peak}
        rows[f"rank {number}, generating"] |= {"whole_mib": whole_mib, "measured_to_whole": peak / whole_mib}
    for number, rank in enumerate(ranks):
        predicted, measured = (float(figure) for figure in rank.stdout.split()[-2:])
        row = {"limit_mib": limit, "predicted_mib": predicted, "measured_mib": measured}
        rows[f"rank {number}"] = {**row, "measured_to_predicted": measured / predicted}
    report("lazy_weights", rows, save=options.save)
    off = max(abs(row["measured_to_predicted"] - 1) for row in rows.values() if "predicted_mib" in row)
    print(f"lazy_weights: peaks are within {off:.1%} of the plan; {'good' if off <= TOLERANCE else 'too far'}")
    return 0 if off <= TOLERANCE else 1


def configured(shape: dict[str, int]) -> LlamaConfig:
    """Return the configuration of a shape."""
    return LlamaConfig(**shape, vocab_size=VOCABULARY, tie_word_embeddings=False)


def ipu_config(ipus: int) -> IPUConfig:
    """Divide the layers over some IPUs."""
    return IPUConfig(
        layers_per_ipu=[-1], ipus_per_replica=ipus, gradient_accumulation_steps=MICRO_BATCHES, schedule="1f1b"
    )


def batch() -> dict[str, torch.Tensor]:
    """Return the batch of one update."""
    ids = torch.randint(VOCABULARY, (MICRO_BATCHES, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def planned_mib() -> list[float]:
    """Return what the plan says of each of two ranks."""
    with torch.device("meta"):
        model = LlamaForCausalLM(configured(SHAPE))
    meta = {name: tensor.to("meta") for name, tensor in batch().items()}
    return [memory.peak / MIB for memory in plan(to_pipelined(model, ipu_config(2)), meta).memory]


def run(
    ranks: int, folder: Path, limit: float, *more: str, script: str = __file__
) -> list[subprocess.CompletedProcess[str]]:
    """Start some processes that work together, and return what became of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    # An arena of glibc's for each thread takes address space that nobody uses.
    environment = {**os.environ, **GIVE_BACK, **meeting, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "--rank", str(folder), str(limit), *more]
    started = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ended = []
    for process in started:
        out, problem = process.communicate(timeout=900)
        ended.append(subprocess.CompletedProcess(command, process.returncode, out, problem))
    return ended


def trained(folder: Path, limit: float) -> tuple[float, float]:
    """Train three steps in so many MiB more than libraries take; returns the peak as planned, and as it was."""
    step(folder / "tiny", TINY)
    gc.collect()
    base, space = resident("VmRSS"), resident("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (round((space + limit) * MIB),) * 2)
    executor = step(folder / "whole", SHAPE)
    peak = resident("VmHWM") - base
    executor.save_pretrained(folder / "trained")
    ipu = int(os.environ["RANK"])
    return executor.plan.memory[ipu].peak / MIB, peak


def prompt() -> dict[str, torch.Tensor]:
    """Return what generation begins with."""
    ids = torch.randint(3, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


GREEDY: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False}


def generated(folder: Path, limit: float) -> tuple[float]:
    """Generate in so many MiB more than libraries take; returns the peak."""
    tokens(folder / "tiny", TINY)
    gc.collect()
    base, space = resident("VmRSS"), resident("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (round((space + limit) * MIB),) * 2)
    Path("/proc/self/clear_refs").write_text("5")
    assert torch.equal(tokens(folder / "whole", SHAPE), torch.load(folder / "tokens.pt"))
    return (resident("VmHWM") - base,)


def tokens(folder: Path, shape: dict[str, int]) -> torch.Tensor:
    """Read a model, and generate."""
    with torch.device("meta"):
        model = LlamaForCausalLM(configured(shape))
    read_lazily(model, folder)
    pipelined = to_pipelined(model, ipu_config(int(os.environ["WORLD_SIZE"])))
    generator = generation_model(pipelined, "distributed", on_all_ranks=True)
    found: torch.Tensor = generator.generate(**prompt(), **GREEDY)
    return found


def step(folder: Path, shape: dict[str, int]) -> Any:
    """Read a model, and train it for three steps, of which the most memory is noted."""
    ipus = int(os.environ["WORLD_SIZE"])
    with torch.device("meta"):
        model = LlamaForCausalLM(configured(shape))
    read_lazily(model, folder)
    optimizer = torch.optim.AdamW(model.parameters())
    executor = training_model(to_pipelined(model, ipu_config(ipus)), optimizer, "distributed", outputs=["loss"])
    executor.compile(**batch())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        executor(**batch())
    return executor


if __name__ == "__main__":
    sys.exit(main())
