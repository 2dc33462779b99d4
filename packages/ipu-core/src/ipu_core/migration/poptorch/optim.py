# SPDX-License-Identifier: Apache-2.0
"""PopTorch's optimizers: torch's, with the attributes PopART has, and which of them may change after compiling."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from .errors import logger
from .update_rules import lamb

ACCUMULATORS = ("accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")
EXTRAS: dict[str, Any] = {
    "loss_scaling": 1.0,
    "accum_type": torch.float32,
    "velocity_accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
    "max_grad_norm": math.inf,
    "velocity_scaling": 1.0,
    "use_combined_accum": False,
    "bias_correction": True,
    "use_tf_variant": False,
    "max_weight_norm": 65500.0,
}


class VariableAttributes:
    """Which attributes may change after compiling; the others are constants of the executable."""

    def __init__(self, variable: Iterable[str], allowed: Iterable[str]) -> None:
        self._allowed = list(allowed)
        self._variable = set(variable)

    def isConstant(self, attr: str) -> bool:
        """Return whether an attribute is a constant."""
        self._check(attr)
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:
        """Make an attribute a constant."""
        self._check(attr)
        self._variable.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        """Let an attribute change."""
        self._check(attr)
        self._variable.add(attr)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed, f"Unknown attribute {attr}, allowed values: {self._allowed}"


class Optimizer:
    """What PopTorch's optimizers have beside torch's: `variable_attrs`, and a state that an executor has.

    Attributes given to the constructor may change after compiling, others are constants.
    """

    extras: ClassVar[tuple[str, ...]] = ()
    variable_attrs: VariableAttributes
    param_groups: list[dict[str, Any]]

    def _extend(self, given: dict[str, Any], extras: dict[str, Any]) -> None:
        for name in self.extras:
            value = EXTRAS[name] if extras[name] is None else extras[name]
            _check_extra(name, value)
            setattr(self, name, value)
        for group in self.param_groups:
            for name in _IN_GROUPS.intersection(self.extras):
                group.setdefault(name, getattr(self, name))
        allowed = {*self.param_groups[0], *self.extras} - {"params"}
        self.variable_attrs = VariableAttributes({name for name in given if given[name] is not None}, sorted(allowed))
        self.ipu_state: dict[str, Any] | None = None
        self.ipu_param: dict[str, Any] | None = None
        self.owner: weakref.ref[Any] | None = None

    def _executor(self) -> Any:
        """Return the executor that steps in the place of the optimizer; None where there is none."""
        return self.owner() if self.owner is not None else None

    def has_state(self) -> bool:
        """Return whether there is a state that came off an IPU, or is for one."""
        return self.ipu_state is not None

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, and under `ipu_state` and `ipu_param` what the executor has."""
        if (executor := self._executor()) is not None:
            executor.read_optimizer()
        torch_state = super().state_dict()  # type: ignore[misc]
        return {"ipu_state": self.ipu_state, "ipu_param": self.ipu_param, **torch_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state over; the executor that has the optimizer steps from it on.

        Raises:
            RuntimeError: it is empty, or of an optimizer that was not an executor's.
        """
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if not {"ipu_state", "ipu_param"} <= state.keys():
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        own = {name: value for name, value in state.items() if name not in ("ipu_state", "ipu_param")}
        if own:
            super().load_state_dict(own)  # type: ignore[misc]
        self.ipu_state, self.ipu_param = state["ipu_state"], state["ipu_param"]
        if (executor := self._executor()) is not None:
            executor.write_optimizer()

    def __getstate__(self) -> dict[str, Any]:
        if (executor := self._executor()) is not None:
            executor.read_optimizer()
        kept = ("defaults", "state", "param_groups", "variable_attrs", "ipu_state", "ipu_param", *self.extras)
        return {**{name: getattr(self, name) for name in kept}, "owner": None}


_IN_GROUPS = {"max_weight_norm"}  # what groups may differ in


def _check_extra(name: str, value: Any) -> None:
    if name.endswith("accum_type"):
        assert value in (torch.float32, torch.float16), (
            "Accumulation types must be either torch.float32 or torch.float16"
        )
    if name == "max_grad_norm":
        assert not math.isnan(value), "max_grad_norm is NaN: give a number, or leave it out"


def _split(given: dict[str, Any], extras: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of torch's constructor that were given, and PopTorch's own."""
    own = {name: given[name] for name in extras}
    rest = {name: value for name, value in given.items() if name not in extras and value is not None}
    return rest, own


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent; `velocity_scaling` follows the loss scale unless accumulators are combined."""

    extras = (
        *("loss_scaling", "velocity_scaling", "use_combined_accum"),
        *("accum_type", "velocity_accum_type", "max_grad_norm"),
    )

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        momentum: float | None = None,
        dampening: float | None = None,
        weight_decay: float | None = None,
        nesterov: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        velocity_scaling: float | None = None,
        use_combined_accum: bool | None = None,
        accum_type: torch.dtype | None = None,
        velocity_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        rest, own = _split(given, self.extras)
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning("velocity_scaling is tied to loss_scaling unless use_combined_accum=True: it is ignored")
        torch.optim.SGD.__init__(self, params, **rest)
        self._extend(given, own)


class Adam(Optimizer, torch.optim.Adam):
    """Adam, without amsgrad."""

    extras = ("loss_scaling", *ACCUMULATORS, "max_grad_norm")

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        _refuse_other_betas(betas)
        rest, own = _split(given, self.extras)
        torch.optim.Adam.__init__(self, params, **rest)
        self._extend(given, own)


class AdamW(Optimizer, torch.optim.AdamW):
    """AdamW, without amsgrad; `bias_correction=False` has no effect, as in PopTorch."""

    extras = ("loss_scaling", "bias_correction", *ACCUMULATORS, "max_grad_norm")

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        bias_correction: bool | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        _refuse_other_betas(betas)
        rest, own = _split(given, self.extras)
        torch.optim.AdamW.__init__(self, params, **rest)
        self._extend(given, own)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop; `use_tf_variant` is TensorFlow's."""

    extras = ("loss_scaling", *ACCUMULATORS, "use_tf_variant")

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        momentum: float | None = None,
        centered: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        use_tf_variant: bool | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        rest, own = _split(given, self.extras)
        torch.optim.RMSprop.__init__(self, params, **rest)
        self._extend(given, own)


class LAMB(Optimizer, torch.optim.Optimizer):
    """LAMB, which steps by the ratio of the norms of a weight and its update; it can step on the host too."""

    extras = ("loss_scaling", "bias_correction", "max_weight_norm", *ACCUMULATORS)

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        bias_correction: bool | None = None,
        loss_scaling: float | None = None,
        max_weight_norm: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        _refuse_other_betas(betas)
        rest, own = _split(given, self.extras)
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
        torch.optim.Optimizer.__init__(self, params, {**defaults, **rest})
        self._extend(given, own)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step on the host, with the gradients that the parameters have."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            attributes = {**group, "bias_correction": self.bias_correction}  # type: ignore[attr-defined]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    lamb(parameter, parameter.grad, self.state[parameter], attributes)
        return loss


def _refuse_other_betas(betas: Any) -> None:
    assert betas is None or isinstance(betas, tuple), f"betas is a {type(betas).__name__}: give a tuple of two numbers"


KINDS: dict[str, type[Any]] = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,  # before Adam, which it is one of
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
    "LAMB": LAMB,
}
