# SPDX-License-Identifier: Apache-2.0
"""What pipelined models cost on one CUDA card, against the plain model, both sides in one run.

Training steps of BERT-base and of a 12-layer Llama: eager, and pipelined on one and on four stages, with updates and
the optimizer's steps recorded and without. Greedy decoding of two Llama shapes, at batch 1 and 8: plain, and pipelined,
recorded and not, and with weights of 4 bits. `--compiled` measures `compile=True` beside torch's compiler instead.
`--cpu-rehearsal` runs the same rows with tiny shapes on the CPU, where nothing is recorded: it shows that they run.

Meant for at most 8 minutes on a card, with `--compiled` and without; it was not seen on one yet. Results are kept with
the card's name (--save).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined, training_model
from results import report

Step = Callable[[], object]
NEW_TOKENS = 64


def main() -> None:
    """Measure every row, print each as it comes, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--compiled", action="store_true", help="measure compiled stages, beside torch's compiler")
    parser.add_argument("--only", default="", help="the rows whose names have this in them")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    if not options.cpu_rehearsal and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: use --cpu-rehearsal to see that the rows run")
    device = "cpu" if options.cpu_rehearsal else "cuda:0"
    card = "rehearsal" if options.cpu_rehearsal else torch.cuda.get_device_name().replace(" ", "-").lower()
    card += "-compiled" if options.compiled else ""
    rows: dict[str, dict[str, Any]] = {}
    told = {"tiny": options.cpu_rehearsal, "runs": options.runs, "compiled": options.compiled}
    for name, measure in measurements(device, **told).items():
        if options.only in name:
            rows[name] = measure()
            report(f"gpu-{card}", {name: rows[name]}, save=False)
    if options.save:
        report(f"gpu-{card}", rows, save=True)


def measurements(device: str, *, tiny: bool, runs: int, compiled: bool) -> dict[str, Callable[[], dict[str, float]]]:
    """Return what is measured, by the name of its row."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    size["vocab_size"] = 128
    bert = transformers.BertConfig(**(size if tiny else {}))
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16}
    llama = transformers.LlamaConfig(**(size if tiny else wide))
    found: dict[str, Callable[[], dict[str, float]]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        rows, length = (8, 8) if tiny else (32, 128)
        found[f"train BERT-base {rows}x{length} {dtype}"] = lambda d=dtype, r=rows, n=length: training(
            transformers.BertForSequenceClassification(bert).to(device, d), r, n, 2, runs, compiled
        )
    rows, length = (4, 8) if tiny else (8, 1024)
    found[f"train Llama {rows}x{length} bf16"] = lambda: training(
        transformers.LlamaForCausalLM(llama).to(device, torch.bfloat16), rows, length, None, runs, compiled
    )
    for name, shape in LLAMAS.items():
        for batch_size in (1, 8):
            config = transformers.LlamaConfig(
                **(size if tiny else shape), eos_token_id=None, pad_token_id=0, max_position_embeddings=512
            )
            found[f"decode Llama {name} batch {batch_size}"] = lambda c=config, b=batch_size: decoding(
                transformers.LlamaForCausalLM(c).to(device, torch.bfloat16).eval(),
                b,
                8 if tiny else NEW_TOKENS,
                compiled,
            )
    return found


LLAMAS: dict[str, dict[str, int]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "vocab_size": 49152,
    },
    "1.1B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}


def training(model: Any, rows: int, length: int, num_labels: int | None, runs: int, compiled: bool) -> dict[str, float]:
    """Time a training step, eager and pipelined, each on a copy of the model; give milliseconds and peaks."""
    device = model.device
    ids = torch.randint(3, 100, (rows, length), device=device)
    labels = ids if num_labels is None else torch.randint(0, num_labels, (rows,), device=device)
    batch, figures = {"input_ids": ids, "labels": labels}, {}
    for name, options in (compiled_sides if compiled else sides)(device).items():
        made = copy.deepcopy(model).train()
        # Counts its steps on the card, so that they can be recorded; for every side.
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, capturable=device.type == "cuda")
        plain = torch.compile(made) if name == "torch_compile" else made
        step = _eager(plain, optimizer, batch) if options is None else _ours(made, optimizer, batch, options)
        figures |= {f"{name}_{figure}": value for figure, value in timed(step, device, runs).items()}
        del made, optimizer, step
    return figures


def sides(device: torch.device) -> dict[str, dict[str, Any] | None]:
    """Return the options of each side; None is eager."""
    four = {"layers_per_ipu": [-1] * 4, "gradient_accumulation_steps": 4, "schedule": "1f1b"}
    found: dict[str, dict[str, Any] | None] = {"eager": None, "one_stage": {}, "four_by_four": four}
    if device.type == "cuda":
        found |= {"one_stage_recorded": {"record": True}, "four_by_four_recorded": {**four, "record": True}}
    return found


def compiled_sides(device: torch.device) -> dict[str, dict[str, Any] | None]:
    """Return the options of each side that is compiled; None is the plain model, by torch's compiler."""
    found: dict[str, dict[str, Any] | None] = {"torch_compile": None, "compiled": {"compile": True}}
    if device.type == "cuda":
        found["compiled_recorded"] = {"compile": True, "record": True}
    return found


def _eager(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def _ours(
    model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], options: dict[str, Any]
) -> Step:
    executor = training_model(to_pipelined(model, IPUConfig(**options)), optimizer, outputs=["loss"])
    return lambda: executor(**batch)


def timed(step: Step, device: torch.device, runs: int) -> dict[str, float]:
    """Run a step some times after some more; give the median in milliseconds, and on a card its peak in GiB."""
    for _ in range(4):
        step()
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(runs):
        _finish(device)
        started = time.perf_counter()
        step()
        _finish(device)
        times.append(1000 * (time.perf_counter() - started))
    figures = {"ms": sorted(times)[len(times) // 2]}
    if device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures


def decoding(model: Any, batch_size: int, num_tokens: int, compiled: bool) -> dict[str, float]:
    """Time greedy decoding after a short prompt; give tokens a second of all rows, and the first call's seconds."""
    ids = torch.randint(3, 100, (batch_size, 8), device=model.device)
    asked = {"max_new_tokens": num_tokens, "do_sample": False}
    calls: dict[str, Step] = {"plain": lambda: model.generate(ids, **asked)}
    records = model.device.type == "cuda"
    if records:
        calls["plain_static_compiled"] = lambda: model.generate(ids, **asked, cache_implementation="static")
    ours: dict[str, dict[str, Any]] = {"compiled" if compiled else "ours": {"compile": compiled}}
    if records:
        ours["compiled_recorded" if compiled else "recorded"] = {"compile": compiled, "record": True}
    kinds = [(name, options, None) for name, options in ours.items()]
    kinds.append(("int4", {"compile": compiled, "record": records}, "int4"))
    for name, options, weights in kinds:
        pipelined = to_pipelined(model, IPUConfig(**options))
        generator = generation_model(pipelined, max_length=8 + num_tokens, tokens_per_call=8, weights=weights)
        calls[name] = lambda g=generator: g.generate(ids, **asked)
    figures = {}
    for name, call in calls.items():
        figures[f"{name}_first_s"] = _seconds(call, model.device)
        call()
        figures[f"{name}_tokens_s"] = batch_size * num_tokens / _seconds(call, model.device)
    return figures


def _seconds(call: Step, device: torch.device) -> float:
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
