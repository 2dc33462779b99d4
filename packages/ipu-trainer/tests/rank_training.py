# SPDX-License-Identifier: Apache-2.0
"""A short training run, by one process or by the ranks of a distributed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ipu_core import IPUConfig
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from transformers import GPT2Config, GPT2LMHeadModel

STEPS = 4


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 4, "vocab_size": 37, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=1)).double()


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(1, 37, (6,), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def trainer(folder: Path, engine: str | None, **arguments: Any) -> IPUTrainer:
    ipu_config = IPUConfig(layers_per_ipu=[2, 2], gradient_accumulation_steps=2, schedule="gpipe")
    args = IPUTrainingArguments(
        str(folder),
        engine=engine,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=2,
        learning_rate=0.01,
        max_grad_norm=0.5,
        max_steps=STEPS,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    return IPUTrainer(model(), ipu_config, args, train_dataset=rows(12), eval_dataset=rows(5))


def train(rank: int, folder: str, engine: str | None, resume: str | None = None) -> dict[str, Any]:
    """Train, evaluate and save; returns what each process has at the end."""
    made = trainer(Path(folder), engine)
    made.train(resume_from_checkpoint=resume)
    metrics = made.evaluate()
    made.save_model(str(Path(folder) / "model"))
    return {
        "weights": {name: p.detach().clone() for name, p in made.model.named_parameters()},
        "eval_loss": metrics["eval_loss"],
        "losses": [entry["loss"] for entry in made.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry],
        "logs": made.args.should_log,
    }
