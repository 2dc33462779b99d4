# SPDX-License-Identifier: Apache-2.0
"""Every family that generates gives the plain model's tokens: each mode, with caches and without, on 1, 2, 4 IPUs.

Both loops are run: upstream's own, and the device loop of several tokens per call.
"""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.plugins.registry import installed

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper")
NEW_TOKENS = 7
LAYERS = {"num_hidden_layers": 4}
BART_LAYERS = {"encoder_layers": 2, "decoder_layers": 2}
T5_LAYERS = {"num_layers": 2, "num_decoder_layers": 2}
OPTIONS = {
    **dict.fromkeys(("t5", "mt5"), T5_LAYERS),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "whisper"), BART_LAYERS),
}
MODES = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "beam": {"do_sample": False, "num_beams": 4},
}


def tiny(model_type):
    torch.manual_seed(0)
    family = installed().family(model_type)
    config = transformers.AutoConfig.for_model(model_type, **{**family.tiny, **OPTIONS.get(model_type, LAYERS)})
    kinds = [transformers.AutoModelForCausalLM]
    if config.is_encoder_decoder:
        kinds = [transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForSpeechSeq2Seq]
    kind = next(kind for kind in kinds if type(config) in kind._model_mapping)
    model = kind.from_config(config).eval()
    # Weights that are all but zero say one token for ever.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(pad_token_id=0, eos_token_id=[5, 7, 11, 13], bos_token_id=1)
    if config.is_encoder_decoder:
        model.generation_config.update(decoder_start_token_id=2)
    return model


def inputs_of(model, rows=2, length=6):
    torch.manual_seed(1)
    if model.config.model_type == "whisper":
        frames = 2 * model.config.max_source_positions
        return {"input_features": torch.randn(rows, model.config.num_mel_bins, frames)}
    ids = torch.randint(20, 60, (rows, length))
    mask = torch.ones_like(ids)
    if model.config.is_encoder_decoder:
        mask[1, -2:] = 0
    else:
        mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, inputs, **options):
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_tokens_are_the_plain_models(model_type, use_cache):
    model = tiny(model_type)
    inputs = inputs_of(model)
    wanted = {mode: generated(model, inputs, use_cache=use_cache, **options) for mode, options in MODES.items()}
    for layers in ([4], [2, 2], [1, 1, 1, 1]):
        pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=layers))
        rows = generation_model(pipelined, max_length=16)
        beams = generation_model(pipelined, max_length=16)
        for mode, options in MODES.items():
            generator = beams if mode == "beam" else rows
            for generator.tokens_per_call in (1, 3):
                found = generated(generator, inputs, use_cache=use_cache, **options)
                loop = "host" if generator.tokens_per_call == 1 else "device"
                assert torch.equal(found, wanted[mode]), f"{mode} in a {loop} loop on {len(layers)} IPUs"
        assert len(rows.decoder.programs[0].stages) >= len(layers)
        captures = rows.decoder.num_captures, beams.decoder.num_captures
        generated(rows, inputs, use_cache=use_cache)
        assert (rows.decoder.num_captures, beams.decoder.num_captures) == captures
