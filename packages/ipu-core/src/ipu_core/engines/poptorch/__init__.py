# SPDX-License-Identifier: Apache-2.0
"""The engine of Graphcore IPUs: a worker with PopTorch's own Python runs a program made of the plan."""
