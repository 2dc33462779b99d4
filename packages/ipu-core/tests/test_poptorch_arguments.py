# SPDX-License-Identifier: Apache-2.0
"""Arguments of executors of the PopTorch interface (2.3 of the contract)."""

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from poptorch_modules import Function, infer

Error = poptorch.Error
pytestmark = pytest.mark.usefixtures("pool")


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
