# SPDX-License-Identifier: Apache-2.0
"""Points of BART and T5 while generating: those of the encoder once, those of the decoder in each step."""

import contextlib
import functools

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, points, to_pipelined
from ipu_core.errors import PointError
from ipu_core.generation.step_points import points_of_parts
from ipu_core.points.request import with_points

WIDTH, SOURCE, NEW = 16, 6, 5
IDS = torch.randint(3, 50, (2, SOURCE), generator=torch.Generator().manual_seed(0))
LAYERS = {
    "bart": ("model.encoder.layers.1", "model.decoder.layers.1", "model.decoder.layers.0.encoder_attn.k_proj"),
    "t5": ("encoder.block.1", "decoder.block.1", "decoder.block.0.layer.1.EncDecAttention.k"),
}
KINDS = list(LAYERS)
VECTORS = 4 * torch.randn(2, 2, 1, WIDTH, generator=torch.Generator().manual_seed(1))  # encoder and decoder, rows
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@functools.cache
def model_of(kind):
    torch.manual_seed(0)
    ids = {"vocab_size": 50, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    if kind == "t5":
        sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ids))
    else:
        sizes = {"d_model": WIDTH, "max_position_embeddings": 32}
        sizes |= {f"{part}_{n}": 2 for part in ("encoder", "decoder") for n in ("layers", "attention_heads")}
        sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **ids))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


def pipelined(kind, split=(4,)):
    return to_pipelined(model_of(kind), IPUConfig(layers_per_ipu=list(split)))


def added(vectors, first=0):
    """A hook that adds to what a layer gives, to its tokens from a number on."""

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = torch.where((torch.arange(x.shape[1]) >= first)[:, None], x + vectors, x)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    return hook


@contextlib.contextmanager
def steered(kind, of_encoder, of_decoder, first=0):
    encoder, decoder, _ = LAYERS[kind]
    hooks = {encoder: added(of_encoder), decoder: added(of_decoder, first)}
    handles = [model_of(kind).get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    yield model_of(kind)
    for handle in handles:
        handle.remove()


def whole(model, sequences):
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=sequences, use_cache=False).logits


@functools.cache
def greedy(kind, first):
    """Generate with the hooked plain model, whole sequences each step."""
    ids = torch.full((2, 1), 2)
    with steered(kind, *VECTORS, first) as model:
        for _ in range(NEW):
            ids = torch.cat([ids, whole(model, ids)[:, -1:].argmax(-1)], 1)
    return ids


def written(kind, first=None):
    encoder, decoder, _ = LAYERS[kind]
    return {f"{encoder}.output": points.steer(), f"{decoder}.output": points.steer(from_step=first)}


def values(kind):
    return {"interventions": dict(zip(written(kind), VECTORS, strict=True))}


@pytest.mark.turns(6)
@pytest.mark.parametrize(("kind", "split"), [("bart", [4]), ("t5", [2, 2]), ("bart", [1, 1, 1, 1])], ids=str)
def test_encoder_and_decoder_are_steered_and_read_while_generating(kind, split):
    encoder, decoder, cross = (f"{path}.output" for path in LAYERS[kind])
    generator = generation_model(
        pipelined(kind, split), activations=[encoder, decoder, cross], interventions=written(kind, 2)
    )
    found = generator.generate(IDS, **GREEDY, return_dict_in_generate=True, **values(kind))
    assert torch.equal(found.sequences, greedy(kind, 2))
    assert not torch.equal(found.sequences, model_of(kind).generate(IDS, **GREEDY))
    with steered(kind, *VECTORS, 2):
        batch = {"input_ids": IDS, "decoder_input_ids": found.sequences[:, :-1]}
        _, plain = points.run_with_cache(model_of(kind), batch, activations=[encoder, decoder, cross])
    torch.testing.assert_close(found.encoder_activations[encoder], plain[encoder], rtol=1e-4, atol=1e-4)
    steps = torch.cat([step[decoder] for step in found.activations], 1)
    torch.testing.assert_close(steps, plain[decoder], rtol=1e-4, atol=1e-4)
    # What attention makes of the encoder's states is made once, in the first step.
    assert [cross in step for step in found.activations] == [True] + [False] * (NEW - 1)
    torch.testing.assert_close(found.activations[0][cross], plain[cross], rtol=1e-4, atol=1e-4)
    assert encoder not in found.activations[0] and generator.encoder_activations == found.encoder_activations


