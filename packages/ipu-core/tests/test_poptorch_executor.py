# SPDX-License-Identifier: Apache-2.0
"""Executors of the PopTorch interface: batches, arguments, state and devices (2.2 to 2.4 of the contract)."""

import collections
import copy
import datetime
import gc
import io
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from ipu_core.migration.poptorch import devices

Error = poptorch.Error


class Scale(torch.nn.Module):
    """x * w, and its sum."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        y = x * self.w
        return y, y.sum()


class Loss(torch.nn.Module):
    """A linear layer with a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x, y):
        out = self.fc(x)
        return out, torch.nn.functional.mse_loss(out, y)


class Function(torch.nn.Module):
    """A forward of the test's own."""

    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *args):
        return self.function(self, *args)


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """Have a pool of IPUs of the test's own."""
    made = devices.Pool(64)
    monkeypatch.setattr("ipu_core.migration.poptorch.executor.POOL", made)
    return made


def options(di=1, ga=1, replicas=1, mode=None, period=None):
    made = poptorch.Options().deviceIterations(di).replicationFactor(replicas)
    made.Training.gradientAccumulation(ga)
    return made if mode is None else made.outputMode(mode, period)


def infer(function, *args, opts=None, **buffers):
    return poptorch.inferenceModel(Function(function, **buffers).eval(), opts)(*args)


def trained(opts, optimizer=None, seed=0, rows=24):
    """Return a trained model, the plain one it began as, the batch, and what the call returned."""
    model = Loss()
    plain = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)
    made = optimizer(model.parameters()) if optimizer else torch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, opts, made)
    return executor, plain, (x, y), executor(x, y)


def plainly_trained(plain, batch, updates, micro_batches, lr=0.1, is_sum=False):
    """Train a plain model as a call does; return the output and the loss of each micro-batch."""
    optimizer = torch.optim.SGD(plain.parameters(), lr=lr)
    results = []
    for x, y in zip(*(t.chunk(updates) for t in batch), strict=True):
        optimizer.zero_grad()
        for part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            out, loss = plain(*part)
            results.append((out.detach(), loss.detach()))
            (loss if is_sum else loss / micro_batches).backward()
        optimizer.step()
    return results


# 2.2.1 to 2.2.6: batches, inputs and outputs


def test_rows_are_iterations_then_accumulation_then_replicas_and_an_update_is_each_iteration():
    executor, plain, batch, (out, loss) = trained(options(di=2, ga=3, replicas=2, mode=poptorch.OutputMode.All))
    results = plainly_trained(plain, batch, updates=2, micro_batches=6)
    torch.testing.assert_close(out, torch.cat([result[0] for result in results]))
    torch.testing.assert_close(loss, torch.stack([result[1] for result in results]))
    torch.testing.assert_close(dict(executor.model.named_parameters()), dict(plain.named_parameters()))


def test_a_sum_of_gradients_is_not_divided():
    opts = options(ga=4)
    opts.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    executor, plain, batch, _ = trained(opts)
    plainly_trained(plain, batch, updates=1, micro_batches=4, is_sum=True)
    torch.testing.assert_close(dict(executor.model.named_parameters()), dict(plain.named_parameters()))


