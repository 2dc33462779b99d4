# SPDX-License-Identifier: Apache-2.0
"""`Error` and its kinds, and the levels of the log, as PopTorch has them."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("poptorch::python")


class Error(Exception):
    """What PopTorch refuses: `type` says who refuses, `message` why, `location` where.

    ::

        try:
            model(x)
        except poptorch.Error as error:
            print(error.message)
    """

    def __init__(self, message: str, *, type: str = "poptorch_py_error", location: str = "") -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.location = location

    def __str__(self) -> str:
        where = f"\nError raised in:\n  {self.location}" if self.location else ""
        return f"'{self.type}': {self.message}{where}"


class RecoverableError(Error):
    """What goes away once `recovery_action` is done; nothing here raises it, for there is no device to reset."""

    def __init__(self, message: str, *, recovery_action: str = "IPU_RESET", location: str = "") -> None:
        super().__init__(message, type="poptorch_cpp_error", location=location)
        self.recovery_action = recovery_action


class UnrecoverableError(Error):
    """What no reset helps against; nothing here raises it."""


def createPoptorchError(message: str) -> Error:
    """Make an `Error` that says `message`."""
    return Error(message)


# The names and numbers of PopTorch, and what they are for Python's logging.
LEVELS = {
    "TRACE": (0, 5),
    "DEBUG": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL + 10),
}


def setLogLevel(level: str | int) -> None:
    """Set the level of the logger `poptorch::python`: "TRACE", "DEBUG", "INFO", "WARN", "ERR", "OFF", or 0-4 and 6.

    Raises:
        ValueError: another level.
    """
    if isinstance(level, int):
        named = {number: name for name, (number, _) in LEVELS.items()}
        if level not in named:
            raise ValueError("Invalid log level integer")
        level = named[level]
    if level not in LEVELS:
        raise ValueError(f"Unknown log level: {level}. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN")
    logger.setLevel(LEVELS[level][1])


def log_to_stderr() -> None:
    """Write the log to standard error in PopTorch's format, from the level `POPTORCH_LOG_LEVEL` names on."""
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s] [poptorch::python] [%(levelname)s] %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))
