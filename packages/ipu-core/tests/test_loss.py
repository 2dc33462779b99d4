# SPDX-License-Identifier: Apache-2.0
"""Which value training takes the gradient of: marked, named, or by convention."""

import pytest
import torch
from ipu_core import IPUConfig, identity_loss, inference_model, to_pipelined, training_model
from ipu_core.errors import BatchError, LossError
from ipu_core.schedule import SCHEDULES
from ipu_core.testing import compositions
from models import Chain, Marked, MarkedUnreturned, Skip, batch, make

pytestmark = pytest.mark.usefixtures("no_plugins")


def doubles(rows=8):
    return {name: tensor.double() for name, tensor in batch(rows).items()}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(ours, theirs):
    for (name, our), their in zip(gradients(ours).items(), gradients(theirs).values(), strict=True):
        if their is None:
            assert our is None, name
        else:
            torch.testing.assert_close(our, their, atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 2.0), ("sum", 6.0)])
def test_marking_reduces_and_changes_nothing_else(reduction, expected):
    value = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    marked = identity_loss(value, reduction)
    assert marked.item() == expected
    marked.backward()
    assert value.grad.sum() == (1 if reduction == "mean" else 3)
    assert torch.equal(identity_loss(value), value)
    assert identity_loss(value).data_ptr() != value.data_ptr()


def test_marking_is_differentiated_as_the_identity():
    value = torch.randn(3, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(identity_loss, (value,))
    assert torch.autograd.gradgradcheck(identity_loss, (value,))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match=r"`reduction='men'` is not one of .* did you mean `mean`"):
        identity_loss(torch.ones(()), "men")


def plain_gradients(cls, inputs):
    """Return a plain model with the gradients of what it marks, found by what it computes it from."""
    plain = make(cls).double()
    hidden = plain.layers[0](plain.inner(inputs["x"]))
    loss = (hidden.mean(-1) - inputs["y"]).pow(2).mean()
    if cls is MarkedUnreturned:
        loss = loss + plain(**inputs)["prediction"].pow(2).sum()
    loss.backward()
    return plain


@pytest.mark.parametrize("cls", [Marked, MarkedUnreturned])
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
def test_the_marked_value_is_the_loss_wherever_the_cuts_are(cls, recompute):
    inputs = doubles()
    plain = plain_gradients(cls, inputs)
    for split in compositions(3):
        model = make(cls).double()
        ipu_config = IPUConfig(layers_per_ipu=split, recompute_checkpoint_every_layer=recompute)
        executor = training_model(to_pipelined(model, ipu_config))
        for _ in range(2):
            model.zero_grad()
            outputs = executor(**inputs)
            assert_same_gradients(model, plain)
        for name, value in plain(**inputs).items():
            torch.testing.assert_close(outputs[name], value.detach())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_marked_value_is_the_loss_under_every_schedule(schedule):
    plain = make(Marked).double()
    inputs = doubles(10)
    plain(**inputs)["early"].backward()
    model = make(Marked).double()
    ipu_config = IPUConfig(layers_per_ipu=[1, 1, 1], schedule=schedule, gradient_accumulation_steps=5)
    training_model(to_pipelined(model, ipu_config))(**inputs)
    assert_same_gradients(model, plain)


def test_a_marked_loss_that_is_returned_is_selected_as_the_loss():
    outputs = training_model(to_pipelined(make(Marked), IPUConfig()), outputs=["loss"])(**batch())
    assert [name for name, value in outputs.items() if value is not None] == ["early"]
    with pytest.raises(BatchError, match=r"marks as its loss is not among what it returns, \['metric', 'prediction'\]"):
        training_model(to_pipelined(make(MarkedUnreturned), IPUConfig()), outputs=["loss"])(**batch())


def test_marking_changes_nothing_in_inference():
    model = make(Marked).eval()
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])))(**batch())
    for name, value in model(**batch()).items():
        assert torch.equal(outputs[name], value)


class TwoMarks(Chain):
    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return identity_loss(loss), identity_loss(prediction.sum())


class MarkedVector(Chain):
    def forward(self, x, y):
        loss, prediction = super().forward(x, y)
        return loss, identity_loss(prediction)


class Scalars(Skip):
    """Several scalars, none called `loss`."""

    def forward(self, x, y):
        outputs = super().forward(x, y)
        return {"first": outputs["loss"], "second": outputs["prediction"].sum(), "rows": outputs["prediction"]}


class TwoScalars(Scalars):
    def forward(self, x, y):
        return tuple(super().forward(x, y).values())


class ParameterFirst(Chain):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        return self.scale, super().forward(x, y)[1] * self.scale


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            TwoMarks,
            "marks 2 values as its loss, none of which is computed from another: "
            "`identity_loss`, `identity_loss_1`: mark only the final one",
        ),
        (MarkedVector, r"marks a torch.float32 of shape \[8\] as its loss, .*: reduce it, as `identity_loss\(value"),
        (
            Scalars,
            r"returns no output called `loss`, it returns the scalars \['first', 'second'\] among .*'rows'\]: "
            r"choose one with `training_model\(..., loss='first'\)`, or mark",
        ),
        (
            TwoScalars,
            r"returns no output called `loss`, it returns the scalars \['0', '1'\] among \['0', '1', '2'\]: choose one",
        ),
        (ParameterFirst, "returns no loss for this batch"),
    ],
)
def test_no_loss_or_several_are_refused(cls, message):
    with pytest.raises(LossError, match=f"`Pipelined{cls.__name__}` {message}"):
        training_model(to_pipelined(make(cls), IPUConfig())).compile(**batch())


@pytest.mark.parametrize(("cls", "name"), [(Scalars, "second"), (TwoScalars, "1"), (Skip, "loss")])
def test_an_output_is_chosen_as_the_loss_by_name(cls, name):
    plain, model = make(cls).double(), make(cls).double()
    outputs = plain(**doubles())
    (outputs[int(name)] if cls is TwoScalars else outputs[name]).backward()
    training_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])), loss=name)(**doubles())
    assert_same_gradients(model, plain)


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    [
        (Scalars, "frist", r"returns \['first', 'second', 'rows'\] .*, and `loss` names `frist`, did you mean `first`"),
        (Scalars, "rows", r"the output `rows` .* is no floating point scalar .* \['first', 'second'\]: choose one"),
        (Marked, "metric", "marks its loss with `identity_loss`, and `loss='metric'` chooses an output: leave"),
    ],
)
def test_a_name_that_is_no_loss_is_refused_with_what_is_there(cls, name, message):
    with pytest.raises(LossError, match=message):
        training_model(to_pipelined(make(cls), IPUConfig()), loss=name).compile(**batch())
