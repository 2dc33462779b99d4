# SPDX-License-Identifier: Apache-2.0
"""Search for hyper-parameters with Optuna: each trial is a fresh pipelined model, trained as its parameters say."""

import pytest
from ipu_core import PipelineMixin
from regression import line, trainer

optuna = pytest.importorskip("optuna", reason="optuna is not installed")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def searched(path, space, trials, **options):
    made = trainer(path, model_init=lambda: line(), num_train_epochs=1, eval_strategy="epoch", **options)
    seen = []
    training_step = made.training_step

    def training_step_seen(model, inputs, num_items=None):
        seen.append(
            (made.ipu_config.gradient_accumulation_steps, len(inputs["labels"]), isinstance(model, PipelineMixin))
        )
        return training_step(model, inputs, num_items)

    made.training_step = training_step_seen
    sampler = optuna.samplers.GridSampler(trials, seed=0)
    best = made.hyperparameter_search(
        hp_space=space, n_trials=2, direction="minimize", backend="optuna", sampler=sampler
    )
    return best, seen


def test_the_best_trial_is_found(tmp_path):
    def space(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0)}

    best, seen = searched(tmp_path, space, {"learning_rate": [1e-4, 0.5]})
    assert best.hyperparameters == {"learning_rate": 0.5}
    assert all(is_pipelined for _, _, is_pipelined in seen)


def test_the_sizes_of_batches_are_searched(tmp_path):
    def space(trial):
        return {
            "gradient_accumulation_steps": trial.suggest_categorical("gradient_accumulation_steps", [2, 4]),
            "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4]),
        }

    grid = {"gradient_accumulation_steps": [2, 4], "per_device_train_batch_size": [4]}
    _, seen = searched(tmp_path, space, grid)
    assert {step[:2] for step in seen} == {(2, 8), (4, 16)}
    assert len(seen) == 64 // 8 + 64 // 16


def test_a_search_needs_a_model_init(tmp_path):
    with pytest.raises(RuntimeError, match="model_init"):
        trainer(tmp_path).hyperparameter_search(backend="optuna")


def test_a_backend_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sigopt"):
        trainer(tmp_path, model_init=lambda: line()).hyperparameter_search(backend="sigopt")