@pytest.mark.parametrize(
    ("mode", "period", "expected"),
    [
        ("All", None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("EveryN", 2, [2, 3, 6, 7]),
        ("Final", None, [6, 7]),
        ("Sum", None, [12, 16]),
    ],
)
def test_an_output_mode_returns_these_micro_batches(mode, period, expected):
    x = torch.arange(8.0)
    opts = options(di=4, replicas=2, mode=poptorch.OutputMode[mode], period=period)
    rows, total = poptorch.inferenceModel(Scale().eval(), opts)(x)
    assert (rows / 2).tolist() == (total / 2).tolist() == expected


def test_a_scalar_stays_one_where_one_micro_batch_returns_it_and_defaults_are_final_and_all():
    executor = poptorch.inferenceModel(Scale().eval())
    assert executor(torch.ones(2))[1].shape == () and executor.options.output_mode == 2
    executor, *_, (out, loss) = trained(options(ga=4))
    assert loss.shape == () and out.shape == (6, 2) and executor.options.output_mode == 0


def test_groups_of_replicas_have_the_same_input():
    kinds = poptorch.CommGroupType
    for kind, expected in ((kinds.Consecutive, [0, 0, 1, 1]), (kinds.Orthogonal, [0, 1, 0, 1])):
        opts = options(replicas=4).inputReplicaGrouping(2, kind)
        assert (poptorch.inferenceModel(Scale().eval(), opts)(torch.arange(2.0))[0] / 2).tolist() == expected


def test_rows_that_do_not_divide_are_refused_with_the_arithmetic():
    opts = options(di=2, replicas=2)
    with pytest.raises(AssertionError, match=r"In the input x, the batch dimension \(6\) must be a multiple of .* = 4"):
        poptorch.inferenceModel(Scale(), opts)(torch.ones(6))
    with pytest.raises(AssertionError, match="Invalid batch dimension"):
        poptorch.inferenceModel(Scale(), opts)(torch.tensor(1.0))


def test_a_period_that_does_not_divide_the_iterations_is_refused():
    for period in (3, 8):
        opts = options(di=4, mode=poptorch.OutputMode.EveryN, period=period)
        with pytest.raises(Error, match="Return period must be"):
            poptorch.inferenceModel(Scale().eval(), opts)(torch.ones(4))


def test_dtypes_become_those_that_ipus_have():
    outputs = infer(
        lambda _, a, b, c, d: (a + 1, b + 1, c + 1, d, a.sum(dtype=torch.float64)),
        *(torch.ones(2, dtype=d) for d in (torch.int64, torch.float64, torch.bfloat16, torch.bool)),
    )
    expected = [torch.int32, torch.float32, torch.float32, torch.bool, torch.float32]
    assert [output.dtype for output in outputs] == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), r"Unsupported input type torch\.complex64"),
        (torch.ones(0, 2, 5, 5), r"Zero-sized tensors are unsupported \(Got shape \[0, 2, 5, 5\]\)"),
    ],
)
def test_an_input_no_ipu_takes_is_refused(value, message):
    with pytest.raises(Error, match=message):
        poptorch.inferenceModel(Scale())(value)


Pair = collections.namedtuple("Pair", ["first", "second"])


class Own(dict):
    """A dictionary of one's own."""


def test_the_structure_of_what_is_returned_is_kept_and_each_tensor_is_fresh():
    x = torch.ones(2)
    found = infer(
        lambda _, x: Own(a=[x, (x + 1,)], b=Pair(x + 2, {"c": x + 3}), d="text", e=None), x, opts=options(di=2)
    )
    assert type(found) is Own and type(found["b"]) is Pair and found["d"] == "text" and found["e"] is None
    assert found["b"].second["c"].tolist() == [4, 4] and found["a"][1][0].tolist() == [2, 2]
    assert found["a"][0].data_ptr() != x.data_ptr() and not found["a"][0].requires_grad
    with pytest.raises(Error, match=r"backward\(\) cannot be called explicitly on outputs of a PopTorch model"):
        found["a"][0].backward()
    assert infer(lambda _, x: None, x) is None


def test_what_depends_on_no_input_is_returned_once_and_a_tensor_of_the_host_as_it_is():
    host = torch.tensor([1.0, 2.0])
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        x, constant, own = infer(lambda _, x: (x, torch.zeros(3) + 1, host), torch.ones(4), opts=options(di=4))
    assert x.shape == (4,) and constant.tolist() == [1, 1, 1] and own is host


def test_an_input_that_is_changed_in_place_changes_for_the_caller():
    x = torch.zeros(4)
    returned = infer(lambda _, x: x.add_(1), x, opts=options(di=2))
    assert x.tolist() == returned.tolist() == [1, 1, 1, 1]


def test_inputs_that_share_memory_are_not_both_changed_in_place():
    x = torch.zeros(4)
    with pytest.raises(Error, match="More than one alias for graph input"):
        infer(lambda _, x, y: (x.add_(1), y.add_(2)), x, x)
    assert infer(lambda _, x, y: (x.add_(1), y), x, x.clone())[0].tolist() == x.tolist() == [1, 1, 1, 1]


def test_anchors_are_returned_as_outputs_are():
    names = ["Gradient___fc.bias", "UpdatedVar___fc.weight", "Accl1___fc.weight", "finalLossScale"]
    opts = options(di=2, ga=2, mode=poptorch.OutputMode.All)
    for name in names:
        opts.anchorTensor(name[:4], name)
    executor, plain, batch, _ = trained(opts, lambda p: poptorch.optim.Adam(p, lr=0.1, loss_scaling=4.0))
    found = {name: executor.getAnchoredTensor(name[:4]) for name in names}
    assert {*names[:2], names[3]} <= {*executor.getTensorNames()}
    assert found["finalLossScale"].tolist() == [4.0] * 4
    for i, (x, y) in enumerate(zip(*(t.chunk(4)[:2] for t in batch), strict=True)):
        (gradient,) = torch.autograd.grad(plain(x, y)[1], plain.fc.bias)
        torch.testing.assert_close(found["Gradient___fc.bias"].chunk(4)[i], 4 * gradient)
    first, _, _, last = found["UpdatedVar___fc.weight"].chunk(4)
    assert torch.equal(last, executor.model.fc.weight) and not torch.equal(first, last)
    accumulated = executor._optimizer.state_dict()["ipu_state"]["Accl1___fc.weight"]
    assert torch.equal(found["Accl1___fc.weight"].chunk(4)[3], accumulated)


