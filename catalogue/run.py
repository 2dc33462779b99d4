# SPDX-License-Identifier: Apache-2.0
"""Run the catalogue: every text architecture of `tiny.json`, pipelined, against the plain model; `nox -s catalogue`.

Of each type the base model, with a loss made of its output, and its language-model head, with the head's own loss. On
1, 2 and 4 IPUs: the outputs of inference, padded and unpadded, and the losses and every gradient of training on two
padded micro-batches with dropout on. A head that generates does so on 2 IPUs: greedy search, sampling, beam search, and
greedy search without a cache give the plain model's tokens.

Types that a plugin declares are compared by the conformance kit, class by class, and here with `--all` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core._transformers import class_with_head
from ipu_core.batch import micro_batches
from ipu_core.capture.capture import without_cache
from ipu_core.engines.registry import usable_engine
from ipu_core.errors import CacheError, GenerationModeError
from ipu_core.executor import Executor
from ipu_core.lowering import capture_model
from ipu_core.partition.layout import layout
from ipu_core.plugins.registry import installed
from ipu_core.samples import sample_batch
from ipu_core.testing import with_loss
from ipu_core.upstream import CACHE
from torch.utils import _pytree as pytree

TINY: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "tiny.json").read_text())
NOTES = {
    "mra": "its attention needs a CUDA kernel: on the CPU it gives zeros, plain and pipelined",
    **dict.fromkeys(
        ("reformer", "nllb-moe", "switch_transformers"),
        "without dropout, which draws other numbers than upstream (docs/design/edits.md)",
    ),
}
# What these go on from is no static cache of keys and values: they are asked to refuse one, and generate without.
UNCACHED = {
    "git": "its forward asks whether an image is cached",
    "mamba": "it keeps states of a recurrence",
    "rwkv": "it keeps states of a recurrence",
    # Before, it had no argument of this name, and ran without.
    **({"xlm": "it caches the token that stands for the next one"} if CACHE == "cache" else {}),
}
# These are asked to refuse to generate.
NOT_GENERATED = {
    **dict.fromkeys(("prophetnet", "xlm-prophetnet"), "its logits change when others follow, plain and pipelined"),
    "xlnet": "its `generate` hands the forward permutations of all tokens",
}
# Recurrences are unrolled, so that their graphs grow with the length.
LENGTHS = {"mamba": 6, "rwkv": 6}
LENGTH = 16
MICRO_BATCHES, ROWS = 2, 2
TURNS = 10
IPUS = (1, 2, 4)
GENERATED_ON = 2
PROMPT_TOKENS, NEW_TOKENS = 6, 6
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
MODES: dict[str, dict[str, Any]] = {
    "greedy search": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beam search": {"do_sample": False, "num_beams": 3},
    "greedy search without a cache": {"do_sample": False, "use_cache": False},
}
# Of the largest value that is compared.
TOLERANCE = 1e-5
HEADS = (transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found out about one model; `differences` has the failures too, as text."""

    model_type: str
    model: str
    layers: int | None
    differences: Mapping[tuple[str, int], float | str]
    seconds: float

    @property
    def failures(self) -> list[str]:
        """Return a line for each thing that is not equal."""
        ipus: dict[tuple[str, float | str], list[int]] = {}
        for (kind, num_ipus), found in self.differences.items():
            if isinstance(found, str) or not found <= TOLERANCE:
                ipus.setdefault((kind, found), []).append(num_ipus)
        return [
            f"{self.model_type} ({self.model}), {kind} on {', '.join(map(str, numbers))} IPUs: {found}"
            for (kind, found), numbers in ipus.items()
        ]

    def __str__(self) -> str:
        def cells(kind: str, ipus: Sequence[int] = IPUS) -> str:
            found = [self.differences.get((kind, num_ipus), "") for num_ipus in ipus]
            return " ".join(f"{'ok' if not isinstance(f, str) and f <= TOLERANCE else 'FAIL':>4}" for f in found)

        made = "" if ("generation", GENERATED_ON) not in self.differences else cells("generation", [GENERATED_ON])
        numbers = [found for found in self.differences.values() if not isinstance(found, str)]
        largest = f"{max(numbers):.0e}" if numbers else ""
        layers = "" if self.layers is None else str(self.layers)
        return (
            f"{self.model_type:20} {self.model:36} {layers:>6}  {cells('inference')}  {cells('training')}  "
            f"{made:>10}  {largest:>7} {self.seconds:6.1f}"
        )


