# SPDX-License-Identifier: Apache-2.0
"""`PopTorchProgram`: a lowered model that a worker runs, updates of its weights among them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...batch import input_leaves
from ...compile.disk_cache import ExecutableCache
from ...config.execution_config import ExecutionConfig
from ...errors import BatchError, IncompatibleIPUConfigError, ModelChangedError, WorkerError
from ...partition.lowered import Lowered
from ...partition.parameters import trainable_values
from ...runtime.interpreter import Interpreter
from ...runtime.program import ActionHook, Returned, Trained, no_hook
from ...runtime.weights import Weights
from ...schedule import Action
from .interpreter import interpreter
from .leaves import Leaves
from .optimizer_state import OptimizerState, watch
from .optimizers import Steps, described
from .options import block_name, option_calls
from .process import WorkerProcess, worker_of
from .requirements import refuse_changes, refuse_too_few_micro_batches
from .source import LOSS, LOSS_WEIGHTS, Source, source_of
from .worker import DTYPES, create_tensor_file, map_tensor_file

if TYPE_CHECKING:
    from ...model.mixin import PipelineMixin

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FILES = ("inputs", "outputs", "weights", "state")
_LARGEST_SEED = 2**31 - 1


class PopTorchProgram:
    """A lowered model in a worker with PopTorch: a call of it is one call of a PopTorch executor.

    The worker, which programs of this process share, is there when the program is made; the program is handed over at
    the first call, when the optimizer is known. After each call of training the model has the weights of the IPUs,
    unless `steps` keeps them there. The optimizer has its state when it is asked for it, `optimizer.state_dict()`.

    Args:
        model: made by `to_pipelined`.
        lowered: what was made of it.
        config: the kind of run.
        cache: where executables are kept, which here is PopTorch's affair.
        loss: the value a backward pass starts from; None in inference.
        returned: what the caller reads.
        steps: what is around the steps of the optimizer.

    Raises:
        CompileError: operators that PopTorch does not have.
        IncompatibleIPUConfigError: too few micro-batches for the stages, or buffers that the forward changes.
        WorkerError: there is no worker, as it does not start, or has no PopTorch.
    """

    def __init__(
        self,
        model: PipelineMixin,
        lowered: Lowered,
        config: ExecutionConfig,
        cache: ExecutableCache,
        loss: str | None,
        returned: Returned,
        steps: Steps,
    ) -> None:
        refuse_changes(lowered)
        refuse_too_few_micro_batches(lowered, config)
        self._model, self._config, self._loss = model, config, loss
        self._captured = lowered.captured
        self._stages = [[block_name(stage.stage), stage.ipu] for stage in lowered.stages]
        self._weights = Weights(lowered.captured, model)
        self._whole = Interpreter(lowered.captured, lowered.stage_graphs, self._weights)
        self._read = [name for name, s in lowered.captured.sources.items() if s.kind in ("parameter", "buffer")]
        self._leaves = Leaves(lowered.captured, returned)
        self.source: Source = source_of(
            lowered,
            loss=loss,
            outputs=self._leaves.computed,
            same=self._same(),
            checkpoints=config.recompute_checkpoint_every_layer and not config.inference,
        )
        self._worker = worker_of(interpreter())
        self._number = 0
        self._files: dict[str, dict[str, torch.Tensor]] = {}
        self._described: dict[str, Any] | None = None
        self._steps = steps
        self._state: OptimizerState | None = None
        # What the worker has newer than this process, and the state that it has older.
        self._has_newer_weights = self._has_newer_state = self._has_older_state = False
        self._trained = frozenset() if loss is None else self._trained_now()

    @property
    def worker(self) -> WorkerProcess:
        """The process that runs the program."""
        return self._worker

    def move_to_stages(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Hand the program over, at the first call; give the worker what changed of weights and optimizer since."""
        self._worker.check_alive()
        if not self._files:
            self._hand_over(optimizer)
            return
        if self._loss is not None and self._trained != self._trained_now():
            raise ModelChangedError(
                "other parameters require gradients than when the executor compiled, and PopTorch's executables have "
                "them fixed: make a new executor"
            )
        if edited := self._edited():
            self._fetch(but=edited)
            self._push(edited)
            self._worker.ask("push", self._number)
        if optimizer is not None:
            now = described(optimizer, self._parameter_names(), self._steps)
            if now != self._described:
                self._worker.ask("optimizer", self._number, optimizer=now)
                self._described = now
        if self._has_older_state and self._state is not None:
            self._state.push(self._files["state"])
            self._worker.ask("write_state", self._number)
            self._has_older_state = self._has_newer_state = False

    def release(self) -> None:
        """Give the model its weights, and the IPUs back; the next call takes some again."""
        self._fetch()
        if self._files and self._worker.is_alive:
            self._worker.ask("detach", self._number)

    def initial_values(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values a micro-batch starts with: parameters, buffers, constants and its own leaves."""
        return self._whole.initial_values(batch)

    def infer_each(
        self, batches: Sequence[Mapping[str, Any]], *, on_action: ActionHook = no_hook
    ) -> Iterator[list[Any]]:
        """Run the micro-batches of a call without gradients; yield the leaves of the output of each one."""
        self._fill(batches)
        self._worker.ask("run", self._number, seed=None, keeps_weights=True)
        for number in range(self._num_returned):
            yield self._leaves.of_micro_batch(self._outputs, number)

    def train(
        self,
        batches: Sequence[Mapping[str, Any]],
        order: Iterable[Action],
        *,
        starts: Sequence[Mapping[str, float]],
        on_action: ActionHook = no_hook,
    ) -> Iterator[Trained]:
        """Run the micro-batches of a call, steps among them; yield those that the output mode returns."""
        self._fill(batches)
        self._files["inputs"][LOSS_WEIGHTS].copy_(self._loss_weights(starts))
        assert self._state is not None
        keeps = self._steps.keeps_weights
        self._worker.ask("run", self._number, seed=self._seed(), keeps_weights=keeps)
        self._has_newer_state = True
        self._state.num_steps += self._config.device_iterations
        if keeps:
            self._has_newer_weights = True
        else:
            self._pull()
        losses = self._files["outputs"][LOSS].reshape(-1) / self._config.micro_batches_per_update
        for number, loss in enumerate(losses):
            yield Trained(self._leaves.of_micro_batch(self._outputs, number), loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: the steps of a call were made where the gradients are."""

    def gradient_norm(self) -> torch.Tensor:
        """Raise: gradients are the worker's.

        Raises:
            IncompatibleIPUConfigError: always.
        """
        raise IncompatibleIPUConfigError(
            "the poptorch engine steps on the IPUs, and no gradient comes back to be clipped: leave "
            "`clip_gradients` out, or use another engine"
        )

    def owners(self) -> dict[int, frozenset[int]]:
        """Return nothing: the model of this process has all weights after every call."""
        return {}

    def save(self, folder: Path, *, max_shard_size: int | str) -> None:
        """Write the model as a checkpoint of transformers: it has all weights after every call."""
        self._model.save_pretrained(folder, max_shard_size=max_shard_size)

    def all_spans(self, spans: list[tuple[Action, float, float]]) -> list[tuple[Action, float, float]]:
        """Return what was measured, which is nothing: times of stages are PopTorch's own."""
        return spans

    @functools.cached_property
    def _num_returned(self) -> int:
        """How many micro-batches of a call are returned: with "sum", as many sums."""
        config = self._config
        if config.inference or config.output_mode == "all":
            return config.batch_size_factor
        if config.output_mode == "every_n":
            return config.batch_size_factor // (config.output_return_period or 1)
        return config.replication_factor

    @property
    def _outputs(self) -> Mapping[str, torch.Tensor]:
        """Each output of the last call, a row of the first dimension for each micro-batch that is returned."""
        return {
            name: tensor.reshape(self._num_returned, *self._leaves.shapes[name])
            for name, tensor in self._files["outputs"].items()
            if name != LOSS
        }

    def _seed(self) -> int | None:
        """Draw the seed of a call from torch's generator; None where the configuration has one, or nothing is drawn."""
        if not self.source.draws or self._config.seed is not None:
            return None
        return int(torch.randint(1, _LARGEST_SEED, ()))

    def _hand_over(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self._loss is not None:
            assert optimizer is not None, "executors of engines that step by themselves have one"
            parameters = self._parameter_names()
            self._described = described(optimizer, parameters, self._steps)
            self._state = OptimizerState(optimizer, self._described["kind"], parameters)
            watch(optimizer, self)
        folder, self._number = self._worker.folder, self._worker.new_number()
        weakref.finalize(self, self._worker.drop, self._number)
        names = {name: f"{name}{self._number}.tensors" for name in _FILES}
        state_specs = self._state.specs() if self._state is not None else {}
        specs = self._input_specs(), self._output_specs(), self._weight_specs(), state_specs
        for name, tensors in zip(_FILES, specs, strict=True):
            create_tensor_file(str(folder / names[name]), tensors)
        self._files = {name: map_tensor_file(str(folder / file)) for name, file in names.items()}
        self._push(self._tensors())
        program = folder / f"program{self._number}.py"
        program.write_text(self.source.text, encoding="utf-8")
        try:
            self._worker.ask(
                "build",
                self._number,
                source=program.name,
                **names,
                trained=sorted(self._trained),
                options=option_calls(self._model.ipu_config, self._config, self._stages),
                optimizer=self._described,
                prefixes=None if self._state is None else self._state.prefixes(),
                has_state=self._state is not None and self._state.push(self._files["state"]),
            )
        except WorkerError:
            self._files = {}
            raise

    def _input_specs(self) -> dict[str, tuple[str, list[int]]]:
        values, factor = self._values, self._config.batch_size_factor
        specs = {}
        for name in self.source.inputs:
            if name == LOSS_WEIGHTS:
                assert self._loss is not None
                specs[name] = _NAMES[values[self._loss].dtype], [factor]
            else:
                specs[name] = _combined(values[name], factor)
        return specs

    def _output_specs(self) -> dict[str, tuple[str, list[int]]]:
        specs = {name: _combined(self._values[name], self._num_returned) for name in self._leaves.computed}
        if self._loss is not None:
            specs[LOSS] = _combined(self._values[self._loss], self._num_returned)
        return specs

    def _weight_specs(self) -> dict[str, tuple[str, list[int]]]:
        return {name: _combined(tensor, 1) for name, tensor in self._tensors().items()}

    @functools.cached_property
    def _values(self) -> dict[str, torch.Tensor]:
        """What each value of the graph looks like, for one micro-batch."""
        return {node.name: node.meta["val"] for node in self._captured.graph.nodes if "val" in node.meta}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return what the program reads beside its inputs, by its own names, as it is now."""
        own = self._weights.read(list(self.source.tensors))
        constants = {
            value: self._captured.constants[self._captured.sources[value].name]
            for value in self.source.tensors
            if value not in own
        }
        found = {self.source.tensors[value]: tensor.detach() for value, tensor in {**own, **constants}.items()}
        return {**found, **self.source.constants}

    def _same(self) -> dict[str, str]:
        """Map each value that is the tensor of an earlier one to that."""
        first: dict[int, str] = {}
        return {value: first.setdefault(id(t), value) for value, t in self._weights.read(self._read).items()}

    def _parameter_names(self) -> dict[int, str]:
        """Map the identity of each parameter that the program trains to its name there."""
        tensors = self._weights.read(list(self.source.tensors))
        return {id(t): self.source.tensors[value] for value, t in tensors.items() if t.requires_grad}

    def _trained_now(self) -> frozenset[str]:
        trained = trainable_values(self._captured, self._model)
        return frozenset(name for value, name in self.source.tensors.items() if value in trained)

    def _edited(self) -> set[str]:
        """Return what is not as it is in the file of weights: what somebody changed on the host."""
        file = self._files["weights"]
        return {name for name, tensor in self._tensors().items() if not torch.equal(file[name], tensor.to("cpu"))}

    def _push(self, names: Collection[str]) -> None:
        """Write tensors into the file of weights."""
        file = self._files["weights"]
        for name, tensor in self._tensors().items():
            if name in names:
                file[name].copy_(tensor)

    def _fetch(self, but: Collection[str] = ()) -> None:
        """Give the model the weights that the worker has newer ones of, but some.

        Raises:
            WorkerError: it ended with them.
        """
        if self._has_newer_weights:
            self._worker.ask("pull", self._number)
            self._pull(but)

    def _pull(self, but: Collection[str] = ()) -> None:
        """Give the model what was learned, as the file has it."""
        file = self._files["weights"]
        self._has_newer_weights = False
        with torch.no_grad():
            for value, tensor in self._weights.read(list(self.source.tensors)).items():
                name = self.source.tensors[value]
                if name in self._trained and name not in but:
                    tensor.copy_(file[name])

    def fetch_state(self) -> None:
        """Give the optimizer the state that the worker has of it.

        Raises:
            WorkerError: it ended with that.
        """
        if self._has_newer_state and self._state is not None:
            self._state.refuse_centered()
            self._worker.ask("read_state", self._number)
            self._state.pull(self._files["state"])
            self._has_newer_state = False

    def renew_state(self) -> None:
        """Have the worker step from the state that the optimizer has, from the next call on."""
        self._has_older_state, self._has_newer_state = True, False

    def _fill(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Write a combined batch into the file of inputs, one micro-batch after the other."""
        assert len(batches) == self._config.batch_size_factor
        for number, batch in enumerate(batches):
            leaves = input_leaves(batch)
            for name in self.source.inputs:
                if name != LOSS_WEIGHTS:
                    target = self._files["inputs"][name]
                    value = leaves[self._captured.sources[name].name]
                    rows = target.reshape(len(batches), *value.shape) if value.ndim else target.reshape(1)
                    rows[number].copy_(value)

    def _loss_weights(self, starts: Sequence[Mapping[str, float]]) -> torch.Tensor:
        """Return by what the loss of each micro-batch is multiplied before PopTorch averages those of an update."""
        if any(self._loss not in start or len(start) != 1 for start in starts):
            raise BatchError(
                "`loss_weights` has a number for each of several terms of the loss, and a PopTorch program has one for "
                "the loss: give one number each, or use another engine"
            )
        weights = [start[self._loss] for start in starts]  # type: ignore[index]
        if not all(weights):
            raise BatchError(
                f"`loss_weights` is 0 for micro-batch {weights.index(0)}, and a PopTorch program leaves none out, so "
                "that a loss over nothing would be NaN for all: give it some items, or use another engine"
            )
        return torch.tensor(weights) * self._config.micro_batches_per_update


def _combined(tensor: torch.Tensor, count: int) -> tuple[str, list[int]]:
    """Return dtype and shape of so many of a tensor, joined along the first dimension."""
    if tensor.dtype not in _NAMES:
        raise IncompatibleIPUConfigError(
            f"a {tensor.dtype} has no place in a PopTorch program: use one of {', '.join(map(str, _NAMES))}"
        )
    if not tensor.ndim:
        return _NAMES[tensor.dtype], [count] if count > 1 else []
    return _NAMES[tensor.dtype], [tensor.shape[0] * count, *tensor.shape[1:]]
