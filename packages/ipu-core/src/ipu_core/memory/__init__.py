# SPDX-License-Identifier: Apache-2.0
"""Bytes each IPU holds: parameters, activations in flight, and how to make them fit."""
