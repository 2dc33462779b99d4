# SPDX-License-Identifier: Apache-2.0
"""Capture a model's forward as one static graph, and read, check and store it."""
