# SPDX-License-Identifier: Apache-2.0
"""Batches of the PopTorch interface: rows, types, outputs and anchors (2.2 of the contract)."""

import collections

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from poptorch_modules import Scale, infer, options, plainly_trained, trained

Error = poptorch.Error
pytestmark = pytest.mark.usefixtures("pool")


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
