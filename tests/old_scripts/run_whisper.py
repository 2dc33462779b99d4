# SPDX-License-Identifier: Apache-2.0
"""Transcription with Whisper: parallelized for generation, with caches of chosen sizes."""

import json
import sys

import torch
from optimum.graphcore import IPUConfig
from optimum.graphcore.modeling_utils import to_pipelined
from optimum.graphcore.models.whisper import WhisperProcessorTorch
from transformers import WhisperForConditionalGeneration

folder, data, output = sys.argv[1:]
assert WhisperProcessorTorch.__name__ == "WhisperProcessor"
ipu_config = IPUConfig(ipus_per_replica=2, inference_parallelize_kwargs={"use_cache": True, "max_length": 24}).eval()
pipelined = to_pipelined(WhisperForConditionalGeneration.from_pretrained(folder), ipu_config)
pipelined = pipelined.parallelize(
    for_generation=True, batch_size=1, on_device_generation_steps=3, **ipu_config._parallelize_kwargs
)
with open(data) as file:
    features = torch.tensor(json.load(file))
tokens = pipelined.generate(features, max_length=20, num_beams=1)
with open(output, "w") as file:
    json.dump(tokens.tolist(), file)
