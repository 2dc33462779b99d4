# SPDX-License-Identifier: Apache-2.0
"""Use ipu-core and ipu-models-seq2seq where nothing else is installed: generate the plain model's tokens, and train."""

from __future__ import annotations

import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined, training_model

torch.manual_seed(0)
config = transformers.GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=99, n_positions=32)
model = transformers.GPT2LMHeadModel(config)
for parameter in model.parameters():
    if parameter.dim() > 1:
        torch.nn.init.normal_(parameter, std=0.2)
pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 3]))
assert type(pipelined).__module__ == "ipu_models_seq2seq", type(pipelined)

ids = torch.randint(99, (2, 6))
asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
mask = torch.ones_like(ids)
wanted = model.eval().generate(ids, attention_mask=mask, **asked)
found = generation_model(pipelined).generate(ids, attention_mask=mask, **asked)
assert torch.equal(found, wanted), f"{found.tolist()} is not {wanted.tolist()}"

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
executor = training_model(pipelined, optimizer)
losses = [executor(input_ids=ids, labels=ids).loss.item() for _ in range(3)]
assert losses[-1] < losses[0], losses
print(f"tokens {found[0, 6:].tolist()}, losses {', '.join(f'{loss:.3f}' for loss in losses)}")
