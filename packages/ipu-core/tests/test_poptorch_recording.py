# SPDX-License-Identifier: Apache-2.0
"""How the PopTorch interface records a forward: values, buffers, losses and blocks (2.5 to 2.7 of the contract)."""

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from ipu_core.migration.poptorch.pipeline_rules import check_pipeline

Error = poptorch.Error


class Model(torch.nn.Module):
    """A forward of the test's own, over two layers."""

    def __init__(self, function, **buffers):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.function(self, x)


def options(di=1, ga=1, replicas=1, strategy=None):
    made = poptorch.Options().deviceIterations(di).replicationFactor(replicas).autoRoundNumIPUs()
    made.Training.gradientAccumulation(ga)
    return made.setExecutionStrategy(strategy or poptorch.ShardedExecution())


def infer(function, x, opts=None, **buffers):
    return poptorch.inferenceModel(Model(function, **buffers).eval(), opts or options())(x)


def train(function, x, opts=None, **buffers):
    model = Model(function, **buffers)
    return model, poptorch.trainingModel(model, opts or options())(x)


# 2.5


def test_a_forward_is_recorded_once():
    seen = []

    def forward(self, x):
        seen.append((x.shape, poptorch.isRunningOnIpu()))
        return x + len(seen)

    model = poptorch.inferenceModel(Model(forward).eval(), options(di=2))
    x = torch.zeros(4, 2)
    assert model(x).tolist() == model(x).tolist() == [[1, 1]] * 4
    assert seen == [(torch.Size([2, 2]), True)] and not poptorch.isRunningOnIpu()


def test_new_tensors_go_to_the_ipu_and_constants_are_moved_there(caplog):
    host = torch.tensor([1.0, 2.0])
    with caplog.at_level("WARNING", "poptorch::python"):
        found = infer(
            lambda _, x: x + torch.ones(2) + torch.zeros(2, device="ipu") + host.to("ipu") + host.to(x.device),
            torch.zeros(1, 2),
        )
    assert found.tolist() == [[3, 5]]
    assert "No device set in torch.ones(): forcing to IPU" in caplog.text and "torch.zeros()" not in caplog.text


def test_a_tensor_of_the_graph_has_no_64_bits_of_a_fraction():
    seen = []

    def forward(_, x):
        wide = x.double() + torch.ones(2, dtype=torch.float64, device="ipu")
        seen.extend((wide.dtype, x.to(torch.float64).dtype, host.to("ipu").dtype))
        return wide * host.to("ipu")

    host = torch.full((2,), 3.0, dtype=torch.float64)
    assert infer(forward, torch.zeros(1, 2)).tolist() == [[3, 3]]
    assert seen == [torch.float32] * 3


def test_an_operator_that_poptorch_does_not_lower_is_refused_by_name():
    with pytest.raises(Error, match=r"Unsupported ops found in compiled model: \[aten::linalg_inv\w*\]. Not all"):
        infer(lambda _, x: torch.linalg.inv(x) + x.tril(), torch.eye(2))


def test_a_tensor_of_the_host_is_not_mixed_in():
    host = torch.tensor([1, 2])
    message = (
        r"Expected an IPU tensor but got tensor\(device=cpu, shape=\[2\], dtype=Long\)(.|\n)*cpu_tensor.to\(\"ipu\"\)"
    )
    with pytest.raises(Error, match=message):
        infer(lambda _, x: x + host, torch.zeros(1, 2))
    assert infer(lambda _, x: x + torch.tensor(2.0), torch.zeros(1, 2)).tolist() == [[2, 2]]


@pytest.mark.parametrize(
    "look", [lambda x: x.sum().item(), lambda x: bool(x.sum()), lambda x: int(x.sum()), lambda x: x.tolist()]
)
def test_a_forward_that_looks_at_values_is_refused_and_the_model_is_as_before(look):
    model = Model(lambda self, x: (look(self.first(x)), x)[1]).eval()
    before = dict(model.named_parameters())
    with pytest.raises(Error, match="aten::item is only supported in eager mode, but was intercepted in"):
        poptorch.inferenceModel(model)(torch.ones(1, 2))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_shapes_that_depend_on_values_are_refused():
    with pytest.raises(Error, match="depends on the values of tensors"):
        infer(lambda _, x: x.nonzero(), torch.ones(1, 2))


