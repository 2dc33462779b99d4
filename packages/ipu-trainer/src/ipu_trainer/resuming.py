# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints training can go on from: complete ones, of the same model and optimizer; others are refused."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ipu_core import PipelineMixin
from ipu_core._transformers import names_not_saved
from ipu_core.peft import adapted, has_adapters
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel, TrainerState
from transformers.core_model_loading import revert_weight_conversion
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ._transformers import TrainerHooks
from .checkpoints import CHECKSUMS, digest_of
from .errors import CheckpointError
from .optimizer_state import PARTS, SavedOptimizer, loaded, numbered, saved_optimizer

logger = logging.getLogger(__name__)

RNG_NAME = "rng_state.pth"
_START_ANEW = "start anew, without `resume_from_checkpoint`"
_ANOTHER = f"resume from another checkpoint, or {_START_ANEW}"
_NUM_SHOWN = 3
# What is set by schedulers, by the version of torch and, as a count of steps, by stepping; not by the class.
_OF_EVERY_GROUP = {"params", "param_names", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
_OF_EVERY_GROUP |= {"step"}
_OF_EVERY_GROUP |= {"maximize", "decoupled_weight_decay"}


class CheckedResume(TrainerHooks):
    """A `transformers.Trainer` that looks at a checkpoint before it loads anything of it.

    Nothing that is loaded can run code: weights are safetensors, states are loaded with `weights_only=True`.
    """

    # What upstream, which is checked as untyped, sets.
    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def load_checkpoint(self, folder: str, model: Any = None) -> None:
        """Check a checkpoint against this run, then load its weights."""
        directory = Path(folder)
        require_complete(directory)
        refuse_another_model(directory, self.model)
        self.create_optimizer()  # the one that is there, or the one the loop would make
        saved = saved_optimizer(directory)
        if saved is not None:
            refuse_another_optimizer(saved, self.optimizer)
            loaded(directory / SCHEDULER_NAME)
        if (directory / RNG_NAME).is_file():
            loaded(directory / RNG_NAME)
        else:
            logger.warning(
                "`%s` has no `%s`: dropout draws other numbers than in an uninterrupted run", directory, RNG_NAME
            )
        if (directory / SCALER_NAME).is_file() and getattr(self.accelerator, "scaler", None) is None:
            raise CheckpointError(
                f"`{directory}` has `{SCALER_NAME}`, which a run with autocasting wrote, and pipelined models do not "
                f"autocast: remove the file to go on without it; {_ANOTHER}"
            )
        state = _state_of(directory / TRAINER_STATE_NAME)
        refuse_changed_files(directory)
        if not self.args.ignore_data_skip:
            tell_of_other_rows(directory, state, self.batch_size_in_use())
        self.load_weights(directory, model)

    def load_best_checkpoint(self) -> None:
        """Load the weights of the best checkpoint, whatever names they have in it."""
        if saves_under_own_names(self.model):
            super().load_best_checkpoint()
        else:
            load_renamed(Path(self.state.best_model_checkpoint), self.model)

    def load_weights(self, directory: Path, model: Any) -> None:
        """Load the weights of a checkpoint, whatever names they have in it."""
        if saves_under_own_names(self.model):
            super().load_checkpoint(str(directory), model)
        else:
            load_renamed(directory, self.model)

    def load_optimizer_and_scheduler(self, folder: str | None) -> None:
        """Load the states of the optimizer and the scheduler, if they are of the same kinds."""
        if folder is not None and (path := Path(folder) / SCHEDULER_NAME).is_file():
            refuse_another_scheduler(path, self.lr_scheduler)
        saved = None if folder is None else saved_optimizer(Path(folder))
        if saved is None:
            super().load_optimizer_and_scheduler(folder)
            return
        self.load_optimizer(saved)
        self.lr_scheduler.load_state_dict(loaded(Path(str(folder)) / SCHEDULER_NAME))

    def load_optimizer(self, saved: SavedOptimizer) -> None:
        """Load the state of the optimizer."""
        state = saved.read(range(len(numbered(self.optimizer))))
        self.optimizer.load_state_dict({"state": state, "param_groups": saved.groups})


def _state_of(path: Path) -> TrainerState:
    _json_of(path)
    try:
        return TrainerState.load_from_json(str(path))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"`{path}` is no state of a trainer: {error}; {_ANOTHER}") from error


