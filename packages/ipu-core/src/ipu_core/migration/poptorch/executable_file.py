# SPDX-License-Identifier: Apache-2.0
"""Files of executables: the shapes and dtypes one was made for, and its random state; tensors alone, and no code."""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .arguments import Arguments
from .errors import logger
from .structures import tensors_of

VERSION = 1
NAME = "model.poptorch"


@dataclass(frozen=True, kw_only=True)
class Executable:
    """What a file holds."""

    arguments: Arguments
    seed: int
    rng: torch.Tensor | None


def write(filename: str, arguments: Arguments, *, seed: int, rng: torch.Tensor | None, export_model: bool) -> None:
    """Write what an executable was made for.

    Args:
        filename: the file, or a directory to write `model.poptorch` in.
        arguments: those of the first call.
        seed: of the random numbers.
        rng: their state.
        export_model: asks for the module's code too, which no file here holds.
    """
    path = Path(filename)
    if path.is_dir():
        path /= NAME
        warnings.warn(f"{filename} is a directory: the executable is written to {path}", stacklevel=3)
    if export_model:
        logger.warning("%s holds no code: make the model again and call loadExecutable", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: _described(value) for name, value in arguments.values.items()}
    held = {"version": torch.tensor(VERSION), "seed": torch.tensor(seed), "arguments": json.dumps(plain)}
    torch.save({**held, **({} if rng is None else {"rng": rng})}, path)


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"members": {key: _described(member) for key, member in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(member) for member in value]}
    assert not tensors_of(value), f"a {type(value).__name__} cannot be written: pass its tensors"
    return {"value": value}


def _made(described: dict[str, Any]) -> Any:
    if "shape" in described:
        return torch.zeros(described["shape"], dtype=getattr(torch, described["dtype"]))
    if "members" in described:
        return {key: _made(member) for key, member in described["members"].items()}
    for kind in (list, tuple):
        if kind.__name__ in described:
            return kind(_made(member) for member in described[kind.__name__])
    return described["value"]


def read(filename: str, signature: inspect.Signature) -> Executable:
    """Read what an executable was made for.

    Raises:
        AssertionError: it is no such file, or of another version.
    """
    held = _held(filename)
    values = {name: _made(value) for name, value in json.loads(held["arguments"]).items()}
    return Executable(arguments=Arguments(signature, values), seed=int(held["seed"]), rng=held.get("rng"))


def _held(filename: str) -> dict[str, Any]:
    try:
        held = torch.load(filename, weights_only=True)
        version = int(held["version"])
    except FileNotFoundError:
        raise
    except Exception as error:
        raise AssertionError(f"Invalid file {filename}: it holds no executable ({type(error).__name__})") from None
    assert version == VERSION, f"PopTorch version mismatch: {filename} is of version {version}, this is {VERSION}"
    return held


def load(filename: str, edit_opts_fn: Any = None) -> Any:
    """Raise: a file holds no code to make a model of.

    Raises:
        AssertionError: always.
    """
    _held(filename)
    raise AssertionError(
        f"{filename} was created with 'export_model=False' which means you need to re-create the PopTorch model and "
        "call executor.loadExecutable(filename) on it: no code is read from a file here"
    )
