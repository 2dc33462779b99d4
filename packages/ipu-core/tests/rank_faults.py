# SPDX-License-Identifier: Apache-2.0
"""What single ranks do wrong, one function a fault: each process calls it with its rank."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import torch
from distributed_cases import Case, batch, make
from ipu_core import to_pipelined, training_model
from ipu_core.engines.distributed.ranks import meet

CASE = Case(model="gpt2", schedule="gpipe", ipus=2, micro_batches=2)


def outcome(function: Any, *args: Any) -> str:
    """Return the kind and the message of the error that a call raises, or "no error"."""
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def compiled(
    case: Case = CASE, rows: int = 4, outputs: Any = ("loss",), **options: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    model = to_pipelined(make(case), case.ipu_config(**options))
    inputs = batch(rows)
    return training_model(model, engine="distributed", outputs=outputs).compile(**inputs), inputs


def unlike(rank: int, *, seed: int = 1, rate: float = 0.1, rows: int = 1) -> Any:
    """Train a step with a model, an optimizer or rows that the second rank has of its own."""
    model = make(CASE)
    torch.manual_seed(seed if rank else 1)
    torch.nn.init.normal_(model.transformer.wpe.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate if rank else 0.1)
    inputs = batch(4)
    inputs["labels"] = inputs["labels"].roll(rows if rank else 1, 0)
    return training_model(to_pipelined(model, CASE.ipu_config()), optimizer, engine="distributed")(**inputs)


def start_ups(rank: int) -> dict[str, str]:
    """Start with what does not fit, and with what differs between ranks; no group is left broken by it."""
    found = {}
    found["world"] = outcome(lambda: compiled(rows=8, replication_factor=2))
    found["devices"] = outcome(lambda: compiled(devices=["cpu", "cpu"]))
    found["1f1b"] = outcome(lambda: compiled(schedule="1f1b", rows=2, gradient_accumulation_steps=1))
    found["stages"] = outcome(lambda: compiled(serialized_embedding_splits_per_ipu=[0, 1]))
    found["options"] = outcome(lambda: compiled(schedule="gpipe" if rank else "1f1b"))
    found["plan"] = outcome(lambda: compiled(layers_per_ipu=[2, 2] if rank else [1, 3]))
    found["shapes"] = outcome(lambda: compiled(rows=4 if rank else 8))
    other = Case(model="gpt2" if rank else "bert", micro_batches=2)
    found["model"] = outcome(lambda: compiled(other))
    found["outputs"] = outcome(lambda: compiled(outputs=["logits"] if rank else ["loss"]))
    found["seed"] = outcome(lambda: unlike(rank, seed=2))
    found["optimizer"] = outcome(lambda: unlike(rank, rate=0.2))
    found["rows"] = outcome(lambda: unlike(rank, rows=2))
    return found


def raises(rank: int) -> str:
    """Let the second rank end with an error of its data loader, as an uncaught one does."""
    executor, inputs = compiled()
    executor(**inputs)
    if rank == 1:
        try:
            raise ValueError("row 7 is no number")
        except ValueError:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return outcome(lambda: executor(**inputs))


def is_killed(rank: int) -> str:
    """Let the second rank be killed between two steps."""
    executor, inputs = compiled()
    executor(**inputs)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome(lambda: executor(**inputs))


def stops(rank: int, stopped: int = 1) -> str:
    """Let one rank stop, and stay."""
    meet(timeout_seconds=8)
    executor, inputs = compiled()
    executor(**inputs)
    if rank == stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    return outcome(lambda: executor(**inputs))


def first_stops(rank: int) -> str:
    """Let the first rank stop, and with it the store that the ranks met in."""
    return stops(rank, stopped=0)


def port_is_taken(rank: int) -> str:
    """Let the first rank meet the others where something else listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        os.environ.update(MASTER_PORT=str(taken.getsockname()[1]), TORCHELASTIC_USE_AGENT_STORE="False")
        return outcome(lambda: meet(timeout_seconds=2))