def refuse_changed_files(directory: Path) -> None:
    """Refuse a checkpoint with a file that is not what was written; one without checksums is of another program.

    Raises:
        CheckpointError: naming the files.
    """
    if not (directory / CHECKSUMS).is_file():
        return
    written = _json_of(directory / CHECKSUMS)
    changed = [name for name, digest in written.items() if (directory / name).is_file()]
    changed = [name for name in changed if digest_of(directory / name) != written[name]]
    if changed:
        raise CheckpointError(
            f"`{directory}` is not as it was written: {_some([f'`{name}`' for name in changed])} changed since; "
            f"{_ANOTHER}, or remove `{CHECKSUMS}` to take it as it is"
        )


def require_complete(directory: Path) -> None:
    """Refuse a directory that is no checkpoint, or half of one.

    Raises:
        CheckpointError: what is there, and what is not.
    """
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    weights = {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_SAFE_WEIGHTS_NAME}
    has_weights = weights & set(names) or any(
        (directory / name / ADAPTER_SAFE_WEIGHTS_NAME).is_file() for name in names
    )
    found = f"it holds {', '.join(names[:8]) or 'nothing'}" if directory.is_dir() else "there is no such directory"
    if not has_weights:
        raise CheckpointError(f"Can't find a valid checkpoint at `{directory}`: {found}; {_advice(directory)}")
    wanted = [TRAINER_STATE_NAME]
    if {OPTIMIZER_NAME, PARTS, SCHEDULER_NAME} & {*names}:
        wanted += [PARTS if PARTS in names else OPTIMIZER_NAME, SCHEDULER_NAME]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise CheckpointError(
            f"`{directory}` holds weights and no {' and no '.join(missing)}: it is a saved model, or half a "
            f"checkpoint; {_advice(directory.parent, other_than=directory)}"
        )
    if not {OPTIMIZER_NAME, PARTS} & {*names}:
        logger.warning(
            "`%s` was saved with `save_only_model`: the optimizer and its schedule begin anew, which is not what an "
            "uninterrupted run does",
            directory,
        )


def _advice(directory: Path, other_than: Path | None = None) -> str:
    found = map(Path, sort_checkpoints(str(directory))) if directory.is_dir() else ()
    last = next(reversed([path for path in found if other_than is None or path.name != other_than.name]), None)
    return f"resume from `{last}`" if last else "give a directory `checkpoint-<step>` that a trainer wrote"


def refuse_another_model(directory: Path, model: Any) -> None:
    """Refuse a checkpoint whose weights are not those of `model`, before any is loaded.

    Raises:
        CheckpointError: naming every kind of difference.
    """
    of_adapters = has_adapters(model)
    folder = _adapter_folder(directory, model) if of_adapters else directory
    there = _saved_shapes(folder, ADAPTER_SAFE_WEIGHTS_NAME if of_adapters else SAFE_WEIGHTS_NAME)
    if there is None:
        kind, other = ("adapters", "a whole model") if of_adapters else ("a whole model", "adapters")
        raise CheckpointError(
            f"`{directory}` holds {other}, and `{_plain_name(model)}` trains {kind}: resume with the model that was "
            f"trained there, or {_START_ANEW}"
        )
    settings = _adapter_differences(folder, model) if of_adapters else _config_differences(folder, model)
    differences = [*settings, *_shape_differences(there, model)]
    if differences:
        raise CheckpointError(
            f"`{directory}` is of another model than this `{_plain_name(model)}`: {'; '.join(differences)}: resume "
            f"with the model that was trained there, or {_START_ANEW}"
        )


def _adapter_folder(directory: Path, model: Any) -> Path:
    """Return the folder of the active adapter: PEFT writes the one called `default` beside the others' folders."""
    name = model.active_adapters[0]
    return directory / name if (directory / name).is_dir() else directory