def test_an_anchor_is_a_value_of_the_forward_or_is_refused_by_name():
    opts = options(di=2).useIpuModel(False)
    opts.anchorTensor("product", "mul")
    executor = poptorch.inferenceModel(Scale().eval(), opts)
    with pytest.raises(AssertionError, match="No tensor with name product found"):
        executor.getAnchoredTensor("product")
    executor(torch.ones(4))
    assert "mul" in executor.getTensorNames() and executor.getAnchoredTensor("product").tolist() == [2, 2, 2, 2]
    opts = options()
    opts.anchorTensor("grad", "Gradient___fc.weight")
    with pytest.raises(Error, match="there is no tensor called Gradient___fc.weight; getTensorNames"):
        poptorch.inferenceModel(Scale().eval(), opts)(torch.ones(2))


def test_synthetic_data_leaves_inputs_unread():
    executor = poptorch.inferenceModel(Scale().eval(), options().enableSyntheticData(True))
    rows, _ = executor(torch.ones(2))
    assert not rows.any() and executor.getLatency() == (0.0, 0.0, 0.0)


# 2.3: arguments


class Defaults(torch.nn.Module):
    """A forward with defaults, which returns the values that are no tensors."""

    def forward(self, x, y=None, scale=3, *, pair=(1, 2)):
        return (x if y is None else x + y) * scale, pair


def test_arguments_are_bound_as_python_does_with_defaults():
    model = poptorch.inferenceModel(Defaults().eval())
    assert model(torch.ones(2))[0].tolist() == [3, 3]
    with pytest.raises(AssertionError, match=r"Too many arguments provided: expected \[.*\] \(4\) but got 5"):
        model(1, 2, 3, 4, 5)
    with pytest.raises(AssertionError, match=r"z is not a valid parameter\.Allowed values are \["):
        model(torch.ones(2), z=1)
    with pytest.raises(AssertionError, match="Parameter x was passed more than once"):
        model(torch.ones(2), x=1)
    with pytest.raises(Error, match="Mandatory parameter x missing"):
        model()
    for args, message in [
        (
            (torch.ones(2), torch.ones(2)),
            "Type mismatch for y: expected <class 'NoneType'> but got <class 'torch.Tensor'>",
        ),
        ((torch.ones(2), None, 5), "Value mismatch for scale: expected 3 but got 5"),
        ((torch.ones(3),), r"Shape mismatch for x: expected torch.Size\(\[2\]\) but got torch.Size\(\[3\]\)"),
        ((torch.ones(2).int(),), "Data type mismatch for x: expected torch.float32 but got torch.int32"),
        ((torch.nn.Parameter(torch.ones(2)),), "Type mismatch for x"),
    ]:
        with pytest.raises(Error, match=rf"{message}(.|\n)*call destroy\(\) on the curent one and try again"):
            model(*args)


def test_nested_and_variadic_arguments_are_compared_by_path():
    model = poptorch.inferenceModel(Function(lambda _, d, *rest: d["a"] + d["b"] * 2 + rest[0][0]).eval())
    x, one = torch.ones(2), torch.ones(2)
    with pytest.warns(UserWarning, match="Dicts as inputs only have partial support"):
        first = model({"a": x, "b": one}, [one])
    assert first.tolist() == [4, 4]
    assert model({"b": 5 * one, "a": x}, [one]).tolist() == [12, 12]
    for args, message in [
        (({"a": x, "c": x}, [x]), r"Keys mismatch for \*args\[0\]: Unexpected arguments: c. Missing arguments: b."),
        (({"a": x, "b": x}, (x,)), r"Type mismatch for \*args\[1\]"),
        (({"a": x, "b": x}, [x, x]), r"Length mismatch for \*args\[1\]: expected 1 elements but got 2."),
        (({"a": x, "b": x},), "Number of positional arguments mismatch: expected 2 arguments but got 1."),
        (({"a": x, "b": x}, [torch.ones(3)]), r"Shape mismatch for \*args\[1\]\[0\]"),
    ]:
        with pytest.raises(Error, match=message):
            model(*args)


