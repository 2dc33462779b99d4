# SPDX-License-Identifier: Apache-2.0
"""The distributed engine: one process an IPU, on the pipeline schedules of torch.distributed."""
