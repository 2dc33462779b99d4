# SPDX-License-Identifier: Apache-2.0
"""A short training run, by one process or by the ranks of a distributed run."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ipu_core import IPUConfig
from ipu_core.checkpoints import read_lazily
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

STEPS = 4
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 2,
    "learning_rate": 0.01,
    "max_grad_norm": 0.5,
    "max_steps": STEPS,
    "save_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def model(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    dropouts = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 4, "vocab_size": 37, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=1, eos_token_id=1)).double()


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(1, 37, (6,), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def trainer(
    folder: Path,
    engine: str | None,
    *,
    schedule: str = "gpipe",
    dropout: float = 0.0,
    data: Any = None,
    callback: Any = None,
    start: str | None = None,
    num_ipus: int = 2,
    **arguments: Any,
) -> IPUTrainer:
    """Make a trainer of a random model, or of one that is read lazily from `start`."""
    ipu_config = IPUConfig(layers_per_ipu=[4 // num_ipus] * num_ipus, gradient_accumulation_steps=2, schedule=schedule)
    args = IPUTrainingArguments(str(folder), engine=engine, **{**ARGUMENTS, **arguments})
    callbacks = [callback] if callback else []
    data = data or rows(12)
    with torch.device("meta" if start else "cpu"):
        trained = model(dropout)
    if start:
        read_lazily(trained, start)
    return IPUTrainer(trained, ipu_config, args, train_dataset=data, eval_dataset=rows(5), callbacks=callbacks)


def train(
    rank: int, folder: str, engine: str | None, resume: str | None = None, start: str | None = None, num_ipus: int = 2
) -> dict[str, Any]:
    """Train, evaluate and save; returns what each process has at the end."""
    made = trainer(Path(folder), engine, start=start, num_ipus=num_ipus)
    made.train(resume_from_checkpoint=resume)
    metrics = made.evaluate()
    made.save_model(str(Path(folder) / "model"))
    return {
        "weights": {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.is_meta},
        "states": len(made.optimizer.optimizer.state),
        "eval_loss": metrics["eval_loss"],
        "losses": [entry["loss"] for entry in made.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry],
        "logs": made.args.should_log,
    }


def train_as_upstream(folder: str, checkpoint: str) -> dict[str, torch.Tensor]:
    """Go on from a checkpoint with transformers' own trainer; returns the weights."""
    args = TrainingArguments(folder, **{**ARGUMENTS, "per_device_train_batch_size": 2, "save_strategy": "no"})
    # The first label of a row, which a causal loss has no part of, it would count.
    data = [{**row, "labels": torch.cat([torch.tensor([-100]), row["labels"][1:]])} for row in rows(12)]
    made = Trainer(model(), args, train_dataset=data)
    made.train(resume_from_checkpoint=checkpoint)
    return {name: p.detach() for name, p in made.model.named_parameters()}


def overflowing(rank: int, folder: str, engine: str) -> dict[str, Any]:
    """Train with a loss scale where a gradient of the last layer overflows in the second step, wherever that is."""
    made = trainer(Path(folder), engine, auto_loss_scaling=True, save_strategy="no")
    last, steps = made.model.transformer.h[3].mlp.c_fc.weight, []

    def overflow(gradient: torch.Tensor) -> torch.Tensor | None:
        # A hook is called for each of two micro-batches.
        steps.append(made.state.global_step)
        return torch.full_like(gradient, torch.inf) if made.state.global_step == 1 else None

    last.register_hook(overflow)
    made.train()
    weights = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    counts = [int(state["step"]) for state in made.optimizer.optimizer.state.values()]
    return {"weights": weights, "scale": made.loss_scale.value, "has_overflowed": 1 in steps, "steps": {*counts}}


