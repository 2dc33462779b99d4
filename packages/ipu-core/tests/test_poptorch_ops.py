# SPDX-License-Identifier: Apache-2.0
"""Operations, errors and the log of the PopTorch interface (2.8 and 2.11 of the contract)."""

import logging
import math

import ipu_core.migration.poptorch as poptorch
import numpy as np
import pytest
import torch
from ipu_core.migration.poptorch import custom_ops

Error = poptorch.Error


class Model(torch.nn.Module):
    """A forward of the test's own."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, *args):
        return self.function(self, *args)


def infer(function, *args, opts=None):
    return poptorch.inferenceModel(Model(function).eval(), opts)(*args)


def test_hints_give_what_they_are_given():
    x, y = torch.ones(2, 2), torch.zeros(2, 2)
    assert poptorch.recomputationCheckpoint(x) is x
    assert poptorch.recomputationCheckpoint([x, y]) == [x, y] and poptorch.recomputationCheckpoint(x, y) == (x, y)
    with pytest.raises(ValueError, match="All inputs must be tensors"):
        poptorch.recomputationCheckpoint(x, 1)
    assert torch.equal(poptorch.nop(x), x) and poptorch.set_available_memory(x, 0.1) is x
    with pytest.raises(Error, match=r"nop must take a torch\.tensor"):
        poptorch.nop(1)
    mode = poptorch.MatMulSerializationMode.OutputChannels
    assert torch.equal(poptorch.serializedMatMul(x, x, mode, 2, True), x @ x)
    for bad in (("output_channels", 2), (mode, 2.0), (mode, 2, 1)):
        with pytest.raises(AssertionError, match="must be"):
            poptorch.serializedMatMul(x, x, *bad)
    assert poptorch.set_overlap_for_output([x], poptorch.OverlapMode.NoOverlap) == [x]
    with poptorch.Attribute(__outline={"layer": "1"}), poptorch.Attribute(__outline={"part": "2"}):
        assert poptorch.Attribute.current == {"__outline": {"layer": "1", "part": "2"}}
    assert poptorch.Attribute.current == {}
    with poptorch.NameScope("name"), pytest.raises(AssertionError, match="string"):
        poptorch.NameScope(1)


def test_transfers_do_not_overlap_with_a_pipeline():
    mode = poptorch.OverlapMode.OverlapAccumulationLoop
    with pytest.raises(Error, match="Overlapped IO is not supported with poptorch.PipelinedExecution"):
        infer(lambda _, x: poptorch.set_overlap_for_input(x, mode) + 1, torch.ones(2))


def test_transfers_that_overlap_take_io_tiles_and_return_every_micro_batch():
    mode = poptorch.OverlapMode.OverlapDeviceIterationLoop
    opts = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    x = torch.ones(2)

    def forward(_, x):
        return poptorch.set_overlap_for_output(x + 1, mode)

    with pytest.raises(Error, match="No IO tiles allocated. You must allocate at least 32 IO tiles"):
        infer(forward, x, opts=opts)
    made = opts.clone().outputMode(poptorch.OutputMode.Final)
    made.TensorLocations.numIOTiles(32)
    with pytest.raises(Error, match=r"Overlapped IO is not supported with OutputMode\.Final"):
        infer(forward, x, opts=made)
    made = made.clone().outputMode(poptorch.OutputMode.All)
    assert infer(forward, x, opts=made).tolist() == [2, 2]


def test_a_loss_is_reduced():
    x = torch.tensor([1.0, 3.0])
    found = [poptorch.identity_loss(x, reduction) for reduction in ("sum", "mean", "none")]
    assert [value.tolist() for value in found] == [4, 2, [1, 3]] and found[2] is not x
    with pytest.raises(AssertionError, match="Unsupported reduction type!"):
        poptorch.identity_loss(x, "max")


def test_slices_begin_where_a_tensor_says_and_wrap_round():
    def forward(_, x, start):
        cut = poptorch.dynamic_slice(x, 1, start, 3, 1)
        return cut, poptorch.dynamic_update(x, cut * 10, 1, start, 3), poptorch.dynamic_slice(x, 1, start, 4, 2)

    model = poptorch.inferenceModel(Model(forward).eval())
    x = torch.arange(4.0).reshape(1, 4)
    found = [value.tolist() for value in model(x, torch.tensor([3], dtype=torch.int32))]
    assert found == [[[3, 0, 1]], [[0, 10, 2, 30]], [[3, 1]]]
    assert model(x, torch.tensor([1], dtype=torch.int32))[0].tolist() == [[1, 2, 3]]
    start = torch.tensor([0])
    for args, message in [
        ((x, 1.0, start, 2, 1), r"Dimension must be an integer\."),
        ((x, 1, 0, 2, 1), "Slice start argument to dynamic_slice must be a torch.tensor"),
        ((x, 1, start, 2.0, 1), r"Size must be an integer\."),
        ((x, 1, start, 2, 1.0), r"Step must be an integer\."),
    ]:
        with pytest.raises(Error, match=message):
            poptorch.dynamic_slice(*args)
    with pytest.raises(Error, match=r"must have same dimensionality. \(2\) vs \(1\)"):
        poptorch.dynamic_update(x, x[0], 1, start, 2)
    with pytest.raises(Error, match=r"must have same dtype. \(torch.float32 vs torch.int32\)"):
        poptorch.dynamic_update(x, x.int(), 1, start, 2)


def test_loops_and_conditions_run_in_inference():
    def forward(_, x, flag):
        doubled, counted = poptorch.for_loop(3, lambda a, b: (a * 2, b + 1), [x, x])
        return [*poptorch.cond(flag.any(), lambda a: a + 10, [x], lambda a: a.neg_(), [x]), doubled, counted, x]

    model = poptorch.inferenceModel(Model(forward).eval())
    x = torch.ones(1)
    for flag, expected in ((True, [11, 8, 4, 1]), (False, [-1, 8, 4, 1])):
        assert [value.item() for value in model(x, torch.tensor([flag]))] == expected
    assert poptorch.for_loop(3, lambda a: a * 2, [x])[0].item() == 2
    assert poptorch.cond(torch.tensor(False), lambda a: a, [x], lambda a: -a, [x])[0].item() == -1
    with pytest.raises(ValueError, match="list of tensors"):
        poptorch.for_loop(3, lambda a: a, x)
    with pytest.raises(ValueError, match="input 1 is a int"):
        poptorch.cond(x, lambda a: a, [x, 1], lambda a: a, [x])
    with pytest.raises(Error, match="body of for_loop takes"):
        infer(lambda _, x: poptorch.for_loop(2, lambda a: a.int(), [x]), x)


def test_loops_conditions_and_host_functions_are_refused_in_training():
    for name, call in [
        (r"poptorch\.for_loop\(\)", lambda y: poptorch.for_loop(2, lambda a: a * 2, [y])[0]),
        (r"poptorch\.cond\(\)", lambda y: poptorch.cond(y.sum() > 0, lambda a: a, [y], lambda a: a, [y])[0]),
    ]:
        model = poptorch.trainingModel(Model(lambda s, x, call=call: poptorch.identity_loss(call(x * s.w), "sum")))
        with pytest.raises(Error, match=rf"{name} is only supported in inference\."):
            model(torch.ones(1, 2))


def test_a_function_of_the_host_is_called_with_values():
    seen = []

    def on_host(x):
        seen.append(x.tolist())
        return torch.from_numpy(np.sort(x.numpy())[::-1].copy())

    sort = poptorch.CPU(on_host, "sort")
    model = poptorch.inferenceModel(Model(lambda _, x: sort(x) * 2).eval(), poptorch.Options().deviceIterations(2))
    assert model(torch.tensor([1.0, 3, 5, 4])).tolist() == [6, 2, 10, 8]
    assert seen == [[0, 0], [1, 3], [5, 4]]
    layer = torch.nn.Linear(1, 1)
    poptorch.CPU(layer, "layer")
    assert not layer.weight.requires_grad


def test_a_printed_tensor_is_printed_for_each_micro_batch_with_its_gradient(capsys):
    def forward(self, x):
        return poptorch.identity_loss(poptorch.ipu_print_tensor(x * self.w, "product"), "sum")

    opts = poptorch.Options()
    opts.Training.gradientAccumulation(2)
    poptorch.trainingModel(Model(forward), opts)(torch.tensor([[1.0, 2], [3, 4]]))
    text = capsys.readouterr().err
    assert "product: tensor([[1., 2.]])" in text and "product: tensor([[3., 4.]])" in text
    assert text.count("product_gradient: tensor([[0.5000, 0.5000]])") == 2


def test_custom_operators_are_python_functions(monkeypatch):
    monkeypatch.setattr(custom_ops, "_REGISTRY", {})

    @poptorch.register_custom_op("Power", "test.ops", 1)
    def power(inputs, attributes):
        return [inputs[0] ** attributes["exponent"]]

    def forward(_, x, name="Power", version=1, **more):
        return poptorch.custom_op([x], name, "test.ops", version, [x], {"exponent": 3, **more})[0]

    x = torch.tensor([2.0])
    assert infer(forward, x).item() == 8 and forward(None, x).item() == 0
    with pytest.raises(Error, match=r"no operator test\.ops:Power:2; there are \['test\.ops:Power:1'\]"):
        infer(lambda s, x: forward(s, x, version=2), x)
    for key, value in (("a", None), ("a", [1, "b"]), ("ä", 1), ("a", "ä")):
        with pytest.raises(ValueError, match="attribute"):
            forward(None, x, **{key: value})


def test_convolutions_of_a_multi_conv_give_what_they_give_alone():
    first, second = torch.nn.Conv1d(1, 2, 2), torch.nn.Conv1d(1, 2, 2)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            with poptorch.MultiConv().partialsTypes(torch.half).availableMemoryProportions((0.1, 0.2)):
                return self.first(x), self.second(x)

    x = torch.ones(1, 1, 4)
    torch.testing.assert_close(poptorch.inferenceModel(Both().eval())(x), (first(x), second(x)))
    with pytest.raises(Error, match="Nested"), poptorch.MultiConv(), poptorch.MultiConv():
        pass
    with pytest.raises(ValueError, match="partialsTypes"):
        poptorch.MultiConv().partialsTypes(torch.float64)


def test_beams_of_a_ctc_head_add_up_to_the_probabilities_of_its_paths():
    probs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths = torch.tensor([4, 3])
    scores, sizes, labels = infer(
        lambda _, p, n: poptorch.ctc_beam_search_decoder(p.transpose(0, 1), n, beam_width=200, top_paths=3),
        probs.transpose(0, 1).contiguous(),
        lengths,
    )
    assert scores.shape == sizes.shape == (2, 3) and labels.shape == (2, 3, 4)
    for row in range(2):
        for path in range(3):
            target = labels[row, path, : sizes[row, path]].long()
            loss = torch.nn.functional.ctc_loss(
                probs[:, row : row + 1],
                target[None],
                lengths[row : row + 1],
                sizes[row, path : path + 1],
                reduction="sum",
            )
            assert scores[row, path].item() == pytest.approx(-loss.item(), abs=1e-5)
    assert (scores.diff(dim=1) <= 0).all() and math.exp(scores[0].logsumexp(0)) <= 1
    with pytest.raises(Error, match="top_paths 3 at most the beam_width 2"):
        poptorch.ctc_beam_search_decoder(probs, lengths, beam_width=2, top_paths=3)


def test_points():
    src = torch.tensor([[0.0, 0], [1, 0], [5, 0], [0, 0], [0, 3]])
    assert infer(lambda _, x: poptorch.fps(x, [0, 3, 5], ratio=0.5), src).tolist() == [0, 2, 3]
    x, y = torch.tensor([[0.0], [4.0]]), torch.tensor([[0.5], [3.0]])
    assert poptorch.nearest(x, y).tolist() == [0, 1]
    assert poptorch.nearest(x, y, [0, 0], torch.tensor([0, 1])).tolist() == [0, 0]
    for call, message in [
        (lambda: poptorch.fps(src[0], [0, 2]), "src must be"),
        (lambda: poptorch.fps(src, [0, 9]), "ptr"),
        (lambda: poptorch.fps(src, [0, 5], ratio=2.0), "ratio"),
        (lambda: poptorch.nearest(x, src), "as many features"),
        (lambda: poptorch.nearest(x, y, [0, 0]), "both"),
    ]:
        with pytest.raises(Error, match=message):
            call()


def test_errors_have_a_type_a_message_and_a_place():
    error = poptorch.createPoptorchError("no")
    assert (error.type, error.message, error.location, str(error)) == (
        "poptorch_py_error",
        "no",
        "",
        "'poptorch_py_error': no",
    )
    assert poptorch.poptorch_core.Error is Error and issubclass(poptorch.RecoverableError, Error)
    assert poptorch.RecoverableError("reset", recovery_action="FULL_RESET").recovery_action == "FULL_RESET"
    assert poptorch._poplar_executor.PoplarExecutor is poptorch.PoplarExecutor


def test_a_wrapped_model_is_taken_back_and_given_again():
    model = Model(None)
    executor = poptorch.trainingModel(model)
    held = poptorch._impl.unwrapModelIfNecessary(model)
    assert held is executor and type(model) is Model
    poptorch._impl.rewrapModelIfNecessary(model, held)
    assert type(model).__name__ == "PoptorchModel"


def test_levels_of_the_log():
    logger = logging.getLogger("poptorch::python")
    before = logger.level
    try:
        for level, expected in (("DEBUG", logging.DEBUG), (2, logging.INFO), ("ERR", logging.ERROR), (0, 5)):
            poptorch.setLogLevel(level)
            assert logger.level == expected
        poptorch.setLogLevel("OFF")
        assert not logger.isEnabledFor(logging.CRITICAL)
        with pytest.raises(ValueError, match="Invalid log level integer"):
            poptorch.setLogLevel(5)
        with pytest.raises(
            ValueError, match="Unknown log level: LOUD. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN"
        ):
            poptorch.setLogLevel("LOUD")
    finally:
        logger.setLevel(before)


def test_profiles_and_comparisons():
    channel = poptorch.profiling.Channel("name")
    channel.instrument(torch.nn.Linear(1, 1), "forward")
    with channel.tracepoint("point"):
        pass
    assert poptorch.testing.allclose(
        [torch.ones(2), {"a": (torch.zeros(1),)}], [torch.ones(2), {"a": (torch.zeros(1),)}]
    )
    assert not poptorch.testing.allclose([torch.ones(2)], (torch.ones(2),))
