# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed run have imported when they begin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipu_core.engines.distributed.program
import ipu_core.executor
import ipu_core.model.pipelined
import ipu_core.testing
import torch
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2

torch.set_num_threads(1)