def _saved_shapes(folder: Path, name: str) -> dict[str, list[int]] | None:
    """Read the shapes of saved tensors off the heads of their files; None where there is no such file."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = {name}
    if not (folder / name).is_file():
        if name != SAFE_WEIGHTS_NAME or not index.is_file():
            return None
        files = set(_json_of(index, "weight_map")["weight_map"].values())
    shapes: dict[str, list[int]] = {}
    for file in sorted(files):
        try:
            with safe_open(folder / file, framework="pt") as opened:
                shapes |= {key: list(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"`{folder / file}` is missing, or was cut short: {error}; resume from another checkpoint"
            ) from error
    return shapes


def _json_of(path: Path, *wanted: str) -> dict[str, Any]:
    """Read a file of JSON.

    Raises:
        CheckpointError: it is none, or lacks one of the keys `wanted`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is no JSON, or was cut short: {error}; {_ANOTHER}") from error
    if not isinstance(found, dict) or any(name not in found for name in wanted):
        raise CheckpointError(f"`{path}` has no {' and no '.join(wanted) or 'keys and values'} in it; {_ANOTHER}")
    return found


def _config_differences(folder: Path, model: Any) -> Iterator[str]:
    config = getattr(model, "config", None)
    if config is None or not (folder / CONFIG_NAME).is_file():
        return
    saved = _json_of(folder / CONFIG_NAME)
    here = {"model_type": config.model_type, "architectures": [_plain_name(model)]}
    for name, value in here.items():
        if saved.get(name, value) != value:
            yield f"`{name}` is {saved[name]!r} there and {value!r} here"
    # The names of labels are left out where there are as many as by default.
    num_labels = len(saved["id2label"]) if "id2label" in saved else PreTrainedConfig().num_labels
    if num_labels != config.num_labels:
        yield f"`num_labels` is {num_labels} there and {config.num_labels} here"


def _adapter_differences(folder: Path, model: Any) -> Iterator[str]:
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return
    saved = _json_of(folder / ADAPTER_CONFIG_NAME)
    config = model.peft_config[model.active_adapters[0]].to_dict()
    for name in ("peft_type", "task_type", "r", "target_modules", "modules_to_save"):
        there, here = _plain(saved.get(name)), _plain(config.get(name))
        if there != here:
            yield f"`{name}` is {there!r} there and {here!r} here"


def _plain(value: Any) -> Any:
    """Return a setting as it reads: sets in order, each name once."""
    return sorted(set(value)) if isinstance(value, (list, set, tuple)) else getattr(value, "value", value)


def _shape_differences(there: Mapping[str, list[int]], model: Any) -> Iterator[str]:
    here, aliases = _shapes(model)
    other = [
        f"`{name}` is {there[name]} there and {shape} here"
        for name, shape in here.items()
        if there.get(name, shape) != shape
    ]
    if other:
        yield f"{len(other)} tensors have another shape, {_some(other)}"
    missing = [f"`{name}`" for name in here if name not in there and not aliases.get(name, set()) & set(there)]
    if missing:
        yield f"{len(missing)} of the {len(here)} tensors here are not there, {_some(missing)}"
    unknown = [f"`{name}`" for name in there if name not in here]
    if unknown:
        yield f"{len(unknown)} of the {len(there)} tensors there are not here, {_some(unknown)}"


def _shapes(model: Any) -> tuple[dict[str, list[int]], dict[str, set[str]]]:
    """Return the shapes of what a checkpoint of `model` holds, and for each name the others of the same tensor."""
    if has_adapters(model):
        state = importlib.import_module("peft").get_peft_model_state_dict(model, adapter_name=model.active_adapters[0])
    else:
        state = _saved_state(model)
    names: dict[int, set[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), set()).add(name)
    return {name: list(t.shape) for name, t in state.items()}, {name: names[id(t)] for name, t in state.items()}


def _saved_state(model: Any) -> dict[str, torch.Tensor]:
    """Return tensors without data, one for each of the model's, under the names that `save_pretrained` writes."""
    left_out = names_not_saved(model)
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in left_out}
    without_data = {id(tensor): tensor.detach().to("meta") for tensor in state.values()}
    stand_ins = {name: without_data[id(tensor)] for name, tensor in state.items()}
    plain = _plain_model(model)
    # The names of some architectures are older than their modules.
    return revert_weight_conversion(plain, stand_ins) if isinstance(plain, PreTrainedModel) else stand_ins


def saves_under_own_names(model: Any) -> bool:
    """Return whether a model's checkpoints have the names of its tensors; upstream's trainer loads no others."""
    return has_adapters(model) or _saved_state(model).keys() <= model.state_dict().keys()


def load_renamed(directory: Path, model: Any) -> None:
    """Load a checkpoint whose tensors have other names than the model's, as `from_pretrained` does."""
    with torch.random.fork_rng(devices=[]):
        there = type(_plain_model(model)).from_pretrained(directory, dtype="auto")
    model.load_state_dict(there.state_dict())


