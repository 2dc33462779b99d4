# SPDX-License-Identifier: Apache-2.0
"""From a model's forward to stages: capture one graph, find the cuts, split it; see the README beside this file."""
