# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed run have imported when they begin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipu_core.engines.distributed.program  # noqa: F401
import torch
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

torch.set_num_threads(1)
