# SPDX-License-Identifier: Apache-2.0
"""Autograd functions in captured graphs: they keep their own backward, or are refused by name."""

import logging

import pytest
import torch
from ipu_core import IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.capture.autograd_functions import is_function
from ipu_core.capture.serialization import NotStorable, write_capture
from ipu_core.errors import CaptureError
from ipu_core.lowering import capture_model
from ipu_core.testing import assert_training_equals_plain
from models import Chain, batch, make
from torch import nn
from torch.autograd import Function

pytestmark = pytest.mark.usefixtures("no_plugins")
CUTS = [
    IPUConfig(),
    IPUConfig(layers_per_ipu=[2, 1]),
    IPUConfig(layers_per_ipu=[1, 1, 1]),
    IPUConfig(layers_per_ipu=[1, 2], recompute_checkpoint_every_layer=True),
]


class Scaling:
    """An object a function reads; it is no module."""

    def __init__(self, factor):
        self.factor = factor


class Reversing(Function):
    """Gives its input itself."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Keeping(Function):
    """Keeps inputs, outputs and plain values, and asks which gradients are wanted."""

    @staticmethod
    def forward(ctx, x, weight, power, scaling, flag=None):
        assert flag is None
        ctx.power, ctx.scaling = power, scaling
        output = (x * weight).tanh() * scaling.factor
        ctx.save_for_backward(x, weight, output)
        return output

    @staticmethod
    def backward(ctx, gradient):
        x, weight, output = ctx.saved_tensors
        of_x = (gradient * weight * ctx.power * output) if ctx.needs_input_grad[0] else None
        of_weight = (gradient * x).sum(0) * ctx.scaling.factor if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None, None


class Several(Function):
    """Gives several outputs, one that is no tensor, one without a gradient; one argument gets none."""

    @staticmethod
    def forward(ctx, x, parts, other):
        order = x.argsort(-1).to(x.dtype)
        ctx.mark_non_differentiable(order)
        ctx.save_for_backward(x)
        return x * 2 + parts["shift"][0], order, "text", x.exp() + other

    @staticmethod
    def backward(ctx, first, order, text, last):
        assert text is None
        (x,) = ctx.saved_tensors
        return first * 3 + last * x, None, None


class WithoutZeros(Function):
    """Asks for None where an output has no gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x * 1.5, x * 2.5

    @staticmethod
    def backward(ctx, used, unused):
        assert unused is None
        return used * 7


class NewStyle(Function):
    """Has a forward without a context."""

    @staticmethod
    def forward(x, exponent=2):
        return x**exponent

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.exponent = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0] * ctx.exponent * 11, None


class Calling(Chain):
    """Every layer is followed by calls of functions; there is dropout elsewhere."""

    def __init__(self, num_layers: int = 3, dropout: float = 0.3) -> None:
        super().__init__(num_layers, dropout=dropout)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(4)) for _ in range(num_layers))
        self.scaling = Scaling(0.5)

    def forward(self, x, y):
        hidden = self.inner(x)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            hidden = Keeping.apply(layer(hidden), weight, 3, self.scaling)
            first, order, text, last = Several.apply(hidden, {"shift": [weight]}, weight)
            hidden = Reversing.apply(first) + last + order * (text == "text")
            hidden = hidden + WithoutZeros.apply(hidden)[0] + NewStyle.apply(hidden)
            hidden = hidden / 100
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


@pytest.mark.parametrize("ipu_config", CUTS, ids=["one", "two", "three", "recomputed"])
def test_functions_keep_their_own_backward(ipu_config):
    assert_training_equals_plain(make(Calling), ipu_config, batch(), atol=1e-6)


def test_a_plan_with_functions_counts_their_memory():
    made = plan(to_pipelined(make(Calling), CUTS[1]), batch())
    assert made.memory[0].activations > 0


def test_micro_batches_and_an_optimizer_equal_plain():
    plain, model = make(Calling).eval(), make(Calling).eval()
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    config = IPUConfig(layers_per_ipu=[1, 2], gradient_accumulation_steps=2)
    for layer in (*plain.layers, *model.layers):
        layer.dropout.p = 0.0
    executor = training_model(to_pipelined(model, config), ours)
    for seed in range(3):
        theirs.zero_grad()
        plain(**batch(seed=seed))[0].backward()
        theirs.step()
        executor(**batch(seed=seed))
    for (name, our), (_, their) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(our, their, msg=name)


