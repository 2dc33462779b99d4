# SPDX-License-Identifier: Apache-2.0
"""NEZHA and Mega give what transformers 4.57.6 gave, load its checkpoints, and refuse what would have no effect."""

import inspect
from pathlib import Path

import pytest
import torch
import transformers
from golden import Golden, auto_of
from ipu_core.upstream import CACHE
from ipu_models_bert.architectures import ARCHITECTURES
from ipu_models_bert.architectures.mega_config import READ_ONLY_WITH
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
NEZHA = {
    **{"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12},
    **{"max_position_embeddings": 32, "max_relative_position": 4},
}
MEGA = {
    **{"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12, "ema_projection_size": 3},
    **{"shared_representation_size": 6, "nffn_hidden_size": 10, "max_positions": 32},
}
DECODER = {"is_decoder": True, "bidirectional": False}
# Of the page the catalogue is made of, transformers 4.39.
DEFAULTS = {
    "nezha": {
        **{"vocab_size": 21128, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1},
        **{"attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "max_relative_position": 64},
        **{"type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "classifier_dropout": 0.1},
        **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "use_cache": True},
    },
    "mega": {
        **{"vocab_size": 30522, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256},
        **{"ema_projection_size": 16, "bidirectional": True, "shared_representation_size": 64},
        **{"use_chunking": False, "chunk_size": -1, "truncation": None, "normalize_before_mega": True},
        **{"normalization_type": "scalenorm", "norm_affine": True, "activation": "silu"},
        **{"attention_activation": "softmax", "dropout_prob": 0.1, "hidden_dropout_prob": 0.1},
        **{"attention_probs_dropout_prob": 0.1, "use_feature_dropout": False, "use_normalized_ffn": True},
        **{"nffn_hidden_size": 256, "normalize_before_ffn": True, "nffn_activation_dropout_prob": 0.1},
        **{"max_positions": 2048, "add_token_type_embeddings": False, "type_vocab_size": 2},
        **{"initializer_range": 0.02, "ema_delta_alpha_range": 0.2, "ema_beta_range": 0.02},
        **{"ema_gamma_omega_range": 1.0, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        **{"relative_positional_bias": "rotary", "classifier_dropout": None, "use_cache": True},
        "add_lm_hidden_dense_layer": True,
    },
}


def ids(rows=2, length=12, seed=0):
    return torch.randint(4, 24, (rows, length), generator=torch.Generator().manual_seed(seed))


def mega(auto=AutoModel, **options):
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model("mega", **{**MEGA, **options})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_checkpoint_of_the_former_release_gives_what_it_gave(path, tmp_path):
    golden = Golden(path)
    assert golden.about["made_with"].startswith("transformers 4.57.6, ")
    golden.assert_equal(golden.model(tmp_path, auto_of(golden.about["class"])))


def test_every_class_has_a_golden_file():
    classes = {Golden(path).about["class"] for path in FILES}
    declared = {target.partition(":")[2] for each in ARCHITECTURES[:2] for target in each.models.values()}
    assert classes == declared


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_parameters_and_defaults_are_those_of_the_catalogue(model_type):
    config = AutoConfig.for_model(model_type)
    assert {name: getattr(config, name) for name in DEFAULTS[model_type]} == DEFAULTS[model_type]
    assert set(DEFAULTS[model_type]) <= set(inspect.signature(type(config)).parameters)


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2], ids=lambda each: each.model_type)
def test_a_checkpoint_comes_back_by_the_auto_classes(architecture, tmp_path):
    sizes = {"nezha": NEZHA, "mega": {**MEGA, "add_token_type_embeddings": True}}[architecture.model_type]
    for auto in architecture.models:
        config = AutoConfig.for_model(architecture.model_type, **sizes)
        if auto == "AutoModelForCausalLM":
            config = AutoConfig.for_model(architecture.model_type, **{**sizes, **DECODER})
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config)
        assert not any(value.isnan().any() for value in model.state_dict().values())
        model.save_pretrained(tmp_path)
        again = getattr(transformers, auto).from_pretrained(tmp_path)
        assert type(again) is type(model) and again.config.to_diff_dict() == model.config.to_diff_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_what_a_checkpoint_lacks_is_drawn_as_a_new_models(model_type, tmp_path):
    """Loading makes a model without its constructor's weights; those that are missing are drawn afterwards."""
    wide = {"nezha": NEZHA, "mega": {**MEGA, "shared_representation_size": 64}}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **wide[model_type]))
    model.save_pretrained(tmp_path, state_dict={"pooler.dense.bias": model.pooler.dense.bias})
    drawn = AutoModel.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert drawn[name].isfinite().all(), name
        assert drawn[name].std(correction=0).item() == pytest.approx(value.std(correction=0).item(), rel=0.9), name