def _plain_model(model: Any) -> Any:
    return model.to_transformers() if isinstance(model, PipelineMixin) else model


def _some(items: list[str]) -> str:
    return ", ".join(items[:_NUM_SHOWN]) + (" ..." if len(items) > _NUM_SHOWN else "")


def _plain_name(model: Any) -> str:
    inner = adapted(model)
    return (type(inner).plain_class() if isinstance(inner, PipelineMixin) else type(inner)).__name__


def refuse_another_optimizer(saved: SavedOptimizer, optimizer: torch.optim.Optimizer) -> None:
    """Refuse the state of another class of optimizer, or of other parameters.

    Raises:
        CheckpointError: naming what is there and what is here.
    """
    path, there, here = saved.path, saved.groups, optimizer.state_dict()["param_groups"]
    options = [{key for group in groups for key in group} - _OF_EVERY_GROUP for groups in (there, here)]
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__
    if options[0] != options[1]:
        raise CheckpointError(
            f"`{path}` is the state of another optimizer: it has {_listed(options[0] - options[1])}, and {name} has "
            f"{_listed(options[1] - options[0])}: train with the optimizer of there, or {_START_ANEW}"
        )
    counts = [[len(group["params"]) for group in groups] for groups in (there, here)]
    if counts[0] != counts[1]:
        raise CheckpointError(
            f"`{path}` is the state of {sum(counts[0])} parameters in groups of {counts[0]}, and {name} has "
            f"{sum(counts[1])} in groups of {counts[1]}: have the same parameters require gradients, in the same "
            f"groups, or {_START_ANEW}"
        )
    _refuse_other_shapes(saved, optimizer, name)


def _refuse_other_shapes(saved: SavedOptimizer, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Refuse states that are not of their parameters' shapes: a fused step would read and write beside them."""
    path, parameters = saved.path, numbered(optimizer)
    for key, values in saved.state.items():
        if key not in range(len(parameters)):
            raise CheckpointError(f"`{path}` has a state of parameter {key}, and {name} has {len(parameters)}")
        shape = list(parameters[key].shape)
        # Averages of rows and of columns, as of Adafactor, and numbers.
        fitting = (shape, shape[:-1], [*shape[:-2], *shape[-1:]], [*shape[:-1], 1], [*shape[:-2], 1, *shape[-1:]], [1])
        for what, tensor in values.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0 or list(tensor.shape) in fitting:
                continue
            if name in _OF_OTHER_SHAPES or not _is_of_torch(optimizer):
                continue
            raise CheckpointError(
                f"`{path}` has a `{what}` of shape {list(tensor.shape)} for parameter {key}, whose shape is {shape}: "
                f"it is of another model, or damaged; {_ANOTHER}"
            )


# Their state is one for all parameters together.
_OF_OTHER_SHAPES = frozenset(("LBFGS",))


def _is_of_torch(optimizer: Any) -> bool:
    return type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith(("torch.", "transformers."))


def refuse_another_scheduler(path: Path, scheduler: Any) -> None:
    """Refuse the state of another class of scheduler.

    Raises:
        CheckpointError: naming what is there and what is here.
    """
    there, here = (
        {name for name in state if not name.startswith("_")} for state in (loaded(path), scheduler.state_dict())
    )
    if there != here:
        name = type(getattr(scheduler, "scheduler", scheduler)).__name__
        raise CheckpointError(
            f"`{path}` is the state of another kind of scheduler: it has {_listed(there - here)}, and {name} has "
            f"{_listed(here - there)}: train with the scheduler (`lr_scheduler_type`) of there, or {_START_ANEW}"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none of its own"


def tell_of_other_rows(directory: Path, state: TrainerState, rows: int) -> None:
    """Log when a step takes another number of rows than it did, so that other rows count as seen."""
    before = state.train_batch_size
    if before is None or before == rows:
        return
    logger.warning(
        "`%s` was trained with %d rows a step, and a step takes %d here: its %d steps count as %d rows seen, and were "
        "%d, so that rows are passed over or come again: make the micro-batch size times the accumulation %d again, or "
        "set `ignore_data_skip=True`",
        directory,
        before,
        rows,
        state.global_step,
        state.global_step * rows,
        state.global_step * before,
        before,
    )
