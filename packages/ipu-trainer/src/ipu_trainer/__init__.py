# SPDX-License-Identifier: Apache-2.0
"""`transformers.Trainer` on pipelined models.

::

    from ipu_core import IPUConfig
    from ipu_trainer import IPUTrainer, IPUTrainingArguments

    args = IPUTrainingArguments("out", per_device_train_batch_size=4)
    trainer = IPUTrainer(model, IPUConfig(layers_per_ipu=[1, 2, 2, 1]), args, train_dataset=data)
    trainer.train()
"""

from .arguments import IPUSeq2SeqTrainingArguments, IPUTrainingArguments
from .modelcard import IPUTrainingSummary
from .optimizer_state import merge_optimizer
from .packing import PackedSampler, PackingCollator, lengths_of
from .seq2seq import IPUSeq2SeqTrainer
from .trainer import IPUTrainer

__all__ = [
    "IPUSeq2SeqTrainer",
    "IPUSeq2SeqTrainingArguments",
    "IPUTrainer",
    "IPUTrainingArguments",
    "IPUTrainingSummary",
    "PackedSampler",
    "PackingCollator",
    "lengths_of",
    "merge_optimizer",
]
