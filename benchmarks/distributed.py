# SPDX-License-Identifier: Apache-2.0
"""Two ranks, a thread each: training against one process, and generation against transformers on the same two ranks.

`training`: an encoder of 8 layers, 8 micro-batches, AdamW. One process trains while the other waits, then both train
together. The bound of GPipe and 1F1B over 2 stages and 8 micro-batches is 2 x 8 / 9 = 1.78, that of interleaved 1F1B,
with 2 stages an IPU, 2 x 16 / 17 = 1.88. Aim: at least 1.6. `machine` is how many times as much two processes do that
train side by side, each a model of its own: 2 where the machine has two cores that nobody else uses. `bound` is that of
the schedule on this machine.

`generation`: 8 sequences of a Llama-shaped model, a prompt of 32 tokens, 64 new ones, greedy. Theirs is
`DistributedConfig(pp_size=2)` of transformers; ours has the sequences in groups that are in flight together, with and
without compiled steps. Tokens are compared. Aim: at least 1.5 times the tokens a second. `alone` is `generate` of
transformers in one process of one thread.

Sides take turns in one run of `torchrun`; figures are medians, ratios those of neighbouring turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from ipu_core import Executor, IPUConfig, generation_model, to_pipelined, training_model
from ipu_core.samples import sample_batch
from results import report

SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 1024}
MICRO_BATCHES, ROWS, LENGTH = 8, 4, 64
STAGES_PER_IPU = {"1f1b": 1, "gpipe": 1, "interleaved": 2}
LLAMA = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408}
SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 64

Times = dict[str, list[float]]


def take_turns(sides: Mapping[str, Callable[[], Any]], turns: int) -> Times:
    """Time each side in turn, from when all ranks begin until all are done; one turn more is not counted."""
    times: Times = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, run in sides.items():
            dist.barrier()
            started = time.perf_counter()
            run()
            dist.barrier()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(times: Times, of: str, to: str) -> float:
    """Return how many times as fast one side is as another, as the median over turns."""
    return statistics.median(two / one for one, two in zip(times[of], times[to], strict=True))


def encoder() -> torch.nn.Module:
    """Make the model that is trained."""
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, vocab_size=1000))


def trainer_of(engine: str, schedule: str) -> Executor:
    """Make a model and what trains it: of the same weights for each engine."""
    model = encoder()
    layers = [4, 4] if engine == "distributed" else [8]
    options = {"stages_per_ipu": STAGES_PER_IPU.get(schedule, 1), "schedule": schedule}
    ipu_config = IPUConfig(layers_per_ipu=layers, gradient_accumulation_steps=MICRO_BATCHES, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return training_model(to_pipelined(model, ipu_config), optimizer, engine=engine, outputs=["loss"])


def training(turns: int) -> dict[str, dict[str, float]]:
    """Measure training."""
    batch = sample_batch(encoder(), batch_size=MICRO_BATCHES * ROWS, length=LENGTH)
    alone = trainer_of("host", "sequential")
    executors = {name: trainer_of("distributed", name) for name in STAGES_PER_IPU}
    sides: dict[str, Callable[[], Any]] = {"alone": lambda: alone(**batch) if dist.get_rank() == 0 else None}
    sides["side by side"] = lambda: alone(**batch)
    sides |= {name: lambda executor=executor: executor(**batch) for name, executor in executors.items()}
    times = take_turns(sides, turns)
    machine = 2 * ratio(times, "side by side", "alone")
    timeline = executors["1f1b"].timeline()
    if dist.get_rank() == 0:
        print(timeline)
    return {
        f"training, {name}": {
            "one_process_s": statistics.median(times["alone"]),
            "two_ranks_s": statistics.median(times[name]),
            "machine": machine,
            "bound": machine * MICRO_BATCHES * stages / (MICRO_BATCHES * stages + 1),
            "ratio": ratio(times, name, "alone"),
        }
        for name, stages in STAGES_PER_IPU.items()
    }


def generation(turns: int) -> dict[str, dict[str, float]]:
    """Measure generation."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**LLAMA, vocab_size=8192, max_position_embeddings=256, pad_token_id=0)
        transformers.LlamaForCausalLM(config).save_pretrained(Path(folder[0]) / "model")
    dist.barrier()
    weights = Path(folder[0]) / "model"
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(weights, distributed_config=transformers.DistributedConfig(pp_size=2)).eval()
    model = auto.from_pretrained(weights).eval()
    ids = torch.randint(1, 8192, (SEQUENCES, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    given |= {"eos_token_id": None, "pad_token_id": 0}
    sides: dict[str, Callable[[], Any]] = {
        "theirs": lambda: theirs.generate(ids, **given),
        "alone": lambda: model.generate(ids, **given) if dist.get_rank() == 0 else None,
    }
    tokens = {}
    for name, in_flight, is_compiled in (("2 groups", 2, False), ("2 groups, compiled", 2, True)):
        cache = str(Path(folder[0]) / "cache") if is_compiled else ""
        ipu_config = IPUConfig(layers_per_ipu=[4, 4], compile=is_compiled, executable_cache_dir=cache)
        options = {"engine": "distributed", "in_flight": in_flight, "on_all_ranks": True}
        generator = generation_model(to_pipelined(model, ipu_config), **options)
        sides[name] = lambda generator=generator: generator.generate(ids, **given)
        tokens[name] = sides[name]()
    expected = theirs.generate(ids, **given)
    times = take_turns(sides, turns)
    count = SEQUENCES * NEW_TOKENS
    return {
        f"generation, {name}": {
            "theirs_tokens_per_s": count / statistics.median(times["theirs"]),
            "alone_tokens_per_s": count / statistics.median(times["alone"]),
            "ours_tokens_per_s": count / statistics.median(times[name]),
            "same_tokens": float((made == expected).float().mean()),
            "ratio": ratio(times, name, "theirs"),
        }
        for name, made in tokens.items()
    }


MEASURED = {"training": training, "generation": generation}


def measured(options: argparse.Namespace) -> None:
    """Measure in one rank; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows: dict[str, dict[str, float]] = {}
    for name in options.only:
        rows |= MEASURED[name](options.turns)
    if dist.get_rank() == 0:
        report("distributed", rows, save=options.save)
    dist.destroy_process_group()


def main() -> None:
    """Start two ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=list(MEASURED), nargs="*", default=list(MEASURED))
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    if "RANK" in os.environ:
        measured(options)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *sys.argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    raise SystemExit(subprocess.run(command, env=environment, timeout=1800).returncode)


if __name__ == "__main__":
    main()
