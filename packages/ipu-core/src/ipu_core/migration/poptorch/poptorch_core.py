# SPDX-License-Identifier: Apache-2.0
"""`poptorch_core`: where some scripts import the exceptions from."""

from .errors import Error, RecoverableError, UnrecoverableError

__all__ = ["Error", "RecoverableError", "UnrecoverableError"]
