# SPDX-License-Identifier: Apache-2.0
"""`_poplar_executor`: where some scripts import the class of executors from."""

from .executor import PoplarExecutor

__all__ = ["PoplarExecutor"]