def test_what_is_frozen_or_thawed_after_compiling_is_seen():
    model = make(Calling)
    executor = training_model(to_pipelined(model, CUTS[1])).compile(**batch())
    for frozen in (True, False):
        for parameter in (*model.weights, *model.inner.parameters()):
            parameter.requires_grad_(not frozen)
        model.zero_grad()
        torch.manual_seed(0)
        model.train()(**batch())[0].backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        torch.manual_seed(0)
        executor(**batch())
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (expected[name] is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_equal_calls_are_one_operator_and_others_are_not():
    model = to_pipelined(make(Calling), IPUConfig())
    graph = capture_model(model, IPUConfig().for_training(), batch()).graph
    calls = [node.target for node in graph.nodes if is_function(node)]
    assert len(calls) == 15
    assert len(set(calls)) == 5

    class Powers(Chain):
        def forward(self, x, y):
            return Chain.forward(self, NewStyle.apply(x, 2) + NewStyle.apply(x, 2.0) + NewStyle.apply(x, exponent=3), y)

    model = to_pipelined(make(Powers), IPUConfig())
    graph = capture_model(model, IPUConfig().for_training(), batch()).graph
    assert len({node.target for node in graph.nodes if is_function(node)}) == 3


def test_without_gradients_a_function_is_what_its_forward_does():
    class Quiet(Calling):
        def forward(self, x, y):
            with torch.no_grad():
                x = Reversing.apply(x)
            return Calling.forward(self, x, y)

    model = to_pipelined(make(Quiet), IPUConfig())
    graph = capture_model(model, IPUConfig().for_inference(), batch()).graph
    assert not any(is_function(node) for node in graph.nodes)
    assert_training_equals_plain(make(Quiet), CUTS[1], batch(), atol=1e-6)
    with torch.no_grad():
        expected = make(Quiet).eval()(**batch())
    assert torch.equal(inference_model(model)(**batch())[1], expected[1])


def test_such_a_graph_is_not_stored_and_runs_with_a_cache_all_the_same(tmp_path, caplog):
    config = IPUConfig(layers_per_ipu=[1, 2], executable_cache_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert_training_equals_plain(make(Calling), config, batch(), atol=1e-6)
        training_model(to_pipelined(make(Calling), config)).compile(**batch())
    assert "is an autograd function of this process" in caplog.text
    captured = capture_model(to_pipelined(make(Calling), IPUConfig()), IPUConfig().for_training(), batch())
    with pytest.raises(NotStorable, match="is an autograd function of this process"):
        write_capture(captured, tmp_path)


def test_compiling_leaves_pieces_with_functions_as_they_were_captured(caplog):
    class Everywhere(Chain):
        def forward(self, x, y):
            hidden = Reversing.apply(self.inner(x))
            for layer in self.layers:
                hidden = Reversing.apply(layer(hidden))
            return Reversing.apply(self.head(hidden)).mean(), y

    with caplog.at_level(logging.INFO):
        config = IPUConfig(layers_per_ipu=[1, 2], compile=True)
        assert_training_equals_plain(make(Everywhere), config, batch(), atol=1e-6)
    assert "stage 1 calls an autograd function: it runs as it was captured" in caplog.text


class Random(Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.rand_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Dirty(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Sneaky(Function):
    @staticmethod
    def forward(ctx, x):
        x.view(-1).add_(1)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Through(Function):
    @staticmethod
    def forward(ctx, x, call):
        return call(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: Random.apply(x), "`Random`, which draws random numbers"),
        (lambda model, x: Dirty.apply(x), "`Dirty`, which changes its inputs in place"),
        (lambda model, x: Sneaky.apply(x), "`Sneaky`, which changes its inputs in place"),
        (lambda model, x: Through.apply(x, model.inner), "`Through`, which takes a module as an argument"),
        (lambda model, x: Through.apply(x, model.inner.forward), "`Through`, which takes a module as an argument"),
        (lambda model, x: Through.apply(x, lambda x: model.inner(x)), "`Through`, which takes a module as an argument"),
    ],
)
def test_what_cannot_run_again_is_refused_by_name(call, message):
    class Refused(Chain):
        def forward(self, x, y):
            return super().forward(call(self, x * self.head.bias), y)

    before = Function.__dict__["apply"]
    with pytest.raises(CaptureError, match=f"calls the autograd function {message}: a captured graph would lose its"):
        training_model(to_pipelined(make(Refused), CUTS[1])).compile(**batch())
    assert Function.__dict__["apply"] is before
