# SPDX-License-Identifier: Apache-2.0
"""What a forward may do: as the plain model does it, or refused with what is wrong; never something else."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, inference_model, to_pipelined, training_model
from ipu_core.errors import BatchError, BatchMismatchError, CaptureError
from models import Chain, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")
CUT = IPUConfig(layers_per_ipu=[1, 1, 1])
RECOMPUTED = IPUConfig(layers_per_ipu=[1, 2], recompute_checkpoint_every_layer=True)


def assert_two_training_steps_equal_plain(cls, ipu_config, inputs=None):
    """Compare outputs, gradients, buffers, and the caller's own tensors, twice."""
    plain, model = make(cls), make(cls)
    theirs, ours = ({n: t.clone() for n, t in (inputs or batch()).items()} for _ in range(2))
    executor = training_model(to_pipelined(model, ipu_config))
    for _ in range(2):
        expected = plain(**theirs)
        expected[0].backward()
        for our, their in zip(executor(**ours), expected, strict=True):
            assert torch.equal(our, their) if isinstance(their, torch.Tensor) else our == their
        for (name, our), (_, their) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            torch.testing.assert_close(our.grad, their.grad, msg=name)
        for (name, our), (_, their) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
            assert torch.equal(our, their), name
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name


class Items(Chain):
    """Values are read, and nothing branches on them."""

    def forward(self, x, y):
        return super().forward(x * x.sum().item() + sum(y.tolist()), y)


class Slices(Chain):
    def forward(self, x, y):
        loss, prediction = super().forward(x[:100], y[-100:])
        return loss, prediction[5:100], prediction[7:7]


class Constants(Chain):
    def forward(self, x, y):
        shift, ones = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
        return super().forward(x * ones.add_(1) + shift.mul_(2), y)


class Conditional(Chain):
    def forward(self, x, y):
        return super().forward(torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 3, (x,)), y)


class InPlaceInput(Chain):
    """An input is changed in place, and read by each stage."""

    def forward(self, x, y):
        hidden = self.inner(x.mul_(2.0) * 1.0)
        hidden = self.layers[0](hidden + x.sum())
        hidden = self.layers[1](hidden + x.sum())
        hidden = self.layers[2](hidden + x.sum())
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


class Counters(Chain):
    """Buffers of a float and an integer are changed in place, one is set anew, and a layer before reads them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("again", torch.zeros(()))

    def forward(self, x, y):
        hidden = self.layers[0](self.inner(x) * (1.0 + self.total))
        self.count += 1
        hidden = self.layers[1](hidden * self.count)
        self.again = self.again + x.detach().sum()
        loss, prediction = self.layers[2](hidden).sum(), y
        self.total.add_(1.0)
        return loss * self.head.weight.sum() + self.head.bias.sum(), prediction


class OtherOutputs(Chain):
    """What is returned is not all tensors, and one is returned twice."""

    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return loss, prediction, prediction, "text", 3, None


@pytest.mark.parametrize("cls", [Items, Slices, Constants, Conditional, InPlaceInput, OtherOutputs])
@pytest.mark.parametrize("ipu_config", [CUT, RECOMPUTED], ids=["cut", "recomputed"])
def test_a_forward_may_do_this_and_equals_the_plain_model(cls, ipu_config):
    assert_two_training_steps_equal_plain(cls, ipu_config)


@pytest.mark.parametrize(
    "ipu_config", [CUT, IPUConfig(layers_per_ipu=[1, 2]), IPUConfig()], ids=["three", "two", "one"]
)
def test_buffers_changed_in_place_or_set_anew_persist_integers_too(ipu_config):
    plain, model = make(Counters).eval(), make(Counters).eval()
    executor = inference_model(to_pipelined(model, ipu_config))
    for _ in range(2):
        with torch.no_grad():
            expected = plain(**batch())
        assert torch.equal(executor(**batch())[0], expected[0])
    assert (model.total.item(), model.count.item()) == (2.0, 2)
    assert torch.equal(model.again, plain.again)


class Counting(Chain):
    """A buffer counts, and is read before and after."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, y):
        hidden = self.layers[0](self.inner(x) + self.count)
        hidden = self.layers[1](hidden)
        self.count += 1
        hidden = self.layers[2](hidden * 1.0 + self.count)
        prediction = self.head(hidden).squeeze(-1)
        return (prediction - y).pow(2).mean(), prediction