class Boxed:
    """Two tensors in a type of its own."""

    def __init__(self, first, second):
        self.first, self.second = first, second


class BoxedParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.first
        yield struct.second

    def reconstruct(self, original_structure, tensor_iterator):
        return Boxed(next(tensor_iterator), next(tensor_iterator))


def test_a_type_of_ones_own_is_an_argument_and_a_result():
    with pytest.raises(Error, match="arg_parser must inherit from ICustomArgParser"):
        poptorch.registerCustomArgParser(Boxed, object())
    poptorch.registerCustomArgParser(Boxed, BoxedParser())
    try:
        found = infer(lambda _, box: Boxed(box.second, box.first + 1), Boxed(torch.zeros(2), torch.ones(2)))
        assert found.first.tolist() == [1, 1] and found.second.tolist() == [1, 1]
    finally:
        poptorch.registerCustomArgParser(Boxed, None)


def test_an_object_that_hides_tensors_is_not_returned():
    with pytest.raises(Error, match="returns a Boxed that holds tensors of the graph: return these, register a parser"):
        infer(lambda _, x: (x, Boxed([x + 1], None)), torch.zeros(2))
    assert infer(lambda _, x: Boxed(1, "text"), torch.zeros(2)).second == "text"


# 2.4: executors


def test_a_model_is_wrapped_once_and_given_back():
    model = Loss()
    executor = poptorch.trainingModel(model)
    assert type(model).__name__ == "PoptorchLoss" and type(model).__bases__[0] is Loss
    assert executor.model is model and executor.fc is model.fc and "Linear" in repr(executor)
    with pytest.raises(RuntimeError, match=r"already been wrapped in 'poptorch.trainingModel'. Call model.destroy\(\)"):
        poptorch.trainingModel(model)
    assert type(copy.deepcopy(model)) is Loss
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    model.destroy()  # nothing is compiled, and it stays
    assert type(model) is not Loss
    executor(torch.ones(2, 3), torch.ones(2, 2))
    assert model.copyWeightsToHostIfNeeded() and not model.copyWeightsToHostIfNeeded()
    model.destroy()
    assert type(model) is Loss and not executor.isCompiled()
    assert type(poptorch.inferenceModel(model).model) is Loss
    del executor
    gc.collect()
    poptorch.trainingModel(model)


def test_what_an_executor_cannot_be_made_of_is_refused():
    with pytest.raises(Error, match=r"Invalid type: 'options' is of type .*dict.* \(Expected poptorch.Options\)"):
        poptorch.inferenceModel(Loss(), {})
    with pytest.raises(Error, match="gradientAccumulation to 1 .* poptorch.inferenceModel.* Use .*deviceIterations"):
        poptorch.inferenceModel(Loss(), options(ga=2))
    sharded = options(ga=2).setExecutionStrategy(poptorch.ShardedExecution())
    with pytest.raises(Error, match=r"when running a poptorch.inferenceModel\(\)\.$"):
        poptorch.inferenceModel(Loss(), sharded)
    model = Loss()
    with pytest.raises(AssertionError, match="Unsupported optimizer type"):
        poptorch.trainingModel(model, None, torch.optim.Adagrad(model.parameters()))
    assert type(model) is Loss


def test_compiling_twice_is_ignored_and_a_time_is_kept(caplog):
    executor = poptorch.inferenceModel(Scale().eval())
    with pytest.raises(Error, match="Please compile the model before obtaining compilation time"):
        executor.compilationTime()
    assert executor.getPerfCounters() == {key: [[]] for key in executor.getPerfCounters()}
    executor.compile(torch.ones(2))
    assert executor.isCompiled() and isinstance(executor.compilationTime(), datetime.timedelta)
    with caplog.at_level("WARNING", "poptorch::python"):
        executor.compile(torch.ones(2))
    assert "Call to compile() ignored: the executable is already compiled" in caplog.text
    assert [list(values) for values in executor._executable_inputs.args] == [[1.0, 1.0]]


def test_an_offline_target_compiles_and_does_not_run():
    executor = poptorch.inferenceModel(Scale().eval(), options().useOfflineIpuTarget())
    executor.compile(torch.ones(2))
    with pytest.raises(AssertionError, match=r"offline device \(ConnectionType.Never\): use model.compile"):
        executor(torch.ones(2))
    with pytest.raises(AssertionError, match="Trying to attach to an offline device"):
        executor.attachToDevice()


