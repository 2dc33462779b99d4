# SPDX-License-Identifier: Apache-2.0
"""Packed BERT: several sentences in a row, in a pipelined class of the script's own."""

import json
import sys

import torch
from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
from optimum.graphcore.modeling_utils import get_layer_ipu, register
from optimum.graphcore.models.bert.modeling_bert import BertPipelineMixin
from transformers import AutoConfig, BertForSequenceClassification, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

folder, data, output = sys.argv[1:]


@register(BertForSequenceClassification)
class PipelinedPackedBertForSequenceClassification(BertForSequenceClassification, BertPipelineMixin):
    """The first tokens of the sentences of a pack are its last ones; -100 labels a place without a sentence."""

    def parallelize(self):
        super().parallelize()
        assert get_layer_ipu(self.ipu_config, self.bert.encoder.layer) == [0, 1]
        self.dropout = torch.nn.Dropout(0.0)
        return self

    def forward(self, input_ids, attention_mask, position_ids, labels=None):
        # [B, L] of sentence numbers -> [B, L, L], 1 where both are of one sentence
        same = attention_mask[:, None, :] == attention_mask[:, :, None]
        mask = (same & (attention_mask > 0)[:, None, :]).to(self.dtype)
        hidden = self.bert(input_ids, attention_mask=(1.0 - mask)[:, None] * -10000.0, position_ids=position_ids)[0]
        firsts = hidden[:, -self.config.max_sequences_per_pack :]
        logits = self.classifier(self.dropout(firsts))
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return SequenceClassifierOutput(loss=loss, logits=logits)


set_seed(42)
config = AutoConfig.from_pretrained(folder)
config.max_sequences_per_pack = 2
with open(data) as file:
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in json.load(file)]
trainer = IPUTrainer(
    BertForSequenceClassification.from_pretrained(folder, config=config),
    IPUConfig.from_pretrained(folder),
    IPUTrainingArguments(
        output, max_steps=3, learning_rate=1e-2, save_strategy="no", lamb=False, use_cpu=True, disable_tqdm=True
    ),
    train_dataset=rows,
    eval_dataset=rows[:3],
)
trainer.save_metrics("train", trainer.train().metrics)
trainer.save_model()
trainer.save_metrics("eval", trainer.evaluate())