@pytest.mark.parametrize("ipu_config", [CUT, RECOMPUTED], ids=["cut", "recomputed"])
def test_a_buffer_read_in_several_stages_and_changed_in_one_equals_plain(ipu_config):
    assert_two_training_steps_equal_plain(Counting, ipu_config)


@pytest.mark.parametrize("factor", ["replication_factor", "gradient_accumulation_steps"])
def test_buffers_see_micro_batches_and_replicas_in_order(factor):
    plain, model = make(Counting), make(Counting)
    config = IPUConfig(layers_per_ipu=[1, 2], output_mode="all", **{factor: 4})
    _, prediction = training_model(to_pipelined(model, config))(**batch(8))
    each = [plain(**{n: t[i : i + 2] for n, t in batch(8).items()})[1] for i in range(0, 8, 2)]
    torch.testing.assert_close(prediction, torch.cat(each).detach())
    assert model.count == plain.count == 4


def test_python_runs_once_when_it_is_captured():
    class Noting(Chain):
        calls = 0

        def forward(self, x, y):
            type(self).calls += 1
            return super().forward(x * type(self).calls, y)

    executor = training_model(to_pipelined(make(Noting), CUT))
    losses = [executor(**batch())[0] for _ in range(3)]
    assert torch.equal(losses[0], losses[2])


class ShapeOfValues(Chain):
    def forward(self, x, y):
        return super().forward(x, y)[0], self.inner(x[x.sum(-1) > 0])


class NewParameter(Chain):
    def forward(self, x, y):
        self.head.bias = torch.nn.Parameter(self.head.bias + 1)
        return super().forward(x, y)


class LostBuffer(Counting):
    def forward(self, x, y):
        del self.count
        return Chain.forward(self, x, y)


class PlainTensor(Chain):
    def __init__(self):
        super().__init__()
        self.table = torch.tensor([2.0, 2.0, 2.0])

    def forward(self, x, y):
        self.table.add_(1)
        return super().forward(x * self.table, y)


class BackwardInside(Chain):
    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        (gradient,) = torch.autograd.grad(loss, self.inner.weight, create_graph=True)
        return loss + gradient.sum(), prediction


class InputTwice(InPlaceInput):
    """An input is changed in place by the first stage, and again by the last one."""

    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return loss + x.add_(1.0).sum(), prediction


class BufferView(Counting):
    """A buffer is changed through a view that an earlier stage made."""

    def forward(self, x, y):
        view = self.count[None]
        hidden = self.layers[0](self.inner(x) + view)
        hidden = self.layers[1](hidden)
        view.add_(1)
        hidden = self.layers[2](hidden)
        return (self.head(hidden).squeeze(-1) - y).pow(2).mean()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            ShapeOfValues,
            r"cannot be .*: the shape \[u0, 3\] of `index` \(aten.index.Tensor\) depends on the values of tensors",
        ),
        (NewParameter, "gives itself a new parameter `head.bias` in its forward, .*: change it before the call"),
        (LostBuffer, "removes `count` in its forward, .*: remove it before the call"),
        (PlainTensor, "changes the tensor `table` in place, which is neither a parameter nor a buffer: register it"),
        (BackwardInside, "cannot be captured as one static graph"),
        (InputTwice, "changes `x` in place through `.*`, which another stage made of it: keep the modules that change"),
        (BufferView, "changes `count` in place through `.*`, which another stage made of it: keep the modules"),
    ],
)
@pytest.mark.filterwarnings("ignore:The tensor attribute self.count was assigned")
def test_a_forward_that_a_graph_cannot_hold_is_refused_and_the_model_is_as_before(cls, message):
    model = make(cls)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identities = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    with pytest.raises(CaptureError, match=f"`Pipelined{cls.__name__}` {message}"):
        training_model(to_pipelined(model, CUT)).compile(**batch())
    assert {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]} == identities
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "table") or model.table.tolist() == [2.0, 2.0, 2.0]