def test_what_needs_an_executable_says_so(tmp_path):
    executor = poptorch.inferenceModel(Scale().eval(), options().updatableNamedBuffers(["colour"]))
    for call in (
        executor.copyWeightsToHost,
        executor.copyWeightsToDevice,
        executor.copyNamedBuffersToDevice,
        executor.detachFromDevice,
        executor.attachToDevice,
        lambda: executor.rng_state,
        lambda: executor.save(str(tmp_path / "file")),
    ):
        with pytest.raises(Error, match="Model has not been compiled or has been destroyed"):
            call()
    with pytest.raises(Error, match="updatableNamedBuffers names colour"):
        executor.compile(torch.ones(2))
    executor = poptorch.inferenceModel(Scale().eval())
    executor.compile(torch.ones(2))
    with pytest.raises(Error, match="No named buffers marked as updatable"):
        executor.copyNamedBuffersToDevice()


def test_weights_travel_when_somebody_says_so():
    executor, _, (x, y), _ = trained(options())
    model, kept = executor.model, executor._weights.at("fc.weight")
    assert executor._has_newer_weights  # nobody read them yet
    before = model.fc.weight.detach().clone()
    assert not executor._has_newer_weights and torch.equal(before, kept)
    executor(x, y)
    assert not torch.equal(model.fc.weight, before)
    with torch.no_grad():
        model.fc.weight.zero_()
    executor(x, y)
    assert kept.any() and torch.equal(model.fc.weight, kept)  # nobody uploaded the zeros
    with torch.no_grad():
        model.fc.weight.zero_()
    executor.copyWeightsToDevice()
    assert not kept.any()
    executor.detachFromDevice()
    with torch.no_grad():
        model.fc.weight.fill_(1.0)
    executor.attachToDevice()
    assert kept.eq(1).all()


def test_what_calls_made_of_weights_is_lost_where_older_ones_are_uploaded_first():
    executor, plain, _, _ = trained(options())
    assert executor._has_newer_weights
    executor.copyWeightsToDevice()
    assert torch.equal(executor.model.fc.weight, plain.fc.weight)
    assert not executor.copyWeightsToHostIfNeeded()


def test_inference_follows_the_training_of_its_module_and_not_edits():
    executor, _, (x, y), _ = trained(options())
    model = executor.model
    inference = poptorch.inferenceModel(model)
    torch.testing.assert_close(inference(x, y)[0], model.fc(x))
    executor(x, y)
    torch.testing.assert_close(inference(x, y)[0], model.fc(x))
    before = inference(x, y)[0]
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert model.load_state_dict(zeros).missing_keys == []
    assert torch.equal(inference(x, y)[0], before)
    assert inference.load_state_dict(zeros).missing_keys == []
    assert not inference(x, y)[0].any()


def test_weights_that_a_training_executor_has_are_plain_in_copies_and_files():
    executor, *_ = trained(options())
    model, weight = executor.model, executor.model.fc.weight
    assert type(weight).__name__ == "PoptorchParameter" and isinstance(weight, torch.nn.Parameter)
    assert weight.requires_grad and type(weight.detach()) is torch.Tensor and type(weight + 1) is torch.Tensor
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied.fc.weight) is torch.nn.Parameter and torch.equal(copied.fc.weight, weight)
    assert {type(value) for value in model.state_dict().values()} == {torch.Tensor}
    executor.destroy()
    assert type(weight) is torch.nn.Parameter and model.fc.weight is weight


def test_what_was_trained_is_the_modules_when_nobody_has_its_executor_any_more():
    executor, plain, _, _ = trained(options())
    model = executor.model
    del executor
    gc.collect()
    assert not torch.equal(model.fc.weight, plain.fc.weight)


def test_a_buffer_of_a_class_of_its_own_is_refused_in_training():
    class Own(torch.Tensor):
        """A tensor of one's own."""

    model = Function(None, own=torch.zeros(2).as_subclass(Own))
    with pytest.raises(Error, match=r"All buffers must be an instance of torch.Tensor \(Got .*Own"):
        poptorch.trainingModel(model, None, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]))
    assert type(model) is Function


def test_weights_of_64_bits_have_32_on_the_device():
    model = Scale().double()
    executor = poptorch.inferenceModel(model.eval())
    assert [t.dtype for t in executor(torch.ones(2, dtype=torch.float64))] == [torch.float32] * 2
    executor.copyWeightsToHost()
    assert executor._weights.at("w").dtype is torch.float32 and model.w.dtype is torch.float64


