# SPDX-License-Identifier: Apache-2.0
"""Reads the weights of a transformers model back from an ONNX file, dequantised where they are int8."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
import torch
from onnx import numpy_helper

QUANTIZED = "_quantized"


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the parameters under their names in transformers.

    Most are constants under their own names. The weight of a linear layer is stored transposed, under a name the
    exporter made up, and only the product that reads it is named after the layer.
    """
    graph = onnx.load(path).graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    values = {**constants, **dict(_dequantized(graph, constants))}
    state = {}
    for name, value in constants.items():
        if name.endswith(QUANTIZED) and not name.startswith(("onnx::", "/")):
            plain = name.removesuffix(QUANTIZED)
            state[plain] = _real(value, constants[f"{plain}_scale"], constants[f"{plain}_zero_point"])
        elif not name.startswith(("onnx::", "/")) and not name.endswith(("_scale", "_zero_point")):
            state[name] = value
    for node in graph.node:
        if node.op_type == "MatMul" and (weight := values.get(node.input[1])) is not None and weight.ndim == 2:
            layer = node.name.rpartition("/")[0].strip("/").replace("/", ".")
            state[f"{layer}.weight"] = weight.T
    return {name: torch.from_numpy(numpy.ascontiguousarray(value)) for name, value in state.items()}


def _dequantized(graph, constants):
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            scale = constants[node.input[1]]
            zero = constants[node.input[2]] if len(node.input) > 2 else numpy.zeros_like(scale)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            yield node.output[0], _real(constants[node.input[0]], scale, zero, axis=axis)


def _real(quantized, scale, zero, *, axis=1):
    if scale.size > 1:  # one for each channel
        shape = [-1 if i == axis else 1 for i in range(quantized.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (quantized.astype(numpy.float32) - zero.astype(numpy.float32)) * scale
