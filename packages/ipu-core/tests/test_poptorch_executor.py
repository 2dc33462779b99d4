# SPDX-License-Identifier: Apache-2.0
"""Executors of the PopTorch interface: state and devices (2.4 of the contract), and their optimizers (2.9.4, 2.9.5)."""

import copy
import datetime
import gc
import io
import pickle

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from poptorch_modules import Function, Loss, Scale, infer, options, trained

Error = poptorch.Error
pytestmark = pytest.mark.usefixtures("pool")


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