def test_named_buffers_alone_are_uploaded():
    opts = options().updatableNamedBuffers(["a"])
    executor = poptorch.inferenceModel(
        Function(lambda self, x: x + self.a + self.b, a=torch.zeros(1), b=torch.zeros(1)).eval(), opts
    )
    x = torch.zeros(1)
    assert executor(x).item() == 0
    executor.model.a.fill_(1), executor.model.b.fill_(10)
    assert executor(x).item() == 0
    executor.copyNamedBuffersToDevice()
    assert executor(x).item() == 1


def test_executors_share_a_pool_of_ipus(pool):
    pool.size = 2
    first = poptorch.inferenceModel(Scale().eval(), options(replicas=2))
    x = torch.ones(2)
    assert not first.isAttachedToDevice()
    first(x)
    assert first.isAttachedToDevice() and pool.num_free == 0
    second = poptorch.inferenceModel(Scale().eval(), options(replicas=2))
    with pytest.raises(Error, match=r"Failed to acquire 2 IPU\(s\): there are 2, and 2 are held"):
        second.compile(x)
    with pytest.raises(Error, match="Device is already attached"):
        first.attachToDevice()
    first.detachFromDevice()
    with pytest.raises(Error, match="Device is not attached"):
        first.detachFromDevice()
    second(x)
    second.destroy()
    first(x)  # it attaches again
    assert pool.num_free == 0
    del first
    gc.collect()
    assert pool.num_free == 2


def test_numbers_of_ipus(pool, caplog):
    with pytest.raises(Error, match=r"Too many IPUs requested \(128\)"):
        poptorch.inferenceModel(Scale().eval(), options(replicas=128))(torch.ones(128))
    three = torch.ones(3)
    with pytest.raises(Error, match=r"use of 3 IPUs, however PopTorch must reserve a minimum of 4"):
        poptorch.inferenceModel(Scale().eval(), options(replicas=3))(three)
    executor = poptorch.inferenceModel(Scale().eval(), options(replicas=3).autoRoundNumIPUs(True))
    with caplog.at_level("WARNING", "poptorch::python"):
        executor(three)
    assert "Reserving 4 IPUs when the model specifices the use of only 3" in caplog.text and pool.num_free == 60
    assert poptorch.ipuHardwareIsAvailable(64) and not poptorch.ipuHardwareIsAvailable(65)
    assert poptorch.ipuHardwareVersion() == 2


def test_a_file_of_an_executable_holds_no_code(tmp_path):
    opts = options()
    opts.randomSeed(7)
    drawn = [poptorch.inferenceModel(Function(lambda _, x: x + torch.rand(2)).eval(), opts) for _ in range(2)]
    x = torch.zeros(2)
    drawn[0].compile(x)
    with pytest.warns(UserWarning, match="is a directory"):
        drawn[0].save(str(tmp_path), export_model=False)
    drawn[1].loadExecutable(str(tmp_path / "model.poptorch"))
    assert drawn[1].isCompiled() and torch.equal(drawn[0](x), drawn[1](x))
    with pytest.raises(AssertionError, match="was created with 'export_model=False' which means you need to re-create"):
        poptorch.load(str(tmp_path / "model.poptorch"))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(AssertionError, match="Invalid file"):
        poptorch.load(str(tmp_path / "other"))
    torch.save({"version": torch.tensor(99)}, tmp_path / "newer")
    with pytest.raises(AssertionError, match="PopTorch version mismatch"):
        drawn[0].loadExecutable(str(tmp_path / "newer"))


def test_an_executor_has_random_numbers_of_its_own():
    opts = options(di=2)
    opts.randomSeed(3)
    outside = torch.get_rng_state()
    executor = poptorch.inferenceModel(Function(lambda _, x: x + torch.rand(1)).eval(), opts)
    x = torch.zeros(2)
    first = executor(x)
    assert torch.equal(outside, torch.get_rng_state()) and first[0] != first[1]
    state = executor.rng_state
    assert state[0] == 3
    second = executor(x)
    executor.rng_state = state
    assert torch.equal(executor(x), second) and not torch.equal(first, second)


def test_cycles_are_counted_by_hardware_alone():
    with pytest.raises(Error, match="Cycle count logging is disabled"):
        poptorch.inferenceModel(Scale()).cycleCount()
    executor = poptorch.inferenceModel(Scale().eval(), options().logCycleCount(True))
    with pytest.raises(Error, match="run the model at least once"):
        executor.cycleCount()
    with pytest.raises(Error, match="Cycle count logging is only supported on actual IPU hardware"):
        executor.compile(torch.ones(2))


