# SPDX-License-Identifier: Apache-2.0
"""What pipelined models cost on one CUDA card, against the plain model, both sides in one run.

Training steps of BERT-base and of a 12-layer Llama: eager, and pipelined on one and on four stages, with updates and
the optimizer's steps recorded and without. Greedy decoding of two Llama shapes, at batch 1 and 8, and sampling: plain,
and pipelined, recorded and not, and with weights of 4 bits. `--compiled` measures `compile=True` beside torch's
compiler instead. `--cpu-rehearsal` runs the same rows with tiny shapes on the CPU, where nothing is recorded: it shows
that they run.

A row is printed as soon as it is there, with the sides that were measured. After `--budget` seconds no side begins, a
minute later the one that runs is stopped, and the rows and sides left out are named. It was not seen on a card yet.
Results are kept with the card's name (--save).
"""

from __future__ import annotations

import argparse
import copy
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined, training_model
from results import report

Step = Callable[[], object]
# One side after the other: its name, and what it is measured by.
Sides = Iterator[tuple[str, Callable[[], dict[str, float]]]]
NEW_TOKENS = 64
GRACE = 60  # seconds of the side that runs when the budget is spent


class OutOfTimeError(Exception):
    """The budget is spent, and its grace."""


def main() -> None:
    """Measure every row, print each as it comes, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--compiled", action="store_true", help="measure compiled stages, beside torch's compiler")
    parser.add_argument("--only", default="", help="the rows whose names have this in them")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", type=float, help="seconds after which no side begins: 400, or an hour to rehearse")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    if not options.cpu_rehearsal and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: use --cpu-rehearsal to see that the rows run")
    device = "cpu" if options.cpu_rehearsal else "cuda:0"
    card = "rehearsal" if options.cpu_rehearsal else torch.cuda.get_device_name().replace(" ", "-").lower()
    card += "-compiled" if options.compiled else ""
    with tempfile.TemporaryDirectory() as folder:
        told = {"tiny": options.cpu_rehearsal, "runs": options.runs, "compiled": options.compiled}
        rows = {name: row for name, row in measurements(device, folder, **told).items() if options.only in name}
        budget = options.budget or (3600 if options.cpu_rehearsal else 400)
        measured, has_failed = measure(rows, budget, lambda n, row: report(f"gpu-{card}", {n: row}, save=False))
    if options.save:
        report(f"gpu-{card}", measured, save=True)
    if has_failed:
        raise SystemExit(1)


def measure(
    rows: dict[str, Callable[[], Sides]], budget: float, show: Callable[[str, dict[str, float]], None]
) -> tuple[dict[str, dict[str, float]], bool]:
    """Measure rows until a budget of seconds is spent, and name what is left out; return too whether a side failed."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError

    end, measured, left_out, failed = time.monotonic() + budget, dict[str, dict[str, float]](), list[str](), list[str]()
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, budget + GRACE)
    for name, sides in rows.items():
        figures: dict[str, float] = {}
        if time.monotonic() >= end:
            left_out.append(name)
            continue
        try:
            for side, run in sides():
                if time.monotonic() >= end:
                    left_out.append(f"{name}: {side}")
                    continue
                try:
                    figures |= run()
                except OutOfTimeError:
                    raise
                except Exception as error:  # of one side: a machine that is lent shows the others too
                    failed.append(f"{name}: {side} ({type(error).__name__}: {str(error).splitlines()[:1]})")
        except OutOfTimeError:
            left_out.append(f"{name}: {side}")
        if figures:
            measured[name] = figures
            show(name, figures)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if left_out:
        print(f"left out after {budget:.0f} s: {'; '.join(left_out)}", flush=True)
    if failed:
        print(f"failed: {'; '.join(failed)}", flush=True)
    return measured, bool(failed)


