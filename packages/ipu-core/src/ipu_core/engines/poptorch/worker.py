# SPDX-License-Identifier: Apache-2.0
"""The worker: runs programs with PopTorch in a process of its own.

It is copied into the folder of a run and started there with PopTorch's interpreter, so it keeps to Python 3.8,
torch 2.0.1 and the standard library, and imports nothing of this package. Commands and replies are lines of JSON on two
pipes. Tensors are in mapped files, laid out as safetensors lays them out: the length of a header, the header in JSON,
bytes.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import math
import mmap
import os
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from typing import Any

import torch

PROTOCOL = 2  # changes whenever commands or replies do
PARENT_CHECK_SECONDS = 1.0
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH = struct.Struct("<Q")


def create_tensor_file(path: str, specs: dict[str, tuple[str, list[int]]]) -> None:
    """Make a file with room for tensors, name -> (a name of `DTYPES`, shape).

    Raises:
        OSError: there is no room for it, or it is there already.
    """
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(specs, key=lambda name: -_itemsize(specs[name][0])):  # so that each is aligned
        dtype, shape = specs[name]
        start, end = end, end + math.prod(shape) * _itemsize(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, _LENGTH.size + len(text) + max(end, 1))


def map_tensor_file(path: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file; what is written to one is in the file.

    Raises:
        ValueError: the header is none, or says something else than the file has.
    """
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    begin = _LENGTH.size + _LENGTH.unpack_from(memory)[0]
    if begin > len(memory):
        raise ValueError(f"{path} has a header of {begin} bytes, and is {len(memory)} bytes long")
    return {
        name: _mapped(memory, begin, name, entry) for name, entry in json.loads(memory[_LENGTH.size : begin]).items()
    }


