# SPDX-License-Identifier: Apache-2.0
"""Runs the worker, `poptorch_shim.py WORKER ARGUMENT ...`, where our PopTorch has the name of the real one."""

import runpy
import sys

import ipu_core.migration

ipu_core.migration.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
