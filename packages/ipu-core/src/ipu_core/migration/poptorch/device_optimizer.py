# SPDX-License-Identifier: Apache-2.0
"""`DeviceOptimizer`: what steps the weights of an executor, with the attributes of when an optimizer was handed in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .device_weights import DeviceWeights
from .errors import Error, logger
from .optim import EXTRAS, KINDS, Optimizer
from .update_rules import RULES, State, clipped, kept

# What torch's optimizers have for constant: betas and the like always, these where they have their default.
_CONSTANT = ("betas", "alpha", "nesterov", "centered", "max_grad_norm")
_DEFAULTS: dict[str, Any] = {
    "momentum": 0,
    "dampening": 0,
    "eps": 1e-8,
    "loss_scaling": 1.0,
    "max_weight_norm": 65500.0,
}


def kind_of(optimizer: Any) -> str:
    """Return which of PopTorch's kinds an optimizer is.

    Raises:
        AssertionError: none of them.
        ValueError: it is Adam with `amsgrad`.
    """
    kind = next((name for name, cls in KINDS.items() if isinstance(optimizer, cls)), None)
    assert kind is not None, (
        f"Unsupported optimizer type. Types supported {[f'poptorch.optim.{name}' for name in KINDS]}, and torch's of "
        f"these names, not {type(optimizer).__name__}: use one of these"
    )
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
    centred = {group["centered"] for group in optimizer.param_groups if "centered" in group}
    assert len(centred) < 2, "All parameter groups must have the same value for the 'centered' attribute"
    if type(optimizer).__module__ not in (Optimizer.__module__, KINDS[kind].__module__):
        logger.warning(
            "Optimizer `%s` subclassed from classes in poptorch.optim or torch.optim are unlikely to behave as "
            "intended. Its step is never called.",
            type(optimizer).__name__,
        )
    return kind


class DeviceOptimizer:
    """Steps parameters in groups, by the rule of its kind, once an update.

    Args:
        optimizer: the user's, whose attributes are read now and when it is set again.
        names: the parameters of the model by name.
        weights: the copies of them that are stepped; without these it is the parameters.
        loss_scaling_varies: whether the loss scale may change, whatever the optimizer says.
        is_relaxed: whether attributes that nobody knows are told without a warning.
    """

    def __init__(
        self,
        optimizer: Any,
        names: Mapping[str, torch.nn.Parameter],
        weights: DeviceWeights | None = None,
        *,
        loss_scaling_varies: bool = False,
        is_relaxed: bool = False,
    ) -> None:
        self._is_relaxed = is_relaxed
        self.kind = kind_of(optimizer)
        self.names = {id(parameter): name for name, parameter in names.items()}
        self.groups = _groups(optimizer)
        self.members = [list(group["params"]) for group in optimizer.param_groups]
        self._weights = weights
        self.state: dict[int, list[State]] = {}
        self._constants = _constants(optimizer, self.groups, loss_scaling_varies)

    def _stepped(self) -> Iterator[tuple[dict[str, Any], State, torch.Tensor]]:
        """Yield the weights that have gradients, with their attributes and their state."""
        for group, members in zip(self.groups, self.members, strict=True):
            for parameter in members:
                weights = self._copies(parameter)
                states = self.state.setdefault(id(parameter), [{} for _ in weights])
                for weight, state in zip(weights, states, strict=True):
                    if weight.grad is not None:
                        yield group, state, weight

    @property
    def loss_scaling(self) -> float:
        """What the loss is multiplied by."""
        return float(self.groups[0]["loss_scaling"])

    @property
    def accumulates_half(self) -> bool:
        """Whether gradients are accumulated in half precision."""
        return accumulates_half(self.groups[0])

    @torch.no_grad()
    def round_gradients(self) -> None:
        """Round what was accumulated so far to half precision, where it is kept in that."""
        if self.accumulates_half:
            for *_, weight in self._stepped():
                assert weight.grad is not None
                weight.grad.copy_(weight.grad.half())

    def read(self, optimizer: Any) -> None:
        """Take over the attributes of an optimizer.

        Raises:
            Error: an attribute differs that is a constant, or there are other groups.
            AssertionError, ValueError: as `kind_of`.
        """
        kind, groups = kind_of(optimizer), _groups(optimizer)
        if kind != self.kind or len(groups) != len(self.groups):
            raise _refused(
                f"a {kind} of {len(groups)} groups takes the place of a {self.kind} of {len(self.groups)}: kind and "
                "groups are fixed by the first call"
            )
        for i, (group, before) in enumerate(zip(groups, self.groups, strict=True)):
            changed = [name for name in self._constants if group.get(name) != before.get(name)]
            if changed:
                raise _refused(
                    f"the constant attribute {changed[0]} of group {i} is {before.get(changed[0])} and would become "
                    f"{group.get(changed[0])}: mark it with variable_attrs.markAsVariable before compiling"
                )
        self._tell_unknown(groups)
        self.groups = groups

    def _tell_unknown(self, groups: list[dict[str, Any]]) -> None:
        level = logging.DEBUG if self._is_relaxed else logging.WARNING
        for i, (group, before) in enumerate(zip(groups, self.groups, strict=True)):
            if unknown := sorted(group.keys() - before.keys() - {"initial_lr"}):
                logger.log(level, "Ignoring unexpected group %d attribute in %s optimizer: %s", i, self.kind, unknown)

    @torch.no_grad()
    def step(self) -> None:
        """Step every weight that has a gradient, and drop the gradients."""
        stepped = list(self._stepped())
        grads = [weight.grad.float() / self.loss_scaling for *_, weight in stepped if weight.grad is not None]
        clipped(grads, self.groups[0]["max_grad_norm"])
        for (group, state, own), grad in zip(stepped, grads, strict=True):
            weight = own.float()
            RULES[self.kind](weight, grad, state, group)
            if weight is not own:
                own.copy_(weight)
            own.grad = None

    def state_by_name(self) -> dict[str, torch.Tensor]:
        """Return the state of all parameters, ``Accl1___lin.weight``."""
        return {
            f"{name}{self.names[number]}": torch.stack([state[name] for state in states]).reshape(
                (len(states), *tensor.shape) if len(states) > 1 else tensor.shape
            )
            for number, states in self.state.items()
            for name, tensor in (states[0].items() if states else ())
        }

    def parameters_by_name(self) -> dict[str, torch.Tensor]:
        """Return the rates and the loss scale that steps are made with."""
        rate = "scaledLearningRate0" if self.kind == "SGD" else "learningRate"
        found = {
            f"{rate}___specific___{self.names[id(parameter)]}": torch.tensor(float(group["lr"]))
            for group, members in zip(self.groups, self.members, strict=True)
            for parameter in members
            if id(parameter) in self.names
        }
        return {**found, "lossScaling_FLOAT": torch.tensor(self.loss_scaling)}

    def load_state(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over a state by name; what is of no parameter is left out with a warning."""
        numbers = {name: number for number, name in self.names.items()}
        for name, tensor in values.items():
            prefix, _, path = name.partition("___")
            if path not in numbers:
                logger.warning("Ignoring the optimizer state %s: the model has no such parameter", name)
                continue
            if f"{prefix}___" not in kept(self.kind, self._group_of(numbers[path])):
                logger.warning("Ignoring the optimizer state %s: %s keeps no such thing", name, self.kind)
                continue
            states = self._states_at(numbers[path])
            for state, value in zip(states, tensor.unbind(0) if len(states) > 1 else [tensor], strict=True):
                state[f"{prefix}___"] = value.clone()

    def _states_at(self, number: int) -> list[State]:
        parameter = next(p for members in self.members for p in members if id(p) == number)
        return self.state.setdefault(number, [{} for _ in self._copies(parameter)])

    def _group_of(self, number: int) -> dict[str, Any]:
        return next(
            group
            for group, members in zip(self.groups, self.members, strict=True)
            if number in (id(parameter) for parameter in members)
        )

    def _copies(self, parameter: torch.nn.Parameter) -> Sequence[torch.Tensor]:
        return [parameter] if self._weights is None else self._weights.copies(parameter)


