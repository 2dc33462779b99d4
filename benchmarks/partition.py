# SPDX-License-Identifier: Apache-2.0
"""The slowest IPU's estimated time, `layers_per_ipu="auto"` against the even split and against every split there is.

Models whose layers or ends differ: an encoder-decoder, a convolutional network whose stages halve the image, and masked
and causal language models, whose tied heads sit with the embedding. Nothing is run: models are on the meta device.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.samples import sample_batch
from results import report

MODELS: dict[str, tuple[type[Any], Any]] = {
    "t5-like": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(num_layers=6, num_decoder_layers=6, vocab_size=32128, decoder_start_token_id=0),
    ),
    "convnext-like": (transformers.ConvNextForImageClassification, transformers.ConvNextConfig()),
    "bert masked": (transformers.BertForMaskedLM, transformers.BertConfig()),
    "gpt2 causal": (transformers.GPT2LMHeadModel, transformers.GPT2Config()),
}
NUM_IPUS = 4


def main() -> None:
    """Estimate, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    report("partition", {name: compare(*model) for name, model in MODELS.items()}, save=options.save)


def compare(cls: type[Any], config: Any) -> dict[str, Any]:
    """Give the slowest IPU's time under each split, and the ratios."""
    with torch.device("meta"):
        model = cls(config)
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.empty(4, 3, 224, 224, device="meta")}
    else:
        inputs = {n: t.to("meta") for n, t in sample_batch(model, batch_size=4, length=128, labels=False).items()}
        if config.is_encoder_decoder:
            # The decoder's targets are short beside what the encoder reads.
            inputs["decoder_input_ids"] = torch.ones(4, 32, dtype=torch.long, device="meta")

    def split_of(layers_per_ipu: Any) -> tuple[float, list[int]]:
        made = plan(to_pipelined(model, IPUConfig(layers_per_ipu=layers_per_ipu, ipus_per_replica=NUM_IPUS)), inputs)
        stages = [[stage for stage in made.stages if stage.ipu == ipu] for ipu in range(NUM_IPUS)]
        return max(sum(s.seconds for s in held) for held in stages), [
            sum(s.num_layers for s in held) for held in stages
        ]

    (even, even_split), (auto, auto_split) = split_of([-1]), split_of("auto")
    return {
        "even": str(even_split),
        "auto": str(auto_split),
        "auto_to_even": auto / even,
        "auto_to_ideal": auto / (time_of_all(split_of, sum(even_split)) / NUM_IPUS),
    }


def time_of_all(split_of: Any, num_layers: int) -> float:
    """Give the time of every layer and what shares their IPU, one after another."""
    return split_of([num_layers, *[0] * (NUM_IPUS - 1)])[0] if num_layers else math.nan


if __name__ == "__main__":
    main()