HEADER = (
    f"{'type':20} {'model':36} {'layers':>6}  {'inference':14}  {'training':14}  generation\n"
    f"{'':64}  {' '.join(f'{n:>4}' for n in IPUS)}  {' '.join(f'{n:>4}' for n in IPUS)}  {GENERATED_ON:>10}"
    "  largest seconds"
)


def models_of(model_type: str) -> Iterator[tuple[Any, bool]]:
    """Make the base model of a type, with a loss, and its head where transformers has one; say which has a head."""
    installed()  # registers the architectures that transformers does not have
    config = transformers.AutoConfig.for_model(model_type, **TINY[model_type])
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    torch.manual_seed(0)
    yield with_loss(transformers.AutoModel.from_config(config)), False
    for auto in HEADS:
        if class_with_head(auto, config) is not None:
            torch.manual_seed(0)
            yield auto.from_config(config), True
            return


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with what its batches look like."""

    model: Any
    has_head: bool
    length: int


def batch_of(case: Case, *, rows: int, padded: bool) -> dict[str, Any]:
    """Make a batch for a model, with a decoder's inputs and labels where it takes them."""
    model = case.model
    batch = sample_batch(model, batch_size=rows, length=case.length, padded=padded)
    if case.has_head and "labels" not in batch:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    images = getattr(model.config, "vision_config", None)
    if case.has_head and images is not None and "pixel_values" not in batch:
        shape = (rows, images.num_channels, images.image_size, images.image_size)
        batch["pixel_values"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if model.config.is_encoder_decoder and not {"decoder_input_ids", "labels"} & set(batch):
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)
    return batch


def examine(model_type: str) -> list[Row]:
    """Compare the models of one type with their pipelined selves."""
    rows = []
    try:
        for model, has_head in models_of(model_type):
            case = Case(model=model, has_head=has_head, length=LENGTHS.get(model_type, LENGTH))
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graphs it gives up
                rows.append(_examine(model_type, case))
    except Exception as error:
        failed = {("making it", 1): _text(error)}
        rows.append(Row(model_type=model_type, model="", layers=None, differences=failed, seconds=0.0))
    return rows


def _examine(model_type: str, case: Case) -> Row:
    started = time.perf_counter()
    differences: dict[tuple[str, int], float | str] = {}
    layers: list[int] = []
    for kind, compare in (("inference", _inference), ("training", _training)):
        try:
            for num_ipus, num_layers, found in compare(case):
                differences[kind, num_ipus] = found
                layers.append(num_layers)
        except Exception as error:
            missing = [num_ipus for num_ipus in IPUS if (kind, num_ipus) not in differences]
            differences.update({(kind, num_ipus): _text(error) for num_ipus in missing})
    if case.has_head and case.model.can_generate():
        try:
            found = _generate(case.model, model_type)
            if model_type not in NOT_GENERATED:
                differences["generation", GENERATED_ON] = found
        except Exception as error:
            differences["generation", GENERATED_ON] = _text(error)
    return Row(
        model_type=model_type,
        model=type(case.model).__name__,
        layers=layers[0] if layers else None,
        differences=differences,
        seconds=time.perf_counter() - started,
    )


def _inference(case: Case) -> Iterator[tuple[int, int, float]]:
    """Yield the number of IPUs, that of layers found, and the difference."""
    model = case.model
    batches = [batch_of(case, rows=ROWS, padded=padded) for padded in (True, False)]
    model.eval()
    with torch.no_grad():
        expected = [model(**without_cache(model, batch)) for batch in batches]
    for num_ipus, layers, executor in _executors(model, batches[0], inference=True):
        found = [
            difference(pytree.tree_leaves(executor(**batch)), pytree.tree_leaves(plain))
            for batch, plain in zip(batches, expected, strict=True)
        ]
        yield num_ipus, layers, max(found)