def _mapped(memory: mmap.mmap, begin: int, name: str, entry: dict[str, Any]) -> torch.Tensor:
    dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    start, stop = entry["data_offsets"]
    count = math.prod(shape)
    if min([0, start, *shape]) < 0 or stop - start != count * _itemsize(entry["dtype"]) or begin + stop > len(memory):
        raise ValueError(f"the tensor {name} of {dtype} {shape} is said to be in bytes {start} to {stop}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=begin + start).view(shape)


def _itemsize(dtype: str) -> int:
    return torch.empty((), dtype=DTYPES[dtype]).element_size()


def options_of(poptorch: Any, popart: Any, calls: list[Any]) -> Any:
    """Return `poptorch.Options` after calls of its methods, ``[["deviceIterations", 2], ...]``.

    Args:
        poptorch: the module.
        popart: the module whose enumerations some options take as integers.
        calls: a path of attributes and its arguments each; what is no plain value is a dictionary of one key.
    """
    options = poptorch.Options()
    for path, *arguments in calls:
        method = functools.reduce(getattr, path.split("."), options)
        method(*[_argument(poptorch, popart, value) for value in arguments])
    return options


def _argument(poptorch: Any, popart: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "mapping":
        return content
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "locations":
        settings = poptorch.TensorLocationSettings()
        for name, setting in content:
            settings = getattr(settings, name)(setting)
        return settings
    if kind in ("PipelinedExecution", "ShardedExecution"):
        if isinstance(content, str):
            return getattr(poptorch, kind)(getattr(poptorch.AutoStage, content))
        return getattr(poptorch, kind)(*[poptorch.Stage(name).ipu(ipu) for name, ipu in content])
    if kind == "popart":
        return int(functools.reduce(getattr, content.split("."), popart))
    assert kind == "poptorch", kind
    return functools.reduce(getattr, content.split("."), poptorch)


def attention(query: Any, key: Any, value: Any, mask: Any, dropout: float, scale: float) -> Any:
    """Return scaled dot-product attention, of operators that PopTorch lowers; programs call it.

    As in torch, a row whose mask is all False is zero. Heads of keys and values may be fewer than those of queries.
    """
    aten = torch.ops.aten
    key, value = _repeated(key, query), _repeated(value, query)
    scores = aten.matmul.default(query, aten.transpose.int(key, -2, -1))
    scores = aten.mul.Tensor(scores, scale)
    is_boolean = mask is not None and mask.dtype == torch.bool
    if is_boolean:
        scores = aten.masked_fill.Scalar(scores, aten.logical_not.default(mask), torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = aten.add.Tensor(scores, mask)
    shares = aten.softmax.int(scores, -1)
    if is_boolean:
        shares = aten.mul.Tensor(shares, aten.to.dtype(mask, shares.dtype))
    if dropout:
        shares = aten.dropout.default(shares, dropout, True)
    return aten.matmul.default(shares, value)


def _repeated(tensor: Any, query: Any) -> Any:
    """Repeat the heads of a tensor, its dimension -3, so that there is one for each of the query's."""
    if tensor.dim() < 4 or tensor.shape[-3] == query.shape[-3]:
        return tensor
    *outer, heads, length, size = tensor.shape
    times = query.shape[-3] // heads
    wide = torch.ops.aten.expand.default(
        torch.ops.aten.unsqueeze.default(tensor, -3), [*outer, heads, times, length, size]
    )
    return torch.ops.aten.reshape.default(wide, [*outer, heads * times, length, size])


class Program:
    """A program in the worker, with its executor and the files it shares with the other side."""

    def __init__(self, poptorch: Any, popart: Any, folder: str, command: dict[str, Any]) -> None:
        path = os.path.join(folder, command["source"])
        with open(path, encoding="utf-8") as file:
            code = compile(file.read(), path, "exec")
        names: dict[str, Any] = {"attention": attention}
        exec(code, names)
        self._poptorch = poptorch
        self.inputs = map_tensor_file(os.path.join(folder, command["inputs"]))
        self.outputs = map_tensor_file(os.path.join(folder, command["outputs"]))
        weights = map_tensor_file(os.path.join(folder, command["weights"]))
        self.module = names["Program"](weights, frozenset(command["trained"]))
        options = options_of(poptorch, popart, command["options"])
        self.optimizer = None
        self.state: dict[str, torch.Tensor] = {}
        if command["optimizer"] is None:
            self.executor = poptorch.inferenceModel(self.module.eval(), options)
        else:
            self.optimizer = self._new_optimizer(command["optimizer"])
            self._prefixes = command["prefixes"]
            self.state = map_tensor_file(os.path.join(folder, command["state"]))
            if command["has_state"]:
                self.write_state()
            self.executor = poptorch.trainingModel(self.module.train(), options, self.optimizer)

    def _new_optimizer(self, described: dict[str, Any]) -> Any:
        parameters = dict(self.module.named_parameters())
        groups = [
            dict(_attributes(group), params=[parameters[name] for name in group["params"]])
            for group in described["groups"]
        ]
        kind = getattr(self._poptorch.optim, described["kind"])
        # What the constructor is given may change after compiling.
        return kind(groups, **_attributes(described["groups"][0]), **described["extras"])

    def set_optimizer(self, described: dict[str, Any]) -> None:
        """Step on with other rates and the like."""
        assert self.optimizer is not None
        for group, new in zip(self.optimizer.param_groups, described["groups"]):  # noqa: B905, not in Python 3.8
            group.update(_attributes(new))
        self.executor.setOptimizer(self.optimizer)

    def write_state(self) -> None:
        """Let the optimizer step on from the state in the file."""
        assert self.optimizer is not None
        whole = self.optimizer.state_dict()
        state = dict(whole["ipu_state"] or {})
        for name, tensor in self.state.items():
            prefixes, parameter = self._places(name)
            # Before PopTorch has a state of its own it does not say which prefix is its.
            there = [prefix + parameter for prefix in prefixes if prefix + parameter in state]
            for place in there or [prefix + parameter for prefix in prefixes]:
                state[place] = tensor.clone().reshape(state[place].shape if place in state else tensor.shape)
        whole.update(ipu_state=state, ipu_param=whole["ipu_param"] or {})
        self.optimizer.load_state_dict(whole)

    def read_state(self) -> None:
        """Write the state of the optimizer into the file."""
        assert self.optimizer is not None
        state = self.optimizer.state_dict()["ipu_state"]
        for name, tensor in self.state.items() if state is not None else ():
            prefixes, parameter = self._places(name)
            found = [state[prefix + parameter] for prefix in prefixes if prefix + parameter in state]
            if len(found) != 1:
                raise ValueError(f"the optimizer has {sorted(state)}, and {prefixes} of {parameter} is not one of it")
            tensor.copy_(found[0].reshape(tensor.shape))

    def _places(self, name: str) -> Any:
        """Return the prefixes under which PopTorch may have a tensor of the state, and its parameter."""
        parameter, _, key = name.rpartition(".")
        return self._prefixes[key], parameter

    @property
    def is_attached(self) -> bool:
        """Whether it holds IPUs."""
        return bool(self.executor.isCompiled() and self.executor.isAttachedToDevice())

    def push(self) -> None:
        """Give the weights in the file to the IPUs."""
        if self.is_attached:  # an executor that attaches, or compiles, takes them by itself
            self.executor.copyWeightsToDevice()

    def run(self, seed: Any, keeps_weights: bool) -> None:
        """Run the combined batch in the file; outputs, and what was learned, are in the files afterwards.

        Args:
            seed: of the random numbers of this call; None to go on with those of the last one.
            keeps_weights: whether what was learned stays on the IPUs.
        """
        given = [self.inputs[name] for name in self.module.inputs]
        if seed is not None:
            if not self.executor.isCompiled():
                self.executor.compile(*given)
            self.executor.rng_state = [seed]
        found = self.executor(*given)
        found = found if isinstance(found, (tuple, list)) else (found,)
        for i, name in enumerate(self.module.outputs):
            _write(name, self.outputs[name], found[i])
        if not keeps_weights:
            self.pull()

    def pull(self) -> None:
        """Write the weights that the IPUs have into the file."""
        if self.optimizer is not None and self.executor.isCompiled():
            self.executor.copyWeightsToHost()

    def detach(self) -> None:
        """Give the IPUs back."""
        if self.is_attached:
            self.executor.detachFromDevice()


def _attributes(group: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group; JSON has lists where PopTorch asks for tuples."""
    given = {name: value for name, value in group.items() if name != "params"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _write(name: str, target: torch.Tensor, found: torch.Tensor) -> None:
    """Write an output into its file; one that depends on no input comes once, for all micro-batches."""
    if found.shape != target.shape and found.numel() and target.numel() % found.numel() == 0:
        found = found.reshape(1, -1).expand(target.numel() // found.numel(), -1)
    if found.numel() != target.numel():
        raise ValueError(f"the output {name} is {list(found.shape)}, and {list(target.shape)} was planned")
    target.copy_(found.detach().reshape(target.shape))


class Worker:
    """Carries out commands, for programs by number."""

    def __init__(self, poptorch: Any, popart: Any, folder: str) -> None:
        self._poptorch, self._popart, self._folder = poptorch, popart, folder
        self._programs: dict[int, Program] = {}

    def carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; returns the reply."""
        number, what = command["program"], command["do"]
        if what == "build":
            self._programs[number] = Program(self._poptorch, self._popart, self._folder, command)
        elif what == "forget":
            program = self._programs.pop(number, None)
            if program is not None:
                program.executor.destroy()
        elif what == "detach":
            self._programs[number].detach()
        elif what == "push":
            self._programs[number].push()
        elif what == "optimizer":
            self._programs[number].set_optimizer(command["optimizer"])
        elif what == "pull":
            self._programs[number].pull()
        elif what == "write_state":
            self._programs[number].write_state()
        elif what == "read_state":
            self._programs[number].read_state()
        elif what == "run":
            self._run(number, command)
        else:
            raise ValueError(f"there is no command {what!r}")
        return {}

    def close(self) -> None:
        """Give all IPUs back."""
        for program in self._programs.values():
            program.executor.destroy()

    def _run(self, number: int, command: dict[str, Any]) -> None:
        for other, program in self._programs.items():
            if other != number:
                program.detach()  # there may be IPUs for one alone
        self._programs[number].run(command["seed"], command["keeps_weights"])


def serve(commands: Any, replies: Any, folder: str) -> None:
    """Carry out the commands of a pipe until it ends."""

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        poptorch, popart = importlib.import_module("poptorch"), importlib.import_module("popart")
        worker = Worker(poptorch, popart, folder)
        reply(
            {
                "protocol": PROTOCOL,
                "python": ".".join(map(str, sys.version_info[:3])),
                "torch": torch.__version__,
                "poptorch": getattr(poptorch, "__version__", ""),
            }
        )
    except Exception as error:
        reply({"protocol": PROTOCOL, "error": _described(error)})
        return
    for line in commands:
        try:
            reply(worker.carry_out(json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            reply({"error": _described(error)})
    worker.close()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def end_with_parent(folder: str) -> None:
    """End this process, and remove the files of the run, once the process that started it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)  # whatever its other thread waits for


def main(arguments: list[str]) -> None:
    """Run the worker: ``worker.py COMMANDS REPLIES FOLDER``, two file descriptors and a path."""
    commands, replies, folder = int(arguments[0]), int(arguments[1]), arguments[2]
    for descriptor in (commands, replies):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=end_with_parent, args=(folder,), daemon=True).start()
    with os.fdopen(commands, encoding="utf-8") as came, os.fdopen(replies, "w", encoding="utf-8") as went:
        serve(came, went, folder)
    shutil.rmtree(folder, ignore_errors=True)
    gc.freeze()  # at its end a process looks through all objects of torch, which takes a second or more


if __name__ == "__main__":
    main(sys.argv[1:])
