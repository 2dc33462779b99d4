# SPDX-License-Identifier: Apache-2.0
"""Hand-written processor code for decode steps, behind one function list, `DecodeKernels`."""