def test_hidden_states_of_the_users_model_are_collected_once_after_they_were_of_the_pipelined_one():
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = transformers.BertModel(config).eval()
    ids = torch.arange(1, 9).reshape(1, 8)
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1])))
    found = executor(input_ids=ids, output_hidden_states=True).hidden_states
    wanted = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) == model.config.num_hidden_layers + 1
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    executor(input_ids=ids, output_hidden_states=True)


def test_outputs_cannot_be_differentiated():
    loss, _ = training_model(to_pipelined(make(Chain), CUT))(**batch())
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()


def test_inputs_that_require_a_gradient_are_refused_in_training_alone():
    inputs = {**batch(), "x": batch()["x"].requires_grad_()}
    with pytest.raises(BatchError, match=r"`x` requires a gradient, .*: pass `x.detach\(\)`"):
        training_model(to_pipelined(make(Chain), CUT))(**inputs)
    assert not inference_model(to_pipelined(make(Chain), CUT))(x=inputs["x"]).requires_grad


class Passing(Chain):
    """Every input is returned, changed a little."""

    def forward(self, x, **others):
        for layer in self.layers:
            x = layer(x)
        return {"x": x, **{name: value[:, :1] for name, value in others.items()}}


def test_dtypes_cross_unchanged():
    dtypes = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.bfloat16, torch.complex64]
    inputs = {f"x{i}": torch.ones(4, 2).to(dtype) for i, dtype in enumerate(dtypes)}
    config = IPUConfig(layers_per_ipu=[1, 2], inference_device_iterations=2)
    outputs = inference_model(to_pipelined(make(Passing), config))(x=torch.ones(4, 4), **inputs)
    assert [outputs[name].dtype for name in inputs] == dtypes
    assert {tuple(outputs[name].shape) for name in inputs} == {(4, 1)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_as_the_plain_model_computes_it(dtype):
    model = make(Chain).to(dtype)
    inputs = {name: tensor.to(dtype) for name, tensor in batch().items()}
    expected = model(**inputs)
    for our, their in zip(training_model(to_pipelined(model, CUT))(**inputs), expected, strict=True):
        assert our.dtype is dtype
        assert torch.equal(our, their)


class Structured(Chain):
    def forward(self, x, pair, flag=None):
        hidden = super().forward(x) + pair["a"][0].sum(-1)
        return hidden if flag is None else hidden * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flag": True}, r"`flag` is True, and the executor was compiled with None"),
        ({"pair": {"a": [batch()["x"], None]}}, r"`pair\['a'\]\[1\]` was not there"),
        ({"pair": {"b": [batch()["x"]]}}, r"`pair\['b'\]\[0\]` was not there"),
        ({"pair": None}, "`pair` was not there"),
    ],
)
def test_structure_and_none_are_fixed_by_the_first_call(change, message):
    executor = inference_model(to_pipelined(make(Structured), CUT))
    inputs = {"x": batch()["x"], "pair": {"a": [batch()["x"]]}, "flag": None}
    expected = executor(**inputs)
    with pytest.raises(BatchMismatchError, match=message):
        executor(**{**inputs, **change})
    assert torch.equal(executor(**inputs), expected)


def holding(tensor):
    """Return a chain whose forward computes with a tensor that a function holds, and the executor of it."""
    model = make(Chain)
    forward = model.forward
    model.forward = lambda x, y=None: forward(x * tensor, y)
    return model


def test_a_parameter_that_a_function_holds_gets_its_gradient():
    plain = torch.nn.Parameter(torch.ones(1))
    held = torch.nn.Parameter(torch.ones(1))
    model, expected = holding(held), holding(plain)
    model.register_parameter("gain", held)
    training_model(to_pipelined(model, CUT))(**batch())
    expected(**batch())[0].backward()
    torch.testing.assert_close(held.grad, plain.grad)


def test_a_tensor_that_would_lose_its_gradient_is_refused():
    with pytest.raises(CaptureError, match=r"a tensor of shape \[1\] that requires a gradient"):
        training_model(to_pipelined(holding(torch.ones(1, requires_grad=True)), CUT))(**batch())