def accumulates_half(group: Mapping[str, Any]) -> bool:
    """Return whether attributes ask for gradients to be accumulated in half precision."""
    return group.get("accum_type") is torch.float16 and not group.get("use_combined_accum")


def half_accumulators(optimizer: Any) -> bool:
    """Return whether an optimizer asks for gradients to be accumulated in half precision."""
    return accumulates_half(_groups(optimizer)[0])


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the attributes of groups, with those that an optimizer of PopTorch has for all of them."""
    extras = {name: getattr(optimizer, name) for name in getattr(optimizer, "extras", ())}
    return [
        {**EXTRAS, **extras, **{name: value for name, value in group.items() if name != "params"}}
        for group in optimizer.param_groups
    ]


def _constants(optimizer: Any, groups: list[dict[str, Any]], loss_scaling_varies: bool) -> list[str]:
    """Return the attributes that are constants of the executable."""
    ignored = {"params", "initial_lr", "maximize", "foreach", "capturable", "differentiable", "fused", "amsgrad"}
    ignored |= {"decoupled_weight_decay", *({"loss_scaling"} if loss_scaling_varies else ())}
    if isinstance(optimizer, Optimizer):
        attrs = optimizer.variable_attrs
        known = {*optimizer.param_groups[0], *optimizer.extras} - ignored
        return sorted(name for name in known if name != "lr" and attrs.isConstant(name))
    decay = 1e-2 if isinstance(optimizer, torch.optim.AdamW) else 0.0
    defaults = {**_DEFAULTS, "weight_decay": decay}
    fixed = [name for name, value in defaults.items() if all(group.get(name) == value for group in groups)]
    return [name for name in (*_CONSTANT, *fixed) if name in groups[0] and name not in ignored]


def _refused(message: str) -> Error:
    return Error(f"Invalid optimizer: {message}", type="popart_exception")
