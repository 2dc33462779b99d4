# SPDX-License-Identifier: Apache-2.0
"""Views: how the tensor of a module becomes the one that a point shows, and what is written to it goes back.

`Point.view` names one:

- "": the tensor itself;
- "(num_attention_heads 3 d)[1]": the last axis taken apart, and one part of it. A name is an attribute of the model's
  configuration, ``d`` what is left, and the index is along the axis that is a number;
- "heads_first": the second and third axis swapped;
- "over_rows": what is one row for all, repeated for each;
- "scale" and "rms_scale": of the output of a layer norm or an RMS norm, what it divided its input by.

Shapes: B rows of the batch, T tokens, H heads, D the width of the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The tensor of a module, as a hook finds it.

    Attributes:
        tensor: the tensor.
        module: the module.
        module_input: what the module was called with; None for an input, and inside a forward.
        rows: rows of the batch.
    """

    tensor: torch.Tensor
    module: torch.nn.Module
    module_input: torch.Tensor | None
    rows: int


class View(Protocol):
    """How a tensor is shown, and written."""

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return what the user sees."""
        ...

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return the module's tensor with `value` in the place of what the user sees."""
        ...


class Same:
    """The tensor itself."""

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return the tensor."""
        return seen.tensor

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return the value."""
        return value


class HeadsFirst:
    """[B, H, T, D/H] as [B, T, H, D/H]."""

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return it with heads behind tokens."""
        return seen.tensor.transpose(1, 2)

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return it with heads before tokens."""
        return value.transpose(1, 2)


class OverRows:
    """[1, T, D] as [B, T, D]."""

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return it for each row."""
        return seen.tensor.expand(seen.rows, *seen.tensor.shape[1:])

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return the value, which may differ from row to row."""
        return value


@dataclass(frozen=True)
class Split:
    """The last axis taken apart, and a part of it where one axis is a number."""

    sizes: tuple[int, ...]
    axis: int | None = None
    index: int = 0

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return the part."""
        apart = seen.tensor.unflatten(-1, self.sizes)
        return apart if self.axis is None else apart.select(self.axis, self.index)

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return the tensor with another part."""
        if self.axis is not None:
            value = torch.select_scatter(seen.tensor.unflatten(-1, self.sizes), value, self.axis, self.index)
        return value.flatten(-len(self.sizes))


@dataclass(frozen=True)
class Scale:
    """What a norm divides its input by, [B, T, 1]: the root of the variance, or of the mean square, plus epsilon."""

    is_centred: bool

    def shown(self, seen: Seen) -> torch.Tensor:
        """Return the scale, which the kernel of the norm keeps to itself."""
        assert seen.module_input is not None
        x = seen.module_input
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.is_centred:
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide.pow(2).mean(-1, keepdim=True) + _epsilon(seen.module)).sqrt().to(x.dtype)

    def written(self, seen: Seen, value: torch.Tensor) -> torch.Tensor:
        """Return what the norm would give with another scale: ``(x - mean) / value * weight + bias``."""
        bias: Any = getattr(seen.module, "bias", None)
        shift = 0 if bias is None else bias
        return (seen.tensor - shift) * (self.shown(seen) / value) + shift


def _epsilon(norm: Any) -> float:
    """Return what a norm adds to the variance; RMS norms of transformers have another name for it."""
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


VIEWS: dict[str, View] = {
    "": Same(),
    "heads_first": HeadsFirst(),
    "over_rows": OverRows(),
    "scale": Scale(is_centred=True),
    "rms_scale": Scale(is_centred=False),
}
_SPLIT = re.compile(r"\(([\w ]+)\)(?:\[(\d+)\])?")


def view_of(text: str, config: Any) -> View:
    """Return the view that a point names, for a model's configuration.

    Raises:
        ValueError: there is no such view.
    """
    if text in VIEWS:
        return VIEWS[text]
    match = _SPLIT.fullmatch(text)
    if match is None:
        raise ValueError(f"`view={text!r}` is none: give one of {[*VIEWS]}, or what the last axis is made of")
    parts, index = match[1].split(), match[2]
    sizes = tuple(-1 if p == "d" else int(p) if p.isdigit() else int(getattr(config, p)) for p in parts)
    if index is None:
        return Split(sizes)
    return Split(sizes, [p.isdigit() for p in parts].index(True) - len(parts), int(index))