def go_on(rank: int | None, folder: str, callback: Any = None) -> dict[str, Any]:
    """Train with dropout, from the last checkpoint there is, and save at every step; returns weights and CPU seconds.

    The process writes its number to `started-<rank>`, and to `training-<rank>` after the first step, for whoever is to
    kill it.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an agent that is forked hands its own on
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    watched = callback or Watched(path)
    seconds = {"started": watched.tell("started")}
    made = trainer(path, "distributed", callback=watched, **GOING_ON)
    made.train(resume_from_checkpoint=get_last_checkpoint(folder))
    made.save_model(str(path / "model"))
    weights = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    return {"weights": weights, "seconds": {**seconds, "training": watched.seconds, "end": time.process_time()}}


GOING_ON = {"dropout": 0.1, "max_steps": 8, "save_steps": 1, "save_total_limit": 2}


class Watched(TrainerCallback):
    """Tells how far a process is."""

    seconds = 0.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tell(self, what: str) -> float:
        """Write the number of this process to a file, and return its seconds of CPU time."""
        written = self.folder / f".{what}-{os.environ['RANK']}"
        written.write_text(str(os.getpid()))
        written.rename(self.folder / f"{what}-{os.environ['RANK']}")
        return time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.seconds:
            self.seconds = self.tell("training")


class DiesOnce(Watched):
    """Kills the second rank at a step, the first time that there is one."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        died = self.folder / "died"  # ranks may be numbered another way the second time
        if state.global_step == 3 and os.environ["RANK"] == "1" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def host(number: int, hosts: int, port: int, folder: str) -> None:
    """Be a host of its own address, whose agent starts ranks, and again when one ends; writes what they give."""
    if hosts > 1:
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": f"127.0.0.1:{port}", "run_id": "hosts", "monitor_interval": 0.1}
    nodes = {"min_nodes": hosts, "max_nodes": hosts, "nproc_per_node": 2 // hosts}
    local = {"local_addr": f"127.0.0.{1 + number}", "start_method": "fork"}
    found = elastic_launch(LaunchConfig(**nodes, **local, max_restarts=1, **options), go_on)(
        None, folder, DiesOnce(Path(folder))
    )
    (Path(folder) / f"host-{number}").write_bytes(pickle.dumps(found))


class FullDisk(TrainerCallback):
    """Has no room for files in one process from the end of a step on."""

    step = 3

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            limit_files(4096)


def limit_files(largest: int) -> None:
    """Let this process write no file larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Broken(list):  # type: ignore[type-arg]
    """Rows of which one cannot be read."""

    def __getitem__(self, number: Any) -> Any:
        if number == 7:
            raise ValueError("row 7 is no number")
        return super().__getitem__(number)


def outcome(function: Any, *args: Any) -> str:
    """Return the error that a call raises, with its notes, or "no error"."""
    try:
        function(*args)
    except Exception as error:
        return "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return "no error"


def troubles(rank: int, folder: str) -> dict[str, Any]:
    """Run out of disk, go on when there is room, be given a checkpoint of another model, and lose a loader."""
    torch.set_num_threads(1)
    path, found = Path(folder), {}
    first = trainer(path, "distributed", callback=FullDisk() if rank == 0 else None, **GOING_ON)
    found["full"] = outcome(first.train)
    found["full model"] = outcome(first.save_model, str(path / "model"))
    limit_files(resource.RLIM_INFINITY)
    found["left"] = sorted(each.name for each in path.iterdir())
    again = trainer(path, "distributed", **GOING_ON)
    again.train(resume_from_checkpoint=get_last_checkpoint(folder))
    found["weights"] = {name: p.detach().clone() for name, p in again.model.named_parameters()}
    other = trainer(path / "other", "distributed")
    other.model.transformer.h[0].attn.c_attn.weight = torch.nn.Parameter(torch.zeros(16, 24, dtype=torch.double))
    found["other model"] = outcome(other.train, get_last_checkpoint(folder))
    found["arguments"] = outcome(lambda: trainer(path / "other", "distributed", learning_rate=0.01 + 0.01 * rank))
    found["config"] = outcome(trainer(path / "other", "distributed", schedule=("gpipe", "1f1b")[rank]).train)
    broken = trainer(path / "broken", "distributed", data=Broken(rows(12)) if rank == 1 else None, save_strategy="no")
    try:
        broken.train()
    except ValueError:  # as Python ends where nobody catches it
        (path / f"found-{rank}").write_bytes(pickle.dumps(found))
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    except Exception as error:
        found["loader"] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    go_on(None, sys.argv[1])
