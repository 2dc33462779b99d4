# SPDX-License-Identifier: Apache-2.0
"""`Leaves`: the leaves of what a model returns, some of which a program computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...capture.capture import Capture
from ...runtime.program import Returned


class Leaves:
    """The leaves of what the model returns: tensors, which the program returns, and others."""

    def __init__(self, captured: Capture, returned: Returned) -> None:
        self._outputs, self._returned = captured.outputs, returned
        values = {node.name: node.meta.get("val") for node in captured.graph.nodes}
        read = [captured.outputs[i] for i in sorted(returned.leaves)]
        self.computed = [*dict.fromkeys(value for value in read if isinstance(value, str))]
        self.shapes = {name: tuple(values[name].shape) for name in self.computed}

    def of_micro_batch(self, outputs: Mapping[str, torch.Tensor], number: int) -> list[Any]:
        """Return the leaves of one micro-batch: copies, for the next call writes where these are."""
        leaves = [
            (outputs[value][number].clone() if value in outputs else None) if isinstance(value, str) else value.value
            for value in self._outputs
        ]
        return self._returned.of(leaves)
