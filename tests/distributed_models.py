# SPDX-License-Identifier: Apache-2.0
"""Models of all kinds on the ranks of a distributed run: what one group of processes runs."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core._torch import pytree
from ipu_core.capture.capture import without_cache
from ipu_core.samples import sample_batch

TINY: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent.parent / "catalogue" / "tiny.json").read_text())
CAUSAL = (
    *("phi", "gpt_neox", "persimmon", "biogpt", "xglm"),
    *("llama", "qwen2", "opt", "bloom", "codegen"),
)
SIZES = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
MICRO_BATCHES = 2


def make(name: str, *, tied: bool) -> torch.nn.Module:
    """Make a tiny model with random weights, in double precision and without dropout; its head tied or not."""
    torch.manual_seed(0)
    model = MAKERS.get(name, causal)(name, tied)
    if name != "vit":
        is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert is_tied == tied, f"{name} does not tie its head as it was told to"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for option in [option for option in vars(module) if "dropout" in option or "layerdrop" in option]:
            if isinstance(getattr(module, option), float):
                setattr(module, option, 0.0)
    # Its masks are of numbers that double precision takes for larger than float.
    return model if name == "xglm" else model.double()


def causal(name: str, tied: bool) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(name, **{**TINY[name], "tie_word_embeddings": tied})
    return transformers.AutoModelForCausalLM.from_config(config)


def t5(name: str, tied: bool) -> torch.nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**sizes, vocab_size=37, dropout_rate=0.0, decoder_start_token_id=0)
    config.tie_word_embeddings = tied
    return transformers.T5ForConditionalGeneration(config)


def whisper(name: str, tied: bool) -> torch.nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **heads,
        **tokens,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        vocab_size=37,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=16,
        dropout=0.0,
        tie_word_embeddings=tied,
    )
    return transformers.WhisperForConditionalGeneration(config)


def vit(name: str, tied: bool) -> torch.nn.Module:
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=3, hidden_dropout_prob=0.0)
    return transformers.ViTForImageClassification(config)


MAKERS = {"t5": t5, "whisper": whisper, "vit": vit}


def run_models(
    rank: int, cases: list[tuple[str, bool]], ipus: int, on_cards: bool = False
) -> dict[tuple[str, bool], Any]:
    """Train each model, tied or not; returns the names of the gradients this rank has, or a traceback."""
    found: dict[tuple[str, bool], Any] = {}
    for case in cases:
        try:
            found[case] = compare(*case, ipus, torch.device("cuda", rank) if on_cards else torch.device("cpu"))
        except Exception:
            found[case] = traceback.format_exc()
            break
    return found


def compare(name: str, tied: bool, ipus: int, device: torch.device) -> tuple[set[str], set[str]]:
    """Compare loss and gradients; returns the names of those this rank has, and of those of the plain model."""
    model = make(name, tied=tied)
    inputs = sample_batch(model, batch_size=2 * MICRO_BATCHES, length=8)
    inputs = {
        n: v.to(device, model.dtype if v.is_floating_point() else None) if isinstance(v, torch.Tensor) else v
        for n, v in inputs.items()
    }
    model.to(device)
    expected, losses = {}, []
    model.train()
    for part in range(MICRO_BATCHES):
        rows = {n: v[2 * part : 2 * part + 2] if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        loss = pytree.tree_leaves(model(**without_cache(model, rows)))[0]
        (loss / MICRO_BATCHES).backward()
        losses.append(loss.detach())
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected[parameter_name] = parameter.grad.clone()
    model.zero_grad()
    ipu_config = IPUConfig(
        layers_per_ipu=[-1],
        ipus_per_replica=ipus,
        schedule="gpipe",
        gradient_accumulation_steps=MICRO_BATCHES,
        output_mode="all",
    )
    executor = training_model(to_pipelined(model, ipu_config), engine="distributed", outputs=["loss"])
    made = executor(**inputs).loss
    close("the loss", made.reshape(-1), torch.stack(losses))
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for parameter_name, gradient in found.items():
        close(f"the gradient of {parameter_name}", gradient, expected[parameter_name])
    return set(found), set(expected)


def close(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape, f"{what}: {list(ours.shape)} and {list(theirs.shape)}"
    difference = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    # Some models compute a part, such as a norm, in single precision whatever their weights are.
    assert difference < 1e-5, f"{what} differs by {difference:.1e}"
