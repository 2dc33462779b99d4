# SPDX-License-Identifier: Apache-2.0
"""Engines: where the stages of a model run."""
