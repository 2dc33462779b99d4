# SPDX-License-Identifier: Apache-2.0
"""`OptionStore`: typed values under fixed names that can be frozen; what every set of options is."""

from __future__ import annotations

import copy
from typing import Any, Self


class OptionStore:
    """Values that are read as attributes, and set through methods until they are frozen.

    `_defaults` of a class has the name and the value of each option; a value keeps its type.
    """

    _defaults: dict[str, Any] = {}

    def __init__(self) -> None:
        object.__setattr__(self, "_held", copy.deepcopy(self._defaults))
        object.__setattr__(self, "_is_frozen", False)

    def set(self, **values: Any) -> Self:
        """Set options by name.

        Raises:
            AssertionError: an option that is not there, or a value of another type.
            AttributeError: the options are frozen.
        """
        for name, value in values.items():
            assert name in self._held, f"Invalid option {name}, valid options are {list(self._held)}"
            kind = type(self._held[name])
            assert isinstance(value, kind), (
                f"Unexpected type {type(value)} for option {name}. Expected {kind}: give a value of that type"
            )
            self.createOrSet(**{name: value})
        return self

    def createOrSet(self, **values: Any) -> Self:
        """Set options by name, new ones too, of any type."""
        self._refuse_frozen()
        self._held.update(values)
        return self

    def exists(self, name: str) -> bool:
        """Return whether an option is there."""
        return name in self._held

    def _refuse_frozen(self) -> None:
        if self._is_frozen:
            raise AttributeError(
                "Can't modify frozen Options: an executor or a data loader has them; change `options.clone()`"
            )

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_held", {})
        if name in values:
            return values[name]
        raise AttributeError(f"Invalid attribute {name}. It has {sorted(values)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") and name not in self.__dict__:
            raise AttributeError(f"Invalid private attribute {name}: the options have none of that name")
        if not name.startswith("_"):
            self.set(**{name: value})
            return
        object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        state = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        made.__dict__.update({**state, "_is_frozen": False})
        return made

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def toDict(self) -> dict[str, Any]:
        """Return the options as a dictionary."""
        return dict(self._held.items())

    def _freeze(self, value: bool = True) -> Self:
        """Refuse, or allow again, that options are set."""
        object.__setattr__(self, "_is_frozen", value)
        return self

    def __repr__(self) -> str:
        return "\n".join(f"{name} = {value}" for name, value in sorted(self._held.items()))