def test_the_ipu_model_takes_no_ipus_and_has_limits(pool, caplog):
    pool.size = 0
    with caplog.at_level("WARNING", "poptorch::python"):
        executor = poptorch.inferenceModel(Scale().eval(), options().useIpuModel(True).enableExecutableCaching("cache"))
    assert "The IPU model does not support executable caching" in caplog.text
    assert executor(torch.ones(2))[1] == 4
    with pytest.raises(Error, match="offline target"):
        poptorch.inferenceModel(Scale(), options().useIpuModel(True).useOfflineIpuTarget())
    counting = poptorch.inferenceModel(Scale().eval(), options().useIpuModel(True).logCycleCount(True))
    with pytest.raises(Error, match="only supported on actual IPU hardware"):
        counting.compile(torch.ones(2))


def test_there_is_a_tick_for_each_micro_batch():
    executor = poptorch.inferenceModel(Scale().eval(), options(di=4, mode=poptorch.OutputMode.EveryN, period=2))
    assert executor.getLatency() == (0.0, 0.0, 0.0)
    executor(torch.ones(4))
    counters = executor.getPerfCounters()
    assert [len(ticks) for ticks in counters["input"]] == [4]
    assert [len(ticks) for ticks in counters["output_complete"]] == [2, 2]
    low, high, mean = executor.getLatency()
    assert 0 <= low <= mean <= high
    assert executor.getHostIpuLatency() == executor.getIpuHostLatency() == (0.0, 0.0, 0.0)


KINDS = poptorch.CommGroupType
ONE, EACH = poptorch.VariableRetrievalMode.OnePerGroup, poptorch.VariableRetrievalMode.AllReplicas


@pytest.mark.parametrize(
    ("kind", "shards", "retrieval", "expected"),
    [
        (KINDS.NoGrouping, 0, EACH, [1, 2, 3, 4]),
        (KINDS.Consecutive, 2, ONE, [1, 1, 2, 2]),
        (KINDS.Orthogonal, 2, ONE, [1, 2, 1, 2]),
    ],
)
def test_replicas_have_weights_of_their_own(kind, shards, retrieval, expected):
    model = Scale().eval()
    model.w = torch.nn.Parameter(torch.arange(1.0, 1 + len({*expected}))[:, None])
    executor = poptorch.inferenceModel(model, options(replicas=4))
    executor.w.replicaGrouping(kind, shards, retrieval)
    assert executor(torch.ones(4))[0].tolist() == expected and torch.equal(executor.w, model.w)


def test_groups_of_replicas_train_weights_of_their_own():
    def forward(self, x):
        return poptorch.identity_loss((x * self.w).square(), "sum")

    model = Function(forward)
    model.w = torch.nn.Parameter(torch.tensor([[1.0], [2.0]]))
    plain = model.w.detach().clone().requires_grad_()
    executor = poptorch.trainingModel(model, options(replicas=2, ga=2), poptorch.optim.Adam(model.parameters(), lr=0.1))
    executor.w.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    x = torch.arange(1.0, 5.0)
    executor(x)
    ((x.reshape(2, 2) * plain.reshape(1, 2)) ** 2).mean(0).sum().backward()
    torch.optim.Adam([plain], lr=0.1).step()
    torch.testing.assert_close(model.w.detach(), plain.detach())
    assert executor._optimizer.state_dict()["ipu_state"]["Accl1___w"].shape == (2, 1)


def test_groups_that_do_not_fit_are_refused():
    executor = poptorch.trainingModel(Scale(), options(replicas=2))
    with pytest.raises(Error, match="groups of 3 do not divide 2 replicas"):
        executor.w.replicaGrouping(KINDS.Consecutive, 3, ONE)
    with pytest.raises(Error, match=r"a value of each of 2 replicas has no room .* 1 groups"):
        executor.w.replicaGrouping(KINDS.All, 0, EACH)
    executor.w.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    with pytest.raises(Error, match=r"w is \[1\], and 2 groups of replicas have values of their own"):
        executor(torch.ones(2))
    scalar = Function(lambda self, x: x)
    scalar.w = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(Error, match="Scalars cannot be passed as per-replica weight tensor values"):
        poptorch.inferenceModel(scalar).w.replicaGrouping(KINDS.NoGrouping, 0, ONE)


# The other of two processes that train together: it has the second half of every micro-batch.
SECOND = """
import sys
sys.path.insert(0, {tests!r})
import test_poptorch_executor as tests
tests.trained_in_part(1)
"""


