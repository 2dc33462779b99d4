# SPDX-License-Identifier: Apache-2.0
"""Everything private of `transformers.Trainer` that this package calls or overrides, under public names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from transformers import Trainer

# A method of upstream that pipelined models have no use for.
CONTEXT_PARALLEL_INPUTS = "_prepare_context_parallel_inputs"


class TrainerHooks(Trainer):
    """A `transformers.Trainer` whose private methods can be called and overridden under public names.

    Upstream calls the private one, which calls the public one, which does what upstream does unless it is overridden.
    """

    # Upstream calls these.

    def _get_output_dir(self, trial: Any) -> str:
        return self.output_directory(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.write_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.write_model(output_dir, state_dict)

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        return self.finish_training(trial, *args)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader[Any]:
        return self.make_loader(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.load_best_checkpoint()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer_and_scheduler(checkpoint)

    def _hp_search_setup(self, trial: Any) -> None:
        self.set_up_trial(trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.write_optimizer_and_scheduler(output_dir)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        self.place_model(model, device)

    def _save_scaler(self, output_dir: str) -> None:
        self.write_scaler(output_dir)

    def _load_scaler(self, checkpoint: str | None) -> None:
        self.load_scaler(checkpoint)

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.clip_gradients(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)

    # Override these.

    def output_directory(self, trial: Any) -> str:
        """Return the directory of a run, or of a trial of a search, that checkpoints are written in."""
        return str(super()._get_output_dir(trial))

    def write_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint."""
        super()._save_checkpoint(model, trial)

    def push_checkpoint(self, folder: str) -> None:
        """Begin to upload a checkpoint."""
        super()._push_from_checkpoint(folder)

    def write_model(self, folder: str | None = None, state_dict: Any = None) -> None:
        """Write the model, its processor and the arguments."""
        super()._save(folder, state_dict)

    def finish_training(self, trial: Any, *args: Any) -> Any:
        """Finish a run: load the best checkpoint, remove others, and return what `train` returns."""
        return super()._finalize_training(trial, *args)

    def make_loader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader[Any]:
        """Make the loader of a data set."""
        return super()._get_dataloader(*args, **kwargs)

    def load_checkpoint(self, folder: str, model: Any = None) -> None:
        """Load the weights of a checkpoint to go on from."""
        super()._load_from_checkpoint(folder, model)

    def load_best_checkpoint(self) -> None:
        """Load the weights of the best checkpoint."""
        super()._load_best_model()

    def load_optimizer_and_scheduler(self, folder: str | None) -> None:
        """Load the states of the optimizer and the scheduler of a checkpoint."""
        super()._load_optimizer_and_scheduler(folder)

    def set_up_trial(self, trial: Any) -> None:
        """Take over the arguments of a trial of a search."""
        super()._hp_search_setup(trial)

    def write_optimizer_and_scheduler(self, folder: str) -> None:
        """Write the states of the optimizer and the scheduler beside a checkpoint."""
        super()._save_optimizer_and_scheduler(folder)

    def place_model(self, model: Any, device: torch.device) -> None:
        """Move the model to the device that the loop trains on."""
        super()._move_model_to_device(model, device)

    def write_scaler(self, folder: str) -> None:
        """Write what scales the loss beside a checkpoint."""
        super()._save_scaler(folder)

    def load_scaler(self, folder: str | None) -> None:
        """Load what scales the loss from a checkpoint."""
        super()._load_scaler(folder)

    def clip_gradients(self, model: Any) -> Any:
        """Scale the gradients down to `max_grad_norm`; returns the norm they had."""
        return super()._clip_grad_norm(model)

    def gradient_norm(self, model: Any, clipped: Any = None) -> Any:
        """Return the norm of the gradients, which clipping them may have given."""
        return super()._get_grad_norm(model, clipped)

    # Call these.

    def placed_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch on the device that the loop trains on."""
        placed: dict[str, Any] = self._prepare_inputs(inputs)
        return placed

    def learning_rate(self) -> float:
        """Return the learning rate of this step."""
        return float(self._get_learning_rate())

    def num_items(self, batches: list[dict[str, Any]]) -> Any:
        """Count the items that the loss of some batches is divided by; None where there are no labels."""
        return self._get_num_items_in_batch(batches, self.args.device)

    def use_batch_size(self, batch_size: int) -> None:
        """Train with batches of so many rows from now on."""
        self._train_batch_size = batch_size

    def batch_size_in_use(self) -> int:
        """Return the rows of a batch that this run trains with."""
        return int(self._train_batch_size)


class CalledAsModel:
    """What `transformers.Trainer` asks of whatever it calls as a model, besides calling it."""

    _modules: Mapping[str, Any] = MappingProxyType({})

    @property
    def model_name(self) -> str:
        """The name in messages."""
        raise NotImplementedError

    def _get_name(self) -> str:
        return self.model_name


def use_one_device(arguments: Any) -> None:
    """Let a trainer leave the model whole where it sees several devices; upstream replicates it."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