def test_integer_buffers_are_constants_and_others_persist_with_every_micro_batch():
    def forward(self, x):
        self.count += 1
        self.seen += 1
        return x + self.count + self.seen

    buffers = {"count": torch.zeros(1, dtype=torch.int32), "seen": torch.zeros(1)}
    model = poptorch.inferenceModel(Model(forward, **buffers).eval(), options(di=2))
    x = torch.zeros(2, 2)
    assert model(x)[:, 0].tolist() == [2, 3] and model(x)[:, 0].tolist() == [4, 5]
    assert (model.count.item(), model.seen.item()) == (0, 0)
    model.copyWeightsToHost()
    assert (model.count.item(), model.seen.item()) == (0, 4)


def test_replicas_that_change_buffers_keep_their_own():
    def forward(self, x):
        self.seen += x.sum()
        return x + self.seen

    x = torch.tensor([[1.0, 0], [2, 0]])
    with pytest.raises(Error, match=r"PopTorch does not support broadcasting buffers(.|\n)*broadcastBuffers\(False\)"):
        infer(forward, x, options(replicas=2), seen=torch.zeros(1))
    apart = options(replicas=2).broadcastBuffers(False)
    model = poptorch.inferenceModel(Model(forward, seen=torch.zeros(1)).eval(), apart)
    assert model(x)[:, 1].tolist() == [1, 2] and model(x)[:, 1].tolist() == [2, 4]
    model.copyWeightsToHost()
    assert model.seen.item() == 2


def _set_anew(self, x):
    self.seen = self.seen + 1
    return x + self.seen


def _removed(self, x):
    seen = self.seen
    del self.seen
    return x + seen


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_set_anew, "Buffer seen is reassigned within the model when calling the forward method"),
        (_removed, "Buffer seen is removed from the model when calling the forward method"),
    ],
)
def test_a_buffer_that_is_set_anew_or_removed_is_refused(forward, message):
    model = Model(forward, seen=torch.zeros(1)).eval()
    seen = model.seen
    with pytest.raises(Error, match=message):
        poptorch.inferenceModel(model)(torch.zeros(1, 2))
    assert model.seen is seen


def test_tied_weights_stay_one_and_frozen_ones_as_they_are():
    def forward(self, x):
        x = self.second(self.first(x).detach() * 0 + self.first(x))
        return x, poptorch.identity_loss(x, "sum")

    model = Model(forward)
    model.second.weight = model.first.weight
    model.first.bias.requires_grad_(False)
    plain, frozen = model.first.weight.detach().clone(), model.first.bias.clone()
    x = torch.ones(1, 2)
    expected = plain.requires_grad_()
    hidden = torch.nn.functional.linear(x, expected, frozen)
    torch.nn.functional.linear(hidden, expected, model.second.bias.detach()).sum().backward()
    poptorch.trainingModel(model)(x)
    assert model.second.weight is model.first.weight and torch.equal(model.first.bias, frozen)
    torch.testing.assert_close(model.first.weight.detach(), plain.detach() - 0.01 * expected.grad)
    assert model.first.weight.grad is None


def test_dtypes_promote_as_in_torch_and_inputs_have_no_gradients():
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.warns(UserWarning, match="requires_grad=True"):
        found = infer(lambda _, x: x.half() + x, x)
    assert found.dtype is torch.float32 and not found.requires_grad
    assert infer(lambda _, x: x.half() * 3, x.detach()).dtype is torch.float16


def test_views_may_be_changed_in_place():
    def forward(self, x):
        y = x.clone()
        y[:, 0] += 5
        return y, x[0].unsqueeze(0)

    assert [part.tolist() for part in infer(forward, torch.zeros(1, 2))] == [[[5, 0]], [[0, 0]]]


# 2.6


def test_one_loss_is_final():
    loss = torch.nn.functional

    def none(self, x):
        return (self.first(x) ** 2).sum()

    def several(self, x):
        return loss.mse_loss(self.first(x), x) + loss.l1_loss(self.first(x), x)

    x = torch.ones(1, 2)
    with pytest.raises(Error, match="Couldn't find a loss in graph!"):
        train(none, x)
    with pytest.raises(Error, match="Multiple independent losses found in graph. Graph must have one final loss"):
        train(several, x)
    model, found = train(lambda self, x: poptorch.identity_loss(several(self, x), "none"), x)
    torch.testing.assert_close(found, several(Model(None), x).detach())
    assert not torch.equal(model.first.weight, Model(None).first.weight)
    infer(none, x)


