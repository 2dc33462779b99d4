# SPDX-License-Identifier: Apache-2.0
"""What runs stages: the executor a user calls, the arithmetic of its batches, and the engines behind it."""
