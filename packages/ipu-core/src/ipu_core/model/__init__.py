# SPDX-License-Identifier: Apache-2.0
"""A pipelined model: a view of the user's modules."""