def measurements(device: str, folder: str, *, tiny: bool, runs: int, compiled: bool) -> dict[str, Callable[[], Sides]]:
    """Return what is measured, by the name of its row; what is asked first comes first."""
    # A graph costs the same time to compile whatever its size: a rehearsal has few, and shares them between rows.
    shared = {"executable_cache_dir": folder} if tiny else {}
    is_short = tiny and compiled
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 128}
    size["num_hidden_layers"] = 1 if is_short else 4
    bert = transformers.BertConfig(**(size if tiny else {}))
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16}
    llama = transformers.LlamaConfig(**(size if tiny else wide))
    found: dict[str, Callable[[], Sides]] = {}

    def add_decoding(name: str, batch_size: int, **asked: Any) -> None:
        rows = 1 if is_short else batch_size
        shape = {**(size if tiny else LLAMAS[name]), "eos_token_id": None, "pad_token_id": 0}
        config = transformers.LlamaConfig(**shape, max_position_embeddings=512)
        found[f"decode Llama {name} batch {batch_size}{' sampled' if asked else ''}"] = lambda: decoding(
            transformers.LlamaForCausalLM(config).to(device, torch.bfloat16).eval(),
            rows,
            8 if tiny else NEW_TOKENS,
            {"compile": compiled, **shared},
            {"do_sample": False, **asked},
        )

    def add_bert(dtype: torch.dtype) -> None:
        rows, length = (8, 8) if tiny else (32, 128)
        computed = torch.bfloat16 if is_short else dtype
        found[f"train BERT-base {rows}x{length} {dtype}"] = lambda: training(
            transformers.BertForSequenceClassification(bert).to(device, computed),
            rows,
            length,
            2,
            runs,
            compiled,
            shared,
        )

    add_decoding("135M", 1)
    add_decoding("1.1B", 1)
    add_bert(torch.bfloat16)
    rows, length = (4, 8) if tiny else (8, 1024)
    found[f"train Llama {rows}x{length} bf16"] = lambda: training(
        transformers.LlamaForCausalLM(llama).to(device, torch.bfloat16), rows, length, None, runs, compiled, shared
    )
    add_decoding("135M", 8)
    add_decoding("1.1B", 8)
    add_decoding("135M", 1, do_sample=True, temperature=0.8, top_k=50, top_p=0.95)
    add_bert(torch.float32)
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


def training(
    model: Any,
    rows: int,
    length: int,
    num_labels: int | None,
    runs: int,
    compiled: bool,
    shared: dict[str, Any],
) -> Sides:
    """Yield each side of a training step, eager and pipelined, on a copy of the model; milliseconds and peaks."""
    device = model.device
    ids = torch.randint(3, 100, (rows, length), device=device)
    labels = ids if num_labels is None else torch.randint(0, num_labels, (rows,), device=device)
    batch = {"input_ids": ids, "labels": labels}
    backend = "aot_eager" if device.type == "cpu" else "inductor"  # a rehearsal of torch's own compiler says nothing

    def side(name: str, options: dict[str, Any] | None) -> dict[str, float]:
        made = copy.deepcopy(model).train()
        # Counts its steps on the card, so that they can be recorded; for every side.
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-4, capturable=device.type == "cuda")
        plain = torch.compile(made, backend=backend) if name == "torch_compile" else made
        step = _eager(plain, optimizer, batch) if options is None else _ours(made, optimizer, batch, options | shared)
        return {f"{name}_{figure}": value for figure, value in timed(step, device, runs).items()}

    for name, options in (compiled_sides if compiled else sides)(device).items():
        yield name, lambda n=name, o=options: side(n, o)


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


def decoding(model: Any, batch_size: int, num_tokens: int, options: dict[str, Any], how: dict[str, Any]) -> Sides:
    """Yield each side of decoding after a short prompt: tokens a second of all rows, and the first call's seconds.

    A step of a row reads every weight once: `gb_s` is what that is of memory a second.
    """
    ids = torch.randint(3, 100, (batch_size, 8), device=model.device)
    asked = {"max_new_tokens": num_tokens, **how}
    held = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    records, compiled = model.device.type == "cuda", options["compile"]

    def side(name: str, make: Callable[[], Callable[..., Any]]) -> dict[str, float]:
        generate = make()
        first = _seconds(lambda: generate(ids, **asked), model.device)
        generate(ids, **asked)
        steps = num_tokens / _seconds(lambda: generate(ids, **asked), model.device)
        figures = {f"{name}_first_s": first, f"{name}_tokens_s": batch_size * steps}
        return figures if name == "int4" else {**figures, f"{name}_gb_s": held * steps}

    def ours(weights: str | None, **more: Any) -> Callable[..., Any]:
        pipelined = to_pipelined(model, IPUConfig(**options, **more))
        length = 8 + num_tokens
        return generation_model(pipelined, max_length=length, tokens_per_call=8, weights=weights).generate

    kinds: dict[str, Callable[[], Callable[..., Any]]] = {"plain": lambda: model.generate}
    if records:
        kinds["plain_static_compiled"] = lambda: lambda *a, **k: model.generate(*a, **k, cache_implementation="static")
        kinds["compiled_recorded" if compiled else "recorded"] = lambda: ours(None, record=True)
    kinds["compiled" if compiled else "ours"] = lambda: ours(None)
    kinds["int4"] = lambda: ours("int4", record=records)
    for name, make in kinds.items():
        yield name, lambda n=name, m=make: side(n, m)


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
