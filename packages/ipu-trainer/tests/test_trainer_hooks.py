# SPDX-License-Identifier: Apache-2.0
"""What is private of `transformers.Trainer` exists, and is called as `_transformers.py` expects."""

import inspect

import pytest
from ipu_trainer import IPUTrainer, _transformers
from ipu_trainer._transformers import TrainerHooks
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

OVERRIDDEN = [n for n, v in vars(TrainerHooks).items() if inspect.isfunction(v) and n.startswith("_")]
PUBLIC = [n for n, v in vars(TrainerHooks).items() if inspect.isfunction(v) and not n.startswith("_")]
CALLED = {
    "_prepare_inputs": ({},),
    "_clip_grad_norm": (None,),
    "_get_learning_rate": (),
    "_get_num_items_in_batch": ([], None),
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_is_one_that_upstream_has_and_calls(name):
    ours, theirs = (list(inspect.signature(getattr(cls, name)).parameters.values()) for cls in (TrainerHooks, Trainer))
    named = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in theirs][: len(named)] == named
    assert len(theirs) == len(ours) or any(p.kind is p.VAR_POSITIONAL for p in ours)
    assert f"self.{name}(" in inspect.getsource(inspect.getmodule(Trainer))


@pytest.mark.parametrize("name", CALLED)
def test_a_called_method_takes_what_it_is_called_with(name):
    inspect.signature(getattr(Trainer, name)).bind(None, *CALLED[name])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_none_of_upstream(name):
    assert not hasattr(Seq2SeqTrainer, name)


def test_an_override_under_the_private_name_reaches_the_public_one():
    class Ours(IPUTrainer):
        def _get_output_dir(self, trial):
            return super()._get_output_dir(trial) + "/ours"

    trainer = object.__new__(Ours)
    trainer.args = TrainingArguments("out")
    trainer.hp_search_backend = None
    assert trainer._get_output_dir(None) == "out/ours"


def test_the_batch_size_of_a_run_is_an_attribute_of_upstream():
    assert "self._train_batch_size = " in inspect.getsource(Trainer)


def test_one_device_is_used_of_several():
    arguments = TrainingArguments("out", use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4
    _transformers.use_one_device(arguments)
    assert arguments.n_gpu == 1


def test_upstream_asks_a_model_for_its_name_and_modules():
    made = type("Made", (_transformers.CalledAsModel,), {"model_name": "Bert"})()
    assert made._get_name() == "Bert" and list(made._modules) == []
    assert hasattr(Trainer, _transformers.CONTEXT_PARALLEL_INPUTS)
