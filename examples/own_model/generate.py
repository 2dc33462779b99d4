# SPDX-License-Identifier: Apache-2.0
"""Generate with an architecture of one's own and published weights, cut over two devices.

Without `--checkpoint` a tiny untrained GPT-2 is written, as transformers writes it, and read. ::

    python examples/own_model/generate.py
    python examples/own_model/generate.py --checkpoint mistral-7b --dtype bfloat16 --devices cuda:0,cuda:1
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from correspondences import published
from ipu_core import Executor, IPUConfig, inference_model, to_pipelined
from ipu_core.checkpoints import load_checkpoint
from transformer import Transformer

Run = Callable[..., dict[str, torch.Tensor]]


def load(folder: Path, dtype: torch.dtype) -> Transformer:
    """Return the model of a published checkpoint; its tensors are read one by one."""
    found = published(folder)
    with torch.device("meta"):
        model = Transformer(found.config).to(dtype).eval()
    return load_checkpoint(model, folder, found.correspondence, casts=True)


def generate(run: Run, prompt: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return a prompt and the `num_tokens` likeliest tokens after it.

    Args:
        run: the model with a cache, or `runner(model)`.
        prompt: [R, T].
        num_tokens: of each row.
    """
    tokens, new = prompt, prompt
    for _ in range(num_tokens):
        positions = torch.arange(tokens.shape[1] - new.shape[1], tokens.shape[1]).expand(new.shape)
        logits = run(input_ids=new, positions=positions)["logits"]
        new = logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def runner(model: Any) -> Run:
    """Return a function that runs a pipelined model with an executor for each number of tokens: prompt, and one."""
    executors: dict[int, Executor] = {}

    def run(**batch: torch.Tensor) -> dict[str, torch.Tensor]:
        num_tokens = batch["input_ids"].shape[1]
        if num_tokens not in executors:
            executors[num_tokens] = inference_model(model, outputs=["logits"])
        return executors[num_tokens](**batch)

    return run


def main(argv: Sequence[str] | None = None) -> torch.Tensor:
    """Load, cut, generate, and print the tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a folder with GPT-2 or Mistral; a tiny one without")
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--devices", default="cpu,cpu", help="of each stage, such as cuda:0,cuda:1")
    parser.add_argument("--prompt", default="1,2,3", help="token ids")
    parser.add_argument("--num_tokens", type=int, default=50)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or write_tiny(Path(scratch))
        model = load(folder, getattr(torch, options.dtype))
    prompt = torch.tensor([[int(token) for token in options.prompt.split(",")]])
    devices = options.devices.split(",")
    model.allocate_cache(rows=len(prompt), length=prompt.shape[1] + options.num_tokens)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1] * len(devices), devices=devices))
    tokens = generate(runner(pipelined), prompt, options.num_tokens)
    print(*tokens[0].tolist())
    return tokens


def write_tiny(folder: Path) -> Path:
    """Write an untrained checkpoint of GPT-2, as transformers does."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
