# SPDX-License-Identifier: Apache-2.0
"""Whisper transcribes as upstream does: tasks, languages, prompts, timestamps, long audio, higher temperatures."""

import copy

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import GenerationModeError
from ipu_core.generation.decode_step import HEAD_BITS
from ipu_core.kernels.quantization import Quantization
from ipu_core.upstream import CACHE

SIZE = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8, "vocab_size": 1700}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
POSITIONS = {"max_source_positions": 20, "max_target_positions": 64}
FRAMES = 2 * POSITIONS["max_source_positions"]
TOKENS = {"pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50, "decoder_start_token_id": 60}
# What a multilingual checkpoint of Whisper says of its tokens.
SPEECH = {
    "no_timestamps_token_id": 99,
    "prev_sot_token_id": 61,
    "lang_to_id": {"<|en|>": 70, "<|de|>": 71, "<|fr|>": 72},
    "task_to_id": {"transcribe": 80, "translate": 81},
    "is_multilingual": True,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [50],
    "max_initial_timestamp_index": 10,
    "max_length": 32,
}
PROMPT = torch.tensor([61, 20, 21, 22])
FALLBACK = {"temperature": (0.0, 0.4, 0.8), "logprob_threshold": -1.0, "language": "en"}
SHORT = {
    "a language that is found": {},
    "a task": {"language": "en", "task": "translate"},
    "samples": {"language": "de", "do_sample": True},
    "timestamps": {"language": "en", "return_timestamps": True},
    "segments": {"language": "en", "return_timestamps": True, "return_segments": True},
    "a prompt": {"language": "en", "prompt_ids": PROMPT},
}
LONG = {
    "segments": {"return_segments": True},
    "what was said before": {"condition_on_prev_tokens": True, "language": "en"},
    "a prompt for all": {
        "condition_on_prev_tokens": True,
        "prompt_ids": PROMPT,
        "prompt_condition_type": "all-segments",
        "language": "en",
    },
    "higher temperatures": {**FALLBACK, "compression_ratio_threshold": 1.35, "no_speech_threshold": 0.6},
    "no speech": {**FALLBACK, "logprob_threshold": -0.1, "no_speech_threshold": 0.0},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**SIZE, **LAYERS, **POSITIONS, **TOKENS)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    # Weights that are all but zero say one token for ever.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for name, value in {**TOKENS, **SPEECH}.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.fixture(scope="module", params=[[4], [1, 1, 1, 1]], ids=str)
def generator(request, model):
    return generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=request.param)))


def recording(seconds):
    """Return two recordings, the second of which is shorter, in windows of what an encoder hears at once."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, SIZE["num_mel_bins"], FRAMES * seconds, generator=generator)
    mask = torch.ones(2, FRAMES * seconds, dtype=torch.long)
    mask[1, FRAMES * (seconds - 1) - 7 :] = 0
    return features, mask


def told(outputs):
    """Return tokens, and for each segment when it is and what it says."""
    if isinstance(outputs, torch.Tensor):
        return outputs.tolist()
    segments = [
        [(s["start"].item(), s["end"].item(), s["tokens"].tolist()) for s in row] for row in outputs["segments"]
    ]
    return outputs["sequences"].tolist(), segments


def both(model, generator, features, **options):
    results = []
    for which in (model, generator):
        torch.manual_seed(3)
        results.append((told(which.generate(features, **options)), torch.rand(()).item()))
    return results


@pytest.mark.parametrize("case", SHORT)
def test_short_recordings(model, generator, case):
    wanted, found = both(model, generator, recording(1)[0], **SHORT[case])
    assert found == wanted


def test_a_result_with_names_has_upstreams_scores_and_cache(model, generator):
    options = {"language": "en", "return_dict_in_generate": True, "output_scores": True}
    theirs, ours = (which.generate(recording(1)[0], **options) for which in (model, generator))
    assert ours.keys() == theirs.keys() and torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    caches = (ours[CACHE], theirs[CACHE])
    for part in ("self_attention_cache", "cross_attention_cache"):
        kept = [[(layer.keys, layer.values) for layer in getattr(cache, part).layers] for cache in caches]
        torch.testing.assert_close(*kept, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", LONG)
def test_long_recordings(model, generator, case):
    features, mask = recording(3)
    options = {"attention_mask": mask, "return_timestamps": True, **LONG[case]}
    wanted, found = both(model, generator, features, **options)
    assert found == wanted
    captures = generator.decoder.num_captures, len(generator.executors)
    assert both(model, generator, features, **options)[1] == wanted
    assert (generator.decoder.num_captures, len(generator.executors)) == captures
    kinds = {kind.names for kind in generator.decoders[0]._parts.programs}  # other tests give other inputs
    assert generator.decoder.num_captures == 2 * len(kinds), "a token, and the first one"


def test_beams_and_fewer_of_them_at_a_higher_temperature(model):
    features, mask = recording(3)
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])), tokens_per_call=3)
    options = {"attention_mask": mask, "return_timestamps": True, "num_beams": 2, **FALLBACK}
    wanted, found = both(model, generator, features, **options)
    assert found == wanted


@pytest.mark.parametrize("tokens_per_call", [1, 3])
@pytest.mark.parametrize("case", ["a task", "timestamps", "a prompt"])
def test_recordings_one_behind_the_other(model, tokens_per_call, case):
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1, 1, 1]))
    generator = generation_model(pipelined, tokens_per_call=tokens_per_call, in_flight=2)
    wanted, found = both(model, generator, recording(1)[0], **SHORT[case])
    assert found == wanted


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_of_the_decoder_are_rounded(model, weights):
    rounded = copy.deepcopy(model)
    for module in (*rounded.model.decoder.modules(), rounded.proj_out):
        if isinstance(module, torch.nn.Linear):
            outputs, inputs = module.weight.shape
            quantization = Quantization.of(inputs, HEAD_BITS if module is rounded.proj_out else int(weights[3:]))
            module.weight = torch.nn.Parameter(
                quantization.dequantize(quantization.quantize(module.weight.detach()), outputs)
            )
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])), weights=weights)
    wanted, found = both(rounded, generator, recording(1)[0], **SHORT["a task"])
    assert found == wanted
    assert found != both(model, generator, recording(1)[0], **SHORT["a task"])[0]


def test_times_of_words_are_refused(model, generator):
    with pytest.raises(GenerationModeError, match="return_token_timestamps"):
        generator.generate(recording(1)[0], return_timestamps=True, return_token_timestamps=True)
    assert model.config._attn_implementation == "sdpa"
