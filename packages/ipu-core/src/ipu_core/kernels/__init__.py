# SPDX-License-Identifier: Apache-2.0
"""Hand-written processor code for decode steps, behind a list of graph passes."""