def test_a_loss_of_several_elements_is_trained_on_their_sum():
    x = torch.ones(3, 2)
    apart, _ = train(lambda self, x: poptorch.identity_loss(self.first(x) ** 2, "none"), x)
    together, _ = train(lambda self, x: poptorch.identity_loss(self.first(x) ** 2, "sum"), x)
    torch.testing.assert_close(apart.first.weight, together.first.weight)


# 2.7


def graph_of(function, strategy, x=None):
    """Return the executor of a recorded forward, on as many iterations as its stages take."""
    model = poptorch.inferenceModel(Model(function).eval(), options(di=8, strategy=strategy))
    model.compile(torch.ones(8, 2) if x is None else x)
    return model


def ipus_of(model):
    return [graph.ipu for graph in model._program.interpreter.stage_graphs]


def in_blocks(self, x):
    poptorch.Block.start("a", ipu_id=0)
    x = self.first(x)
    poptorch.Block.start("b", ipu_id=2)
    return self.second(x)


def test_blocks_begin_at_modules_and_are_named_and_removed():
    model = Model(lambda self, x: self.second(self.first(x)))
    assert poptorch.BeginBlock(model.second, ipu_id=1) is model.second
    with pytest.raises(Error, match="module has already been assigned to a block"):
        poptorch.BeginBlock(model.second, ipu_id=1)
    with pytest.raises(Error, match="module is not an instance of torch.nn.Module or function"):
        poptorch.BeginBlock(3)
    x = torch.ones(8, 2)
    plain = model(x)
    executor = poptorch.inferenceModel(model.eval(), options(di=8, strategy=poptorch.PipelinedExecution()))
    torch.testing.assert_close(executor(x), plain)
    assert ipus_of(executor) == [0, 1] and executor._num_ipus == 2
    assert "BeginBlock(user_id=0, ipu_id=1)" in repr(executor)
    poptorch.removeBlocks(model)
    assert "BeginBlock" not in repr(executor) and poptorch.BeginBlock(model.second) is model.second
    with pytest.raises(AssertionError, match="torch.nn.Module"):
        poptorch.removeBlocks(3)
    assert poptorch.BeginBlock(lambda x: x + 1, ipu_id=1)(1) == 2


def test_what_follows_a_block_that_was_left_needs_another():
    def forward(self, x):
        with poptorch.Block("a", ipu_id=0), poptorch.Block("b", ipu_id=1):
            x = self.first(x)
        return self.second(x)

    with pytest.raises(Error, match="No active Block, all the ops must belong to a Block"):
        infer(forward, torch.ones(1, 2))

    @poptorch.BlockFunction("c", ipu_id=1)
    def inside(self, x):
        return self.second(x)

    assert infer(inside, torch.ones(1, 2)).shape == (1, 2)


def test_strategies_place_blocks():
    stage, auto = poptorch.Stage, poptorch.AutoStage
    cases = [
        (poptorch.PipelinedExecution(), [0, 2]),
        (poptorch.ShardedExecution(auto.SameAsIpu), [0, 2]),
        (poptorch.PipelinedExecution(stage("a").ipu(1), stage("b").ipu(3)), [1, 3]),
        (poptorch.PipelinedExecution("a", ["b"]), [0, 2]),
        (poptorch.SerialPhasedExecution("a", poptorch.Phase("b").ipus(1)), [0, 1]),
    ]
    assert [ipus_of(graph_of(in_blocks, strategy)) for strategy, _ in cases] == [ipus for _, ipus in cases]


def test_stages_that_count_begin_at_one_and_blocks_come_back_to_theirs():
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    assert [strategy.ipu_of(name, None) for name in ("a", "b", "a")] == [1, 2, 1]
    assert strategy.next_auto_id() == "0" and strategy.next_auto_id() == "1"
    strategy.reset_auto_ids()
    assert strategy.next_auto_id() == "0"


