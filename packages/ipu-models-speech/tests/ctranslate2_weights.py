# SPDX-License-Identifier: Apache-2.0
"""Reads a Whisper back from a file of CTranslate2, an inference runtime, with NumPy alone."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy
import torch
import transformers

DTYPES = {0: numpy.float32, 1: numpy.int8, 2: numpy.int16, 3: numpy.int32, 4: numpy.float16}
# where a name of theirs begins -> where ours does; the first that matches counts
NAMES = (
    (r"^(\w+)/layer_(\d+)/self_attention/layer_norm", r"model.\1.layers.\2.self_attn_layer_norm"),
    (r"^(\w+)/layer_(\d+)/attention/layer_norm", r"model.\1.layers.\2.encoder_attn_layer_norm"),
    (r"^(\w+)/layer_(\d+)/ffn/layer_norm", r"model.\1.layers.\2.final_layer_norm"),
    (r"^(\w+)/layer_(\d+)/self_attention/linear_0", r"model.\1.layers.\2.self_attn.{q_proj,k_proj,v_proj}"),
    (r"^(\w+)/layer_(\d+)/self_attention/linear_1", r"model.\1.layers.\2.self_attn.out_proj"),
    (r"^(\w+)/layer_(\d+)/attention/linear_0", r"model.\1.layers.\2.encoder_attn.q_proj"),
    (r"^(\w+)/layer_(\d+)/attention/linear_1", r"model.\1.layers.\2.encoder_attn.{k_proj,v_proj}"),
    (r"^(\w+)/layer_(\d+)/attention/linear_2", r"model.\1.layers.\2.encoder_attn.out_proj"),
    (r"^(\w+)/layer_(\d+)/ffn/linear_0", r"model.\1.layers.\2.fc1"),
    (r"^(\w+)/layer_(\d+)/ffn/linear_1", r"model.\1.layers.\2.fc2"),
    (r"^(\w+)/layer_norm", r"model.\1.layer_norm"),
    (r"^(\w+)/(conv\d)", r"model.\1.\2"),
    (r"^(\w+)/position_encodings/encodings", r"model.\1.embed_positions.weight"),
    (r"^decoder/embeddings/weight", r"model.decoder.embed_tokens.weight"),
)
ENDS = {"/weight": ".weight", "/bias": ".bias", "/gamma": ".weight", "/beta": ".bias", "": ""}


def read_whisper(folder: Path) -> transformers.WhisperForConditionalGeneration:
    """Return the model of a folder with `model.bin` and `config.json`."""
    state = dict(_renamed(_variables((folder / "model.bin").read_bytes())))
    model = transformers.WhisperForConditionalGeneration(_config(state))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], []), (missing, unexpected)  # it is tied
    model.generation_config.update(suppress_tokens=json.loads((folder / "config.json").read_text())["suppress_ids"])
    return model.eval()


def _variables(data: bytes) -> dict[str, numpy.ndarray]:
    """Return the variables of a file: its head, each with name, shape, type and bytes, then second names."""
    place = 0

    def take(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal place
        length = take("H")
        place += length
        return data[place - length : place - 1].decode()

    take("I"), text(), take("I")  # version, kind of model, revision
    variables = {}
    for _ in range(take("I")):
        name, shape = text(), [take("I") for _ in range(take("B"))]
        dtype, size = DTYPES[take("B")], take("I")
        variables[name] = numpy.frombuffer(data, dtype, size // numpy.dtype(dtype).itemsize, place).reshape(shape)
        place += size
    return variables


def _renamed(variables: dict[str, numpy.ndarray]):
    for name, value in variables.items():
        if name.rpartition("/")[2] in ("num_heads", "pre_norm", "activation", "alignment_layer", "alignment_heads"):
            continue
        for pattern, target in NAMES:
            if match := re.match(pattern, name):
                end = ENDS.get(name[match.end() :])
                if end is not None:
                    yield from _parts(match.expand(target) + end, torch.from_numpy(value.astype(numpy.float32)))
                break


def _parts(name: str, value: torch.Tensor):
    """Return a tensor under its name, or its equal parts under theirs: `{a,b}` in a name."""
    inside = re.search(r"\{(.*)\}", name)
    if inside is None:
        yield name, value
        return
    parts = inside[1].split(",")
    for part, tensor in zip(parts, value.chunk(len(parts)), strict=True):
        if (part, name.rpartition(".")[2]) == ("k_proj", "bias"):
            assert not tensor.any()  # transformers has none
        else:
            yield name.replace(inside[0], part), tensor


def _config(state: dict[str, torch.Tensor]) -> transformers.WhisperConfig:
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    end = 50256 if vocabulary == 51864 else 50257  # English only, or many languages
    layers = {
        side: len({n.split(".")[3] for n in state if f"model.{side}.layers" in n}) for side in ("encoder", "decoder")
    }
    return transformers.WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        d_model=width,
        **{f"{side}_layers": number for side, number in layers.items()},
        **{f"{side}_attention_heads": width // 64 for side in layers},
        **{f"{side}_ffn_dim": 4 * width for side in layers},
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
    )
