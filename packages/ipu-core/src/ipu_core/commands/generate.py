# SPDX-License-Identifier: Apache-2.0
"""`ipu generate`: text that goes on from a text, printed as it comes."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..paths import read_json, refuse_broken_weights
from .arguments import add_places, existing, positive
from .console import announced, import_torch
from .pipeline import given_config

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

EXAMPLES = (
    'ipu generate --model checkpoint "Two roads"',
    'ipu generate --model checkpoint --layers-per-ipu 2,2 --weights int4 --max-new-tokens 200 "Two roads"',
    "ipu generate --model checkpoint --temperature 0.7 --seed 1 - < prompt.txt",
)


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser("generate", help="go on from a text, token by token", examples=EXAMPLES)
    add = command.add_argument
    add("text", metavar="TEXT", help="what the text begins with; - for standard input")
    add("--model", metavar="DIR", type=existing, required=True, help="a directory with a checkpoint and its tokenizer")
    add_places(command)
    add("--max-new-tokens", metavar="N", type=positive, default=64, help="tokens at most (default 64)")
    add("--temperature", metavar="X", type=float, help="sample, at this temperature; by default the likeliest token")
    add("--seed", metavar="N", type=int, default=0, help="of sampling (default 0)")
    add("--weights", choices=("int8", "int4", "exact"), help="round the weights of linear layers to 8 or 4 bits")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the text as it comes, and the speed to standard error.

    Raises:
        OSError: the directory lacks something.
        ValueError: the model is none that generates, or something is wrong with its files.
    """
    text = sys.stdin.read().rstrip("\n") if options.text == "-" else options.text
    if not text:
        raise ValueError("the text is empty: give what it begins with")
    if options.temperature is not None and options.temperature <= 0:
        raise ValueError(f"`--temperature {options.temperature}`: give more than 0, or leave it out")
    refuse_other_folders(options.model)
    import_torch()
    tokenizer, model = _loaded(options)
    _generate(options, tokenizer, model, text)
    return 0


def refuse_other_folders(folder: Path) -> None:
    """Refuse a folder that is no checkpoint with a tokenizer, or whose files are broken.

    Raises:
        OSError: a file is not there.
        ValueError: something is broken.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            what = "a checkpoint that was saved with its tokenizer"
            raise FileNotFoundError(f"`--model {folder}` has no {name}: give {what}")
        read_json(folder / name)
    refuse_broken_weights(folder)


def _loaded(options: argparse.Namespace) -> tuple[Any, PipelineMixin]:
    import transformers

    from ..config.ipu_config import IPU_CONFIG_NAME, IPUConfig
    from ..model.pipelined import to_pipelined

    config = given_config(options)
    if config is None:
        is_there = (options.model / IPU_CONFIG_NAME).is_file()
        config = IPUConfig.from_pretrained(options.model) if is_there else IPUConfig()
    with announced(f"loading {options.model}"):
        of_type = transformers.AutoConfig.from_pretrained(options.model, local_files_only=True)
        auto = transformers.AutoModelForSeq2SeqLM if of_type.is_encoder_decoder else transformers.AutoModelForCausalLM
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model, local_files_only=True)
        model = auto.from_pretrained(options.model, local_files_only=True).eval()
    return tokenizer, to_pipelined(model, config)


def _generate(options: argparse.Namespace, tokenizer: Any, model: PipelineMixin, text: str) -> None:
    import torch

    from ..generation.generator import generation_model

    torch.manual_seed(options.seed)
    prompt = tokenizer(text, return_tensors="pt")
    refuse_too_long(model, prompt["input_ids"].shape[1], options.max_new_tokens)
    generator = generation_model(model, weights=options.weights)
    stopwatch = Stopwatch()
    sampling = {} if options.temperature is None else {"temperature": options.temperature}
    generator.generate(
        **{name: prompt[name] for name in ("input_ids", "attention_mask") if name in prompt},
        max_new_tokens=options.max_new_tokens,
        do_sample=options.temperature is not None,
        streamer=streamer_of(tokenizer, stopwatch),
        **sampling,
    )
    print(f"{stopwatch.report}, {_ipus(generator)}", file=sys.stderr, flush=True)


def refuse_too_long(model: Any, prompt: int, new: int) -> None:
    """Refuse more tokens than the model has learned positions for.

    Raises:
        ValueError: saying how many are left for new ones.
    """
    from ..validation import learned_positions

    most = learned_positions(model)
    needed = max(prompt, new) if model.config.is_encoder_decoder else prompt + new
    if most is not None and needed > most:
        raise ValueError(
            f"a text of {prompt} tokens and {new} new ones need {needed} positions, and the model has {most}: give "
            f"--max-new-tokens {max(1, most - prompt)} or less, or a shorter text"
        )


def _ipus(generator: Any) -> str:
    number = generator.config.ipus_per_replica
    return f"{number} IPU{'s' if number != 1 else ''}"


@dataclass
class Stopwatch:
    """When each token came."""

    started: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)

    def lap(self) -> None:
        """Take the time of a token."""
        self.times.append(time.perf_counter() - self.started)

    @property
    def report(self) -> str:
        """How many tokens came, how long the first took, which is compiled for, and how fast the others were."""
        if not self.times:
            return "no token came"
        first, last, others = self.times[0], self.times[-1], len(self.times) - 1
        speed = f", then {others / (last - first):.1f} tokens/s" if others else ""
        return f"{len(self.times)} tokens in {last:.1f} s: the first after {first:.1f} s{speed}"


def streamer_of(tokenizer: Any, stopwatch: Stopwatch) -> Any:
    """Return what prints the words of new tokens as soon as they are whole, and takes the time of each."""
    from transformers import TextStreamer

    class Timed(TextStreamer):
        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                stopwatch.lap()
            super().put(value)

    return Timed(tokenizer, skip_prompt=True, skip_special_tokens=True)