def test_blocks_that_no_strategy_places_are_refused():
    with pytest.raises(AssertionError, match="SameAsIpu was selected but no IPU was specified for block a"):
        poptorch.PipelinedExecution().ipu_of("a", None)
    with pytest.raises(AssertionError, match=r"Unknown Block 'c' list of expected Blocks: \['a', 'b'\]"):
        poptorch.PipelinedExecution("a", "b").ipu_of("c", 0)
    with pytest.raises(AssertionError, match="b associated with more than one stage"):
        poptorch.PipelinedExecution("a", ["b"], poptorch.Stage("b"))
    with pytest.raises(AssertionError, match="There is currently no AutoStage for PhasedExecution"):
        poptorch.SerialPhasedExecution(poptorch.AutoStage.AutoIncrement)
    parallel = poptorch.ParallelPhasedExecution("a", poptorch.Phase("b").ipus(2))
    assert parallel.ipu_of("a", None) == 0
    with pytest.raises(Error, match="odd phases must be on odd IPUs"):
        parallel.ipu_of("b", None)
    assert [s.backend for s in (poptorch.PipelinedExecution(), poptorch.ShardedExecution(), parallel)] == [0, 1, 2]
    with pytest.raises(AssertionError, match="Unknown Block 'b'"):
        infer(in_blocks, torch.ones(1, 2), options(strategy=poptorch.ShardedExecution("a")))


def test_a_pipeline_has_a_micro_batch_for_each_stage():
    def forward(self, x):
        for number in (0, 1, 2, 3):
            poptorch.Block.start(str(number), ipu_id=number)
            x = x + self.shift[number]
        return x, poptorch.identity_loss(x, "mean")

    model = Model(forward)
    model.shift = torch.nn.ParameterList([torch.zeros(2) for _ in range(4)])
    executor = poptorch.trainingModel(model, options(ga=7, strategy=poptorch.PipelinedExecution()))
    executor.compile(torch.ones(7, 2))
    recorded = executor._program.recorded
    fewer = options(di=3, ga=6, strategy=poptorch.PipelinedExecution())
    with pytest.raises(Error, match=r"gradientAccumulation must be .* \(7\) .* model with 4 pipeline stages"):
        check_pipeline(recorded, fewer, training=True)
    with pytest.raises(Error, match=r"deviceIterations must be .* \(4\) when using PopTorch.PipelinedExecution"):
        check_pipeline(recorded, fewer, training=False)
    check_pipeline(recorded, options(ga=1), training=True)


def test_a_weight_of_a_pipeline_is_read_on_one_ipu():
    def forward(self, x):
        x = self.first(x)
        poptorch.Block.start("a", ipu_id=1)
        return self.first(x)

    message = "Can not copy variable tensor first.weight between virtual graphs when pipelining"
    with pytest.raises(Error, match=message) as error:
        graph_of(forward, poptorch.PipelinedExecution())
    assert error.value.type == "popart_exception"
    assert ipus_of(graph_of(forward, poptorch.ShardedExecution())) == [0, 1]


def back_and_forth(self, x):
    poptorch.Block.start("a", ipu_id=1)
    x = self.first(x)
    poptorch.Block.start("b", ipu_id=0)
    return self.second(x)


def test_values_of_a_pipeline_go_to_later_stages_whatever_ipus_these_are_on():
    with pytest.raises(Error, match=r"of pipeline stage 1 is read in stage 0: values of a pipeline go to later"):
        graph_of(back_and_forth, poptorch.PipelinedExecution())
    stages = [poptorch.Stage("a").ipu(1), poptorch.Stage("b").ipu(0)]
    assert ipus_of(graph_of(back_and_forth, poptorch.PipelinedExecution(*stages))) == [1, 0]
    counted = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    assert ipus_of(graph_of(back_and_forth, counted)) == [1, 0]
    assert ipus_of(graph_of(back_and_forth, poptorch.ShardedExecution())) == [1, 0]


def test_a_slice_has_elements():
    with pytest.raises(Error, match=r"Zero-sized tensors are unsupported \(Got shape \[1, 0\]\)"):
        infer(lambda _, x: (x[:, 1:1], x), torch.ones(1, 2))
    assert infer(lambda _, x: x[:, 1:9], torch.ones(1, 2)).shape == (1, 1)


def test_a_tensor_of_the_graph_prints_no_values(capsys):
    infer(lambda _, x: (print(x), x)[1], torch.ones(1, 2))
    assert capsys.readouterr().out.startswith("tensor(<unavailable>, device='ipu:0', size=[1, 2]")


def test_a_pipeline_trains_as_the_plain_model():
    def forward(self, x):
        return (y := in_blocks(self, x)), poptorch.identity_loss(y.square(), "mean")

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    models = [
        train(forward, x, options(ga=3, strategy=strategy))[0]
        for strategy in (poptorch.PipelinedExecution(), poptorch.ShardedExecution())
    ]
    plain = Model(lambda self, x: self.second(self.first(x)).square().mean())
    plain(x).backward()
    torch.optim.SGD(plain.parameters(), lr=0.01).step()
    for model in models:
        torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()))