def _training(case: Case) -> Iterator[tuple[int, int, float]]:
    """Yield the number of IPUs, that of layers found, and the difference."""
    model = case.model
    batch = batch_of(case, rows=ROWS * MICRO_BATCHES, padded=True)
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    losses = []
    for part in micro_batches(batch, _config(1).for_training()):
        losses.append(model(**without_cache(model, part))["loss"])
        (losses[-1] / MICRO_BATCHES).backward()
    gradients = [p.grad for p in model.parameters()]
    for num_ipus, layers, executor in _executors(model, batch, inference=False):
        model.zero_grad()
        torch.manual_seed(0)
        loss = executor(**batch)["loss"]
        found = difference([p.grad for p in model.parameters()], gradients)
        yield num_ipus, layers, max(found, difference([loss], [torch.stack(losses)]))
    model.zero_grad()


def _generate(model: Any, model_type: str) -> float:
    """Generate with a model and its pipelined self, and give the largest difference of logits.

    Raises:
        AssertionError: other tokens, or what is known not to work is not refused.
    """
    model.eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # weights that are all but zero say one token for ever
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.update(pad_token_id=0, eos_token_id=[5, 7], bos_token_id=1)
    if model.config.is_encoder_decoder:
        model.generation_config.update(decoder_start_token_id=2)
    ids = torch.randint(8, 60, (ROWS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, **LOGITS}
    largest = 0.0
    pipelined = to_pipelined(model, _config(GENERATED_ON))
    generators: dict[Any, Any] = {}
    for mode, options in MODES.items():
        # Other beams, and other caches, are other programs.
        kind = options.get("num_beams"), options.get("use_cache")
        generator = generators.setdefault(kind, generation_model(pipelined))
        if model_type in NOT_GENERATED or (model_type in UNCACHED and options.get("use_cache", True)):
            _refused(generator, ids, **given, **options)
            continue
        made = []
        for which in (model, generator):
            torch.manual_seed(0)
            made.append(which.generate(ids, **given, **options))
        plain, found = made
        is_equal = torch.equal(found.sequences, plain.sequences)
        assert is_equal, f"{mode} gives {found.sequences.tolist()}, and the plain model {plain.sequences.tolist()}"
        largest = max(largest, difference(found.logits, plain.logits))
    return largest


def _refused(generator: Any, ids: torch.Tensor, **options: Any) -> None:
    with contextlib.suppress(CacheError, GenerationModeError):
        generator.generate(ids, **options)
        raise AssertionError("it is not refused, and it is known not to work")


def _executors(model: Any, batch: Mapping[str, Any], *, inference: bool) -> Iterator[tuple[int, int, Executor]]:
    """Make an executor for each number of IPUs; they differ in where the graph is cut alone, and share it."""
    pipelined = to_pipelined(model, _config(1))
    config = pipelined.ipu_config.for_inference() if inference else pipelined.ipu_config.for_training()
    captured = capture_model(pipelined, config, next(micro_batches(batch, config)))
    with pipelined.parallelized(for_inference=inference):
        layers = layout(pipelined, pipelined.layout_patterns, captured).num_layers
    for num_ipus in IPUS:
        pipelined = to_pipelined(model, _config(num_ipus))
        config = pipelined.ipu_config.for_inference() if inference else pipelined.ipu_config.for_training()
        outputs = None if inference else ["loss"]
        yield num_ipus, layers, Executor(pipelined, config, usable_engine(None), captured=captured, outputs=outputs)


def _config(num_ipus: int) -> IPUConfig:
    return IPUConfig(layers_per_ipu=[-1] * num_ipus, gradient_accumulation_steps=MICRO_BATCHES, output_mode="all")


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Return the largest difference of some tensors, as a share of the largest value there is.

    Raises:
        AssertionError: one is there and the other is not, or of another shape, or no number where the other is one.
    """
    assert len(ours) == len(theirs), f"{len(ours)} values, and the plain model has {len(theirs)}"
    scale, largest = 0.0, 0.0
    for our, their in zip(ours, theirs, strict=True):
        if their is None and isinstance(our, torch.Tensor) and not our.any():
            continue  # what upstream leaves out, such as an expert without tokens, has a gradient of zeros here
        if not isinstance(our, torch.Tensor) or not isinstance(their, torch.Tensor):
            assert our is their or our == their, f"{our}, and the plain model has {their}"
            continue
        assert our.shape == their.shape, f"shape {list(our.shape)}, and the plain model has {list(their.shape)}"
        ours_, theirs_ = our.detach().double(), their.detach().double()
        is_same = (ours_ == theirs_) | (ours_.isnan() & theirs_.isnan())
        differences = (ours_ - theirs_).abs().masked_fill(is_same, 0.0)
        assert not differences.isnan().any(), "no number where the plain model has one"
        scale = max(scale, theirs_.nan_to_num(posinf=0, neginf=0).abs().max().item() if their.numel() else 0.0)
        largest = max(largest, differences.max().item() if our.numel() else 0.0)
    return largest / scale if largest else 0.0


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; give 1 where something is not equal, 2 for a type that is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; by default those that no plugin declares")
    parser.add_argument("--all", action="store_true", help="all model types")
    parser.add_argument("--turn", type=int, help=f"one of {TURNS} shares of the default, which take turns")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.types if name not in TINY]
    for name in unknown:
        near = difflib.get_close_matches(name, TINY)
        print(f"no model type `{name}` in the catalogue{f': is it {near}?' if near else ''}", file=sys.stderr)
    if unknown:
        return 2
    types = options.types or _types(options.all, options.turn)
    if options.turn is not None and not options.types:
        print(f"turn {options.turn}, share {options.turn % TURNS + 1} of {TURNS}: {', '.join(types)}", flush=True)
    started = time.perf_counter()
    print(HEADER, flush=True)
    rows: list[Row] = []
    # Processes of their own: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context, initializer=_quiet) as pool:
        for found in pool.map(examine, types):
            rows += found
            print(*found, sep="\n", flush=True)
    _summary(rows, [] if options.all else types, time.perf_counter() - started)
    return 1 if any(row.failures for row in rows) else 0


def _types(is_all: bool, turn: int | None) -> list[str]:
    declared = {family.model_type for plugin in installed().plugins for family in plugin.families}
    known = transformers.CONFIG_MAPPING
    types = [name for name in TINY if is_all or not {name, known[name].model_type} & declared]
    return types if turn is None else types[turn % TURNS :: TURNS]


def _summary(rows: Sequence[Row], chosen: Sequence[str], seconds: float) -> None:
    print()
    for name, reason in NOTES.items():
        if not chosen or name in chosen:
            print(f"note: {name}: {reason}")
    for name, reason in {**UNCACHED, **NOT_GENERATED}.items():
        if not chosen or name in chosen:
            how = "does not generate" if name in NOT_GENERATED else "generates without caches"
            print(f"note: {name} {how}: {reason}")
    failures = [failure for row in rows for failure in row.failures]
    failed = {row.model_type for row in rows if row.failures}
    types = {row.model_type for row in rows}
    num_generated = sum(
        isinstance(row.differences.get(("generation", GENERATED_ON)), float) for row in rows if not row.failures
    )
    print(*(f"FAIL: {failure}" for failure in failures), sep="\n", end="\n" if failures else "")
    print(
        f"{len(types) - len(failed)} of {len(types)} types equal the plain model, {len(rows)} models in all, "
        f"to {TOLERANCE:.0e} of the largest value, {num_generated} give its tokens, in {seconds / 60:.1f} minutes"
    )


if __name__ == "__main__":
    sys.exit(main())
