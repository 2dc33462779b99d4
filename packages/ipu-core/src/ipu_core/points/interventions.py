# SPDX-License-Identifier: Apache-2.0
"""What is done to a point: a function of its tensor, of a value of each call too, at all tokens or from a step on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import PointError
from ..validation import refuse_other_types

Function = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A change to the tensor of a point, captured into the graph of its model.

    ::

        Intervention(function=lambda z: z * 0.5, from_step=2)

    Attributes:
        function: from the point's tensor to one of the same shape and dtype, in operations of torch.
        takes_value: whether it takes a value as well, which each call gives: ``interventions={name: value}``.
        from_step: while generating, leave the tokens before this step as they are: step 0 chooses the first new token,
            from the last one of the prompt.

    Raises:
        TypeError: what is no function, or no number of a step.
    """

    function: Function
    takes_value: bool = False
    from_step: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"`{self.function!r}` is a {type(self.function).__name__}: give a function of a tensor")
        refuse_other_types({"from_step": self.from_step}, int, instead="the number of a step, or None", optional=True)

    def applied(self, tensor: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
        """Return what the function makes of a tensor."""
        return self.function(tensor, value) if self.takes_value else self.function(tensor)


def intervention_of(given: Any) -> Intervention:
    """Return a function as an intervention, and an intervention as it is."""
    return given if isinstance(given, Intervention) else Intervention(function=given)


def replaced_by(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the value in the place of the tensor: patching from another run."""
    return value


def given(function: Function = replaced_by, *, from_step: int | None = None) -> Intervention:
    """Return an intervention with a value that is given at each call; by default the value takes the tensor's place.

    ::

        executor = inference_model(model, interventions={"blocks.3.hook_resid_pre": points.given()})
        executor(input_ids=ids, interventions={"blocks.3.hook_resid_pre": other.activations["blocks.3.hook_resid_pre"]})

    Args:
        function: of the tensor and the value. A value has as many rows as the batch, and is cut as it is.
        from_step: as for `Intervention`.
    """
    return Intervention(function=function, takes_value=True, from_step=from_step)


@dataclass(frozen=True, eq=False)
class Added:
    """Adds a vector, times a number."""

    vector: torch.Tensor | None
    scale: float

    def __call__(self, tensor: torch.Tensor, value: torch.Tensor | None = None) -> torch.Tensor:
        """Add it, or the value where there is no vector."""
        vector = value if self.vector is None else self.vector
        assert vector is not None
        return tensor + self.scale * vector.to(tensor.dtype)


def steer(vector: torch.Tensor | None = None, *, scale: float = 1.0, from_step: int | None = None) -> Intervention:
    """Return an intervention that adds a vector at a point.

    ::

        generation_model(model, interventions={"blocks.6.hook_resid_post": points.steer(vector, from_step=1)})

    Args:
        vector: what is added, of a shape that broadcasts to the point's; without one each call gives its own, such as
            [rows, 1, d_model] for another vector in each row.
        scale: what it is multiplied by.
        from_step: as for `Intervention`.

    Raises:
        PointError: a vector that requires a gradient, which a graph that holds it as a constant would lose.
    """
    if vector is not None and vector.requires_grad:
        raise PointError(
            f"`vector` of shape {list(vector.shape)} requires a gradient, and a captured graph holds it as a constant: "
            "give `vector.detach()`, or make it a parameter of the model"
        )
    return Intervention(function=Added(vector, scale), takes_value=vector is None, from_step=from_step)
