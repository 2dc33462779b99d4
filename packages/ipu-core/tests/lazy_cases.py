# SPDX-License-Identifier: Apache-2.0
"""Models that the ranks of one group each read their part of, train, and write their part of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.checkpoints import read_lazily
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

COUNT = 2  # micro-batches of an update
MODELS = ("llama", "bert", "t5")


def configured(name: str) -> tuple[type[PreTrainedModel], Any]:
    """Return the class and the configuration of a tiny model; some of its tensors are tied over the ranks."""
    heads = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    if name == "llama":
        return LlamaForCausalLM, LlamaConfig(**heads, num_key_value_heads=1, vocab_size=37)
    if name == "bert":
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM, BertConfig(**heads, **dropout, vocab_size=37)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "vocab_size": 37}
    return T5ForConditionalGeneration, T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)


def write(name: str, folder: Path) -> None:
    """Write a checkpoint of random weights, in shards."""
    torch.manual_seed(0)
    cls, config = configured(name)
    cls._from_config(config, dtype=torch.float64).save_pretrained(folder, max_shard_size="4KB")


def lazy(name: str, folder: Path) -> PreTrainedModel:
    """Return a model without memory that reads its tensors from a folder."""
    cls, config = configured(name)
    with torch.device("meta"):
        model = cls._from_config(config, dtype=torch.float64)
    return read_lazily(model, folder)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 37, (2 * COUNT, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.roll(1, 0)}


def equal(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # A causal loss is in float32, whatever the model is in.
    atol = 1e-6 if "llama" in what else 1e-10
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def in_parts(rank: int, folder: str) -> dict[str, Any]:
    """Train each model in parts, and compare; returns what this rank had of it."""
    return {name: _in_parts(name, Path(folder)) for name in MODELS}


def _in_parts(name: str, folder: Path) -> dict[str, Any]:
    plain = configured(name)[0].from_pretrained(folder / name, dtype=torch.float64).train()
    model = lazy(name, folder / name)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (plain, model)]
    ipu_config = IPUConfig(
        layers_per_ipu=[1, 1], gradient_accumulation_steps=COUNT, schedule="gpipe", output_mode="all"
    )
    executor = training_model(to_pipelined(model, ipu_config), engine="distributed", on_all_ranks=True)
    inputs = batch()
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [plain(**{k: v[2 * i : 2 * i + 2] for k, v in inputs.items()}).loss for i in range(COUNT)]
        (sum(losses) / COUNT).backward()
        equal(f"the loss of {name}", executor(**inputs).loss.reshape(-1), torch.stack(losses).detach())
        expected = {n: p.grad for n, p in plain.named_parameters()}
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        for parameter, gradient in found.items():
            equal(f"the gradient of {name}, {parameter}", gradient, expected[parameter])
        for optimizer in optimizers:
            optimizer.step()
    executor.save_pretrained(folder / f"{name}-trained", max_shard_size="4KB")
    plain.save_pretrained(folder / f"{name}-plain")
    held = {n for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.is_meta}
    return {"gradients": set(found), "held": held, "states": len(optimizers[1].state)}