def test_distances_beyond_the_furthest_count_as_one():
    """NEZHA sees order within the distance it knows, and beyond it that a token is far to the left or to the right."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("nezha", **{**NEZHA, "max_relative_position": 2, "num_hidden_layers": 1})
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    given = ids(rows=1)
    swapped, near = given.clone(), given.clone()
    swapped[0, [8, 10]] = given[0, [10, 8]]
    near[0, [1, 2]] = given[0, [2, 1]]
    first, far, close = (model(each).last_hidden_state[0, 0] for each in (given, swapped, near))
    torch.testing.assert_close(far, first)
    assert (close - first).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_activation": "laplace"},
        {"use_chunking": True, "chunk_size": 4},
        {"use_chunking": True, "chunk_size": 4, "relative_positional_bias": "simple"},
    ],
    ids=str,
)
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
def test_a_decoder_goes_on_from_its_state_as_if_it_saw_all(options, padded):
    """Token after token, also over the end of a chunk, and where rows end in padding at first."""
    model = mega(AutoModelForCausalLM, **DECODER, **options)
    given, mask = ids(rows=2, length=12), torch.ones(2, 12, dtype=torch.long)
    if padded:
        mask[1, 1:3] = 0
    with torch.no_grad():
        whole = model(given, attention_mask=mask, use_cache=False).logits
        step = model(given[:, :4], attention_mask=mask[:, :4])
        logits = [step.logits]
        for number in range(4, 12):
            token = given[:, number : number + 1]
            seen = mask[:, : number + 1]
            step = model(token, attention_mask=seen, **{CACHE: step[CACHE]})
            logits.append(step.logits)
    if padded and options.get("use_chunking"):
        whole, logits = whole[:, 4:], [torch.cat(logits, dim=1)[:, 4:]]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "laplace"])
def test_no_token_of_a_decoder_sees_a_later_one(activation):
    model = mega(AutoModelForCausalLM, **DECODER, attention_activation=activation)
    given = ids(rows=1)
    other = given.clone()
    other[0, 7] = 4 + (given[0, 7] - 3) % 20
    with torch.no_grad():
        before, after = (model(each, use_cache=False).logits[0] for each in (given, other))
    torch.testing.assert_close(after[:7], before[:7], atol=1e-5, rtol=0)
    assert (after[7:] - before[7:]).abs().max() > 1e-3


def test_padding_before_a_decoders_tokens_gives_numbers():
    model = mega(AutoModelForCausalLM, **DECODER)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    assert model(ids(), attention_mask=mask).logits.isfinite().all()


def test_feature_dropout_drops_a_feature_of_all_tokens():
    model = mega(use_feature_dropout=True, hidden_dropout_prob=0.5).train()
    dropped = model.layers[0].mega_layer.hidden_dropout(torch.ones(2, 12, 8))
    assert {0.0, 2.0} == set(dropped.unique().tolist())
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 12, -1))


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("nezha", {"max_relative_position": 0}, "`max_relative_position=0` leaves no distance"),
        ("nezha", {"hidden_size": 6}, "`hidden_size=6` over `num_attention_heads=2` is an odd width"),
        ("nezha", {"add_cross_attention": True}, "NEZHA has no cross-attention"),
        ("mega", {"type_vocab_size": 3}, "`type_vocab_size=3` has no effect with `add_token_type_embeddings=False`"),
        *(
            ("mega", {"use_normalized_ffn": False, name: value}, f"`{name}={value}` has no effect with")
            for name, value in (("normalize_before_ffn", False), ("nffn_activation_dropout_prob", 0.5))
        ),
        ("mega", {"chunk_size": 4}, "`chunk_size=4` has no effect without `use_chunking`"),
        ("mega", {"use_chunking": True}, "`use_chunking` has chunks of `chunk_size=-1` tokens"),
        ("mega", {"truncation": 0}, "`truncation=0` leaves no token"),
        ("mega", {"shared_representation_size": 5}, "`shared_representation_size=5` is odd"),
        ("mega", {"relative_positional_bias": "alibi"}, "`relative_positional_bias='alibi'` is not known"),
        ("mega", {"normalization_type": "groupnorm"}, "`normalization_type='groupnorm'` is not known"),
        ("mega", {"activation": "sile"}, "`activation='sile'` is not known"),
        ("mega", {"attention_activation": "soft"}, "`attention_activation='soft'` is not known"),
        ("mega", {"is_decoder": True}, "give `bidirectional=False`"),
        ("mega", {**DECODER, "truncation": 3}, "`truncation=3`: give `use_cache=False`"),
        ("mega", {**DECODER, "add_cross_attention": True}, "this Mega has no cross-attention"),
        (
            "mega",
            {"relative_positional_bias": "simple", "use_chunking": True, "chunk_size": 64},
            "`chunk_size=64` is more than the simple bias has, `max_positions=32`",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_would_not_do_what_it_says_is_refused(model_type, options, message):
    sizes = {"nezha": NEZHA, "mega": {key: value for key, value in MEGA.items() if key not in READ_ONLY_WITH}}
    with pytest.raises(ValueError, match=message):
        AutoConfig.for_model(model_type, **{**sizes[model_type], **options})


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, {"token_type_ids": ids()}, "`token_type_ids` would have no effect"),
        ({}, {"attention_mask": torch.ones(2, 1, 12)}, r"`attention_mask` has shape \[2, 1, 12\]"),
        ({"use_chunking": True, "chunk_size": 5}, {}, "rows have 12 tokens, more than a chunk and no multiple"),
        ({"relative_positional_bias": "simple", "max_positions": 8}, {}, "over 12 tokens, and the simple bias has 8"),
        (DECODER, {CACHE: ((),)}, "has 1 states for 2 layers, rows have 12 tokens"),
    ],
    ids=str,
)
def test_a_batch_that_mega_cannot_take_is_refused(options, batch, message):
    with pytest.raises(ValueError, match=message):
        mega(**options)(ids(), **batch)


def test_a_row_that_is_too_long_and_positions_are_refused_by_nezha():
    model = AutoModel.from_config(AutoConfig.for_model("nezha", **NEZHA))
    with pytest.raises(ValueError, match="rows have 40 tokens, and `max_position_embeddings` is 32"):
        model(ids(length=40))
    with pytest.raises(ValueError, match="leave `position_ids` out"):
        model(ids(), position_ids=torch.arange(12).unsqueeze(0))


def test_an_encoder_is_no_causal_language_model():
    with pytest.raises(ValueError, match="an encoder sees the token it is to predict"):
        mega(AutoModelForCausalLM)
