# SPDX-License-Identifier: Apache-2.0
"""Generate text from a local checkpoint, pipelined: as it comes, and with the speed at the end.

Without `--model` a tiny GPT-2 learns sentences about the weather first, in some seconds, and writes one. ::

    python examples/text_generation.py "the sun"
    python examples/text_generation.py --model checkpoint --layers_per_ipu 3,3 --weights int4 "Two roads"

`ipu generate` does the same without Python.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

import refusals
import task
import torch
import transformers
from causal_language_modeling import main as learn
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.paths import refuse_absent_path
from masked_language_modeling import sample


def main(argv: Sequence[str] | None = None) -> str:
    """Print what a model writes after a text, and return it."""
    options = parse_options(argv)
    if not sys.stderr.isatty():
        task.draw_no_bars()
    folder = options.model or trained(options.output_dir)
    with task.refusing("", OSError):
        refuse_absent_path("--model", folder, "a checkpoint's folder, or a name on a hub")
    refusals.broken_checkpoint(folder)
    with task.refusing(f"--model={folder} cannot be read: ", OSError, ValueError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    config = IPUConfig(layers_per_ipu=task.layers_of(options.layers_per_ipu))
    prompt = tokenizer(options.text, return_tensors="pt", add_special_tokens=False)
    refusals.more_tokens_than_positions(model, prompt["input_ids"].shape[1], options.max_new_tokens)
    started = time.perf_counter()
    with task.refusing("", ValueError):
        generator = generation_model(to_pipelined(model, config), weights=options.weights)
        tokens = generator.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=options.max_new_tokens,
            streamer=transformers.TextStreamer(tokenizer, skip_special_tokens=True),
        )
    new = tokens.shape[1] - prompt["input_ids"].shape[1]
    seconds = time.perf_counter() - started
    print(f"{new} tokens in {seconds:.1f} s, compiling included, on {config.ipus_per_replica} IPUs")
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what the text begins with")
    parser.add_argument("--model", help="a checkpoint's folder; by default a tiny one, trained on the spot")
    parser.add_argument("--output_dir", default="out/text_generation", help="where the tiny one goes")
    parser.add_argument("--layers_per_ipu", default="1,1", help="layers on each IPU (default 1,1)")
    parser.add_argument("--max_new_tokens", type=int, default=24, help="tokens at most (default 24)")
    parser.add_argument("--weights", choices=("int8", "int4"), help="round the weights of linear layers")
    return parser.parse_args(argv)


def trained(folder: str) -> str:
    """Train a tiny model on sentences about the weather, and return its folder."""
    print(f"no --model is given: a tiny one is trained first, on texts such as {sample(random.Random(0))['text']!r}")
    quiet = ["--disable_tqdm", "true", "--log_level", "error", "--report_to", "none"]
    learn(["--output_dir", folder, "--do_train", *quiet])
    torch.manual_seed(0)
    return folder


if __name__ == "__main__":
    task.start(main)
