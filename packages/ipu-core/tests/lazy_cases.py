# SPDX-License-Identifier: Apache-2.0
"""Models that the ranks of one group each read their part of, train, and write their part of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ipu_core import IPUConfig, generation_model, inference_model, to_pipelined, training_model
from ipu_core.checkpoints import read_lazily
from ipu_core.engines.distributed import saving
from ipu_core.errors import CheckpointError
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

COUNT = 2  # micro-batches of an update
MODELS = ("llama", "bert", "t5", "gpt2")
# GPT-2 has attention to an encoder here, which nothing runs.
UNREAD = ("ln_cross_attn", "crossattention")


def configured(name: str) -> tuple[type[PreTrainedModel], Any]:
    """Return the class and the configuration of a tiny model; but for Llama some tensors are tied over the ranks."""
    heads = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    if name == "llama":
        return LlamaForCausalLM, LlamaConfig(**heads, num_key_value_heads=1, vocab_size=37)
    if name == "bert":
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM, BertConfig(**heads, **dropout, vocab_size=37)
    if name == "gpt2":
        dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        sizes = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 16, "vocab_size": 37}
        tokens = {"bos_token_id": 1, "eos_token_id": 1}
        return GPT2LMHeadModel, GPT2Config(**sizes, **dropout, **tokens, add_cross_attention=True)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 1, "vocab_size": 37}
    return T5ForConditionalGeneration, T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)


def made(name: str) -> PreTrainedModel:
    """Return a model with random weights."""
    torch.manual_seed(0)
    cls, config = configured(name)
    return cls._from_config(config, dtype=torch.float64)


def lazy(name: str, folder: Path) -> PreTrainedModel:
    """Return a model without memory that reads its tensors from a folder."""
    with torch.device("meta"):
        model = made(name)
    return read_lazily(model, folder)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 37, (2 * COUNT, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.roll(1, 0)}


def equal(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # A causal loss is in float32, whatever the model is in.
    atol = 1e-6 if what.startswith(("llama", "gpt2")) else 1e-10
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def in_parts(rank: int, folder: str) -> dict[str, Any]:
    """Train each model in parts, and compare; returns what this rank had of it."""
    found = {name: _in_parts(rank, name, Path(folder)) for name in MODELS}
    return {**found, "generated": assert_generates("llama", Path(folder) / "llama", engine="distributed")}


def assert_generates(name: str, folder: Path, **options: Any) -> list[str]:
    """Read a model, and generate as the plain one does; returns the names of the parameters that are here."""
    plain = configured(name)[0].from_pretrained(folder, dtype=torch.float64)
    model = lazy(name, folder)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1]))
    generator = generation_model(pipelined, on_all_ranks=True, **options)
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    for count in (4, 9):  # the second has programs of its own, made when some is read
        greedy = {"max_new_tokens": count, "do_sample": False}
        assert torch.equal(generator.generate(**inputs, **greedy), plain.generate(**inputs, **greedy))
    return [name for name, parameter in model.named_parameters() if not parameter.is_meta]


def _in_parts(rank: int, name: str, folder: Path) -> dict[str, Any]:
    plain = configured(name)[0].from_pretrained(folder / name, dtype=torch.float64).train()
    model = lazy(name, folder / name)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (plain, model)]
    options = {"gradient_accumulation_steps": COUNT, "schedule": "gpipe", "output_mode": "all"}
    ipu_config = IPUConfig(layers_per_ipu=[1, 1], inference_layers_per_ipu=[2, 0], **options)
    pipelined = to_pipelined(model, ipu_config)
    executor = training_model(pipelined, engine="distributed", on_all_ranks=True)
    inputs = batch()
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        parts = [{k: v[2 * i : 2 * i + 2] for k, v in inputs.items()} for i in range(COUNT)]
        losses = [plain(**part).loss for part in parts]
        torch.stack(losses).mean().backward()
        equal(f"{name}, the loss", executor(**inputs).loss.reshape(-1), torch.stack(losses).detach())
        expected = {n: p.grad for n, p in plain.named_parameters()}
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        for parameter, gradient in found.items():
            equal(f"{name}, the gradient of {parameter}", gradient, expected[parameter])
        for optimizer in optimizers:
            optimizer.step()
    held = {n for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.is_meta}
    executor.save_pretrained(folder / f"{name}-trained", max_shard_size="4KB")
    if rank == 0:
        plain.save_pretrained(folder / f"{name}-plain")
    result = {"gradients": set(found), "held": held, "states": len(optimizers[1].state)}
    if name == "llama":
        _refuse(rank, executor, pipelined, folder / f"{name}-trained")
        _infer(pipelined, plain, inputs)
    return result


def _refuse(rank: int, executor: Any, pipelined: Any, folder: Path) -> None:
    """See that no rank is brought what it has no room for, and that a part that was not written ends all."""
    with pytest.raises(CheckpointError, match="each rank has read its part of this model"):
        executor.release()
    with pytest.raises(CheckpointError, match="executor.save_pretrained"):
        pipelined.save_pretrained(folder)
    own_state = saving._own_state
    if rank == 1:
        saving._own_state = lambda plain: (_ for _ in ()).throw(OSError("no space left on device"))
    kind, message = (
        (OSError, "no space left") if rank else (CheckpointError, "rank 1 could not write its part .*no space")
    )
    with pytest.raises(kind, match=message):
        executor.save_pretrained(folder)
    saving._own_state = own_state


def _infer(pipelined: Any, plain: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Run inference with more layers on the first rank, which is brought what the other one has trained."""
    del inputs["labels"]
    with torch.no_grad():
        expected = plain.eval()(**inputs).logits
    executor = inference_model(pipelined, engine="distributed", on_all_ranks=True)
    equal("llama, the logits", executor(**inputs).logits, expected)