def trained_in_part(rank):
    """Train as one of two processes, on its rows; return the model."""
    opts = options(ga=2)
    opts.Distributed.configureProcessId(rank, 2)
    model = Loss()
    executor = poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = (torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2))
    executor(x[rank * 4 : rank * 4 + 4], y[rank * 4 : rank * 4 + 4])
    return model


def test_processes_train_together(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    script = SECOND.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script]) as second:
        try:
            model, plain = trained_in_part(0), Loss()
            x, y = (torch.randn(8, n, generator=torch.Generator().manual_seed(n)) for n in (3, 2))
            plainly_trained(plain, (x, y), updates=1, micro_batches=4)
            for name, weight in plain.named_parameters():
                torch.testing.assert_close(model.get_parameter(name).detach(), weight.detach())
            assert second.wait(timeout=300) == 0
        finally:
            second.kill()
            torch.distributed.destroy_process_group()


def test_processes_that_do_not_know_where_to_meet_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    opts = options()
    opts.Distributed.configureProcessId(0, 2)
    with pytest.raises(Error, match="2 processes train together, and they do not know where to meet: set"):
        poptorch.trainingModel(Loss(), opts)


def test_hooks_run_around_recording():
    seen = []
    with pytest.raises(RuntimeError, match="Pre-compile hook must be callable"):
        poptorch.registerPreCompileHook(1)
    with pytest.raises(RuntimeError, match="Post-compile hook must be callable"):
        poptorch.registerPostCompileHook(1)
    handles = [
        poptorch.registerPreCompileHook(lambda: seen.append("before")),
        poptorch.registerPostCompileHook(lambda: seen.append("after")),
    ]
    try:
        with pytest.raises(Error):
            infer(lambda _, x: x.item(), torch.ones(1))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["before", "after"]
    infer(lambda _, x: x, torch.ones(1))
    assert len(seen) == 2


# 2.9.4 and 2.9.5: the optimizer of an executor


def test_attributes_change_when_an_optimizer_is_set():
    executor, _, batch, _ = trained(options(), lambda p: torch.optim.SGD(p, lr=0.1))
    optimizer, weight = executor._optimizer, executor.model.fc.weight
    optimizer.param_groups[0]["lr"] = 0.0
    before = weight.detach().clone()
    executor(*batch)
    assert not torch.equal(weight, before)
    executor.setOptimizer(optimizer)
    before = weight.detach().clone()
    executor(*batch)
    assert torch.equal(weight, before)
    with pytest.raises(AssertionError, match="Unsupported optimizer type"):
        executor.setOptimizer(torch.optim.Adagrad(executor.model.parameters()))


def test_gradients_accumulate_in_half_precision_where_an_optimizer_says_so():
    half = lambda p: poptorch.optim.SGD(p, lr=1.0, accum_type=torch.float16)  # noqa: E731
    executor, plain, batch, _ = trained(options(ga=2), half)
    strategy = executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy is poptorch.MeanReductionStrategy.Running
    first, second = (
        torch.autograd.grad(plain(*part)[1] / 2, plain.fc.bias)[0]
        for part in zip(*(t.chunk(2) for t in batch), strict=True)
    )
    expected = (first.half().float() + second).half().float()
    assert torch.equal(plain.fc.bias - expected, executor.model.fc.bias) and not torch.equal(first + second, expected)
    executor, *_ = trained(options(), lambda p: poptorch.optim.SGD(p, lr=1.0))
    with pytest.raises(ValueError, match="Invalid optimizer: the new optimizer would require changing"):
        executor.setOptimizer(half(executor.model.parameters()))


def test_a_state_goes_on_in_another_executor():
    make = lambda p: poptorch.optim.Adam(p, lr=0.1)  # noqa: E731
    executor, _, batch, _ = trained(options(), make)
    state = copy.deepcopy(executor._optimizer.state_dict())
    assert {"Accl1___fc.weight", "Accl2___fc.bias", "Step___fc.weight"} <= state["ipu_state"].keys()
    assert state["ipu_param"]["learningRate___specific___fc.bias"].item() == pytest.approx(0.1)
    again = Loss()
    again.load_state_dict(executor.model.state_dict())
    optimizer = make(again.parameters())
    optimizer.load_state_dict(state)
    other = poptorch.trainingModel(again, options(), optimizer)
    executor(*batch), other(*batch)
    torch.testing.assert_close(dict(again.named_parameters()), dict(executor.model.named_parameters()))