@pytest.mark.turns(6)
@pytest.mark.parametrize("kind", KINDS)
def test_groups_shorter_sources_and_steps_without_a_cache_are_steered_alike(kind):
    encoder = f"{LAYERS[kind][0]}.output"
    for options, more in (({"tokens_per_call": 2, "in_flight": 2}, {}), ({}, {"use_cache": False})):
        model = pipelined(kind, [2, 2])
        generator = generation_model(model, activations=[encoder], interventions=written(kind, 2), **options)
        assert torch.equal(generator.generate(IDS, **GREEDY, **more, **values(kind)), greedy(kind, 2))
        assert generator.encoder_activations[encoder].shape == (2, SOURCE, WIDTH)
    generator.generate(IDS[:, :4], **GREEDY, use_cache=False, **values(kind))
    assert generator.encoder_activations[encoder].shape == (2, 4, WIDTH)


@pytest.mark.turns(4)
def test_a_value_of_a_row_is_that_of_its_beams():
    found = generation_model(pipelined("bart"), interventions=written("bart")).generate(
        IDS, **GREEDY, num_beams=2, **values("bart")
    )
    with steered("bart", VECTORS[0], VECTORS[1].repeat_interleave(2, dim=0)) as model:
        assert torch.equal(found, model.generate(IDS, **GREEDY, num_beams=2))


def test_what_makes_no_sense_in_an_encoder_decoder_is_refused_by_name():
    encoder, _, cross = (f"{path}.output" for path in LAYERS["bart"])
    with pytest.raises(PointError, match=f"`{encoder}` begins with step 1, and the encoder runs once"):
        generation_model(pipelined("bart"), interventions={encoder: points.steer(from_step=1)})
    late = generation_model(pipelined("bart"), interventions={cross: points.steer(torch.ones(WIDTH), from_step=1)})
    with pytest.raises(PointError, match=r"its tensor \[2, 6, 16\] is not of the 1 tokens of 2 rows"):
        late.generate(IDS, **GREEDY)
    reading = generation_model(pipelined("bart"), activations=[encoder])
    states = model_of("bart").get_encoder()(IDS)
    with pytest.raises(PointError, match=f"`{encoder}` is in the encoder, which does not run, for the call gives"):
        reading.generate(encoder_outputs=states, **GREEDY)
    with pytest.raises(PointError, match="`model.shared.output` never ran"):
        generation_model(pipelined("bart"), activations=["model.shared.output"]).generate(IDS, **GREEDY)
    wrong = {"interventions": {**values("bart")["interventions"], encoder: VECTORS[0, :1]}}
    with pytest.raises(PointError, match="has 1 rows, and 2 sources are encoded"):
        generation_model(pipelined("bart"), interventions=written("bart")).generate(IDS, **GREEDY, **wrong)


def test_a_module_that_encoder_and_decoder_share_has_no_points():
    model = transformers.BartForConditionalGeneration(model_of("bart").config)
    model.model.decoder.layers[0].fc1 = model.model.encoder.layers[0].fc1
    name = "model.encoder.layers.0.fc1.output"
    with pytest.raises(PointError, match=f"`{name}` is of a module that the encoder and the decoder share"):
        points_of_parts(with_points(to_pipelined(model, IPUConfig()), [name], None))


@pytest.mark.turns(4)
@pytest.mark.parametrize("kind", KINDS)
def test_executors_read_and_write_both(kind):
    names = list(written(kind))
    executor = inference_model(
        pipelined(kind, [1, 1, 1, 1]), activations=names, interventions=dict.fromkeys(names, points.steer())
    )
    ids = greedy(kind, 2)
    found = executor(input_ids=IDS, decoder_input_ids=ids, **values(kind))
    with steered(kind, *VECTORS) as model:
        torch.testing.assert_close(found.logits, whole(model, ids), rtol=1e-4, atol=1e-4)
