# SPDX-License-Identifier: Apache-2.0
"""What writing the optimizer's state costs two ranks: each its part, against the first one gathering the whole.

The Llama shape of `lazy_weights`, each rank reading its part of the model, after a step of AdamW. Both ways follow one
another on the same ranks: the time until all are done, and how far the first rank's peak rises above what it holds.
Linux only: it reads and resets /proc.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_weights
import torch
import torch.distributed as dist
import transformers
from ipu_core import to_pipelined, training_model
from ipu_core.checkpoints import read_lazily
from ipu_trainer.optimizer_state import numbered, write_parts
from peak_memory import resident
from results import report
from transformers import LlamaForCausalLM


def main() -> int:
    """Save both ways, print, and keep the result with --save; 1 when parts take more memory than the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--rank", nargs=2, metavar=("FOLDER", "MIB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.rank:
        print(*saved(Path(options.rank[0])))
        return 0
    with tempfile.TemporaryDirectory() as name:
        LlamaForCausalLM(lazy_weights.configured(lazy_weights.SHAPE)).save_pretrained(f"{name}/whole")
        ranks = lazy_weights.run(2, Path(name), 0, script=__file__)
    assert not any(rank.returncode for rank in ranks), "\n".join(rank.stderr for rank in ranks)
    figures = [float(figure) for figure in ranks[0].stdout.split()[-4:]]
    rows: dict[str, dict[str, Any]] = {
        "each its part": {"seconds": figures[0], "rise_mib": figures[1]},
        "the first gathers": {"seconds": figures[2], "rise_mib": figures[3]},
    }
    for row in rows.values():
        row["rise_to_gathered"] = row["rise_mib"] / figures[3]
    report("rank_saves", rows, save=options.save)
    return int(figures[1] > figures[3])


def saved(folder: Path) -> list[float]:
    """Train a step, and write the state both ways; returns seconds and MiB of each, on this rank."""
    with torch.device("meta"):
        model = LlamaForCausalLM(lazy_weights.configured(lazy_weights.SHAPE))
    read_lazily(model, folder / "whole")
    optimizer = torch.optim.AdamW(model.parameters())
    config = lazy_weights.ipu_config(2)
    executor = training_model(to_pipelined(model, config), optimizer, "distributed", outputs=["loss"])
    executor(**lazy_weights.batch())
    optimizer.zero_grad()
    owners, me = executor.owning_ranks(), dist.get_rank()
    numbers = [n for n, p in enumerate(numbered(optimizer)) if me in owners[id(p)]]
    (folder / "parts").mkdir(exist_ok=True)
    return [
        *measured(lambda: write_parts(folder / "parts", optimizer, numbers)),
        *measured(lambda: gather(optimizer, numbers, folder / "optimizer.pt")),
    ]


def measured(write: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds until all ranks have written, and by how much the peak rose above what was held, in MiB."""
    gc.collect()
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    dist.barrier()
    started = time.perf_counter()
    write()
    dist.barrier()
    return time.perf_counter() - started, resident("VmHWM") - base


def gather(optimizer: torch.optim.Optimizer, numbers: list[int], path: Path) -> None:
    """Bring the state of all parameters to the first rank, tensor by tensor, which writes one file."""
    parameters, me = numbered(optimizer), dist.get_rank()
    held: list[Any] = [None] * dist.get_world_size()
    shapes = {n: {k: (list(v.shape), v.dtype) for k, v in optimizer.state[parameters[n]].items()} for n in numbers}
    dist.all_gather_object(held, shapes)
    state: dict[int, dict[str, torch.Tensor]] = {n: optimizer.state[parameters[n]] for n in numbers}
    for rank, theirs in enumerate(held[1:], 1):
        for number, values in theirs.items():
            for name, (shape, dtype) in values.items():
                if me == 0:
                    tensor = state.setdefault(number, {})[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(tensor, src=rank)
                elif me == rank:
                    dist.send(state[number][name], dst=0)
    if me == 0:
        torch.save({"state": state, "param_groups": optimizer.state_dict()["param_groups"]}, path)


if __name__ == "__main__":
    sys.exit(main())
