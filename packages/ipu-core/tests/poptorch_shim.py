# SPDX-License-Identifier: Apache-2.0
"""Runs the worker in an interpreter that has no PopTorch, with ours under its name: `poptorch_shim.py WORKER ARGUMENT ...`."""

import runpy
import sys

import ipu_core.migration

ipu_core.migration.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
