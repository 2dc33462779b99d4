# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed run have imported when they begin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
