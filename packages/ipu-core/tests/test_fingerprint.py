# SPDX-License-Identifier: Apache-2.0
"""Keys of models: equal where graphs are, in any process, and different where they may not be."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import transformers
from ipu_core.capture.fingerprint import NoFingerprint, fingerprint
from models import Chain, Tied, make

KEY = """
config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)
key = fingerprint(transformers.GPT2LMHeadModel(config), {"a": {"b", "c"}}, ignored={"generation_config"})
"""


@pytest.mark.turns(1)
def test_the_key_is_the_same_in_every_process():
    here = {"transformers": transformers, "fingerprint": fingerprint}
    exec(KEY, here)
    code = f"import transformers\nfrom ipu_core.capture.fingerprint import fingerprint\n{KEY}\nprint(key)"
    # Sets are ordered otherwise there.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here["key"]


def test_weights_do_not_count():
    torch.manual_seed(0)
    first = Chain()
    torch.manual_seed(1)
    assert fingerprint(first) == fingerprint(Chain())


def changed(change):
    model = make(Chain)
    change(model)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.layers[1].dropout, "p", 0.3),
        lambda m: setattr(m, "scale", 2.0),
        lambda m: m.head.weight.requires_grad_(False),
        lambda m: m.double(),
        lambda m: m.layers[1].eval(),
        lambda m: setattr(m, "head", torch.nn.Linear(4, 1, bias=False)),
        lambda m: setattr(m.layers[0].linear, "weight", m.layers[1].linear.weight),
        lambda m: m.layers.append(m.layers[0]),
        lambda m: m.head.register_forward_hook(lambda *a: None),
        lambda m: setattr(m, "table", torch.ones(3)),
        lambda m: setattr(m, "forward", lambda x: x + 1),
        lambda m: setattr(m, "names", ["a", {"b": (1, None)}]),
    ],
)
def test_what_a_graph_may_depend_on_counts(change):
    assert fingerprint(changed(change)) != fingerprint(make(Chain))
    assert fingerprint(changed(change)) == fingerprint(changed(change))


def test_functions_count_by_what_they_do():
    def model_with(function):
        model = make(Chain)
        model.activation = function
        return model

    def scaled(by):
        return lambda x: x * by

    assert fingerprint(model_with(scaled(2))) == fingerprint(model_with(scaled(2)))
    assert fingerprint(model_with(scaled(2))) != fingerprint(model_with(scaled(3)))


def test_modules_that_are_not_registered_count_by_their_content():
    """Their weights are constants of the graph."""
    keys = []
    for seed in (0, 0, 1):
        model = make(Chain)
        torch.manual_seed(seed)
        model.hidden = [torch.nn.Linear(2, 2)]
        keys.append(fingerprint(model))
    assert keys[0] == keys[1] != keys[2]


def test_a_reference_to_what_is_registered_does_not_make_weights_count():
    keys = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Chain()
        model.__dict__["alias"] = [model.layers[0], model.head.weight]
        keys.append(fingerprint(model))
    assert keys[0] == keys[1]


def test_a_class_without_a_file_counts_by_its_code():
    """As one that is defined, and defined again, in a notebook."""

    def defined(factor):
        space = {"torch": torch, "__name__": "a_notebook"}
        exec(
            "class Model(torch.nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Parameter(torch.ones(2))\n"
            f"    def forward(self, x):\n        return x * self.w * {factor}",
            space,
        )
        return fingerprint(space["Model"]())

    assert defined(2) == defined(2)
    assert defined(2) != defined(3)


def test_other_values_and_ignored_attributes():
    model = make(Chain)
    assert fingerprint(model, 1) != fingerprint(model, 2)
    model.note = "x"
    assert fingerprint(model, ignored={"note"}) == fingerprint(make(Chain))


def test_the_default_type_counts():
    before = fingerprint(make(Tied))
    model = make(Tied)
    torch.set_default_dtype(torch.float64)
    try:
        assert fingerprint(model) != before
    finally:
        torch.set_default_dtype(torch.float32)


def test_configurations_count():
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)
    first = fingerprint(transformers.GPT2Model(config))
    config.activation_function = "relu"
    assert fingerprint(transformers.GPT2Model(config)) != first


def test_what_cannot_be_told_is_named():
    model = make(Chain)
    model.layers[0].lock = threading.Lock()
    with pytest.raises(NoFingerprint, match=r"`layers.0.lock` is a lock, whose content cannot be told"):
        fingerprint(model)
