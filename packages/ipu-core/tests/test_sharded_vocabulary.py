# SPDX-License-Identifier: Apache-2.0
"""Embeddings and projections in shards: equal to the plain ones, where they were put, refused where they cannot be."""

import pytest
import torch
import transformers
from ipu_core import Family, IncompatibleIPUConfigError, IPUConfig, inference_model, plan, to_pipelined, training_model
from ipu_core.rewrites.sharded_vocabulary import SerializedEmbedding, SerializedLinear, SplitProjection
from ipu_core.testing import (
    assert_inference_equals_plain,
    assert_round_trip,
    assert_training_equals_plain,
    sample_batch,
)
from models import Chain, make
from torch import nn

pytestmark = pytest.mark.usefixtures("no_plugins")

VOCABULARY = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
# class -> (its configuration, whether its projection is tied to its embedding; None: it has none)
MODELS = {
    "BertForMaskedLM": (transformers.BertConfig(**BERT, **VOCABULARY), True),
    "BertForSequenceClassification": (transformers.BertConfig(**BERT, **VOCABULARY), None),
    "GPT2LMHeadModel": (transformers.GPT2Config(**GPT2, **VOCABULARY), True),
    "T5ForConditionalGeneration": (
        transformers.T5Config(
            d_model=16, num_layers=2, num_decoder_layers=1, num_heads=2, d_ff=32, d_kv=8, decoder_start_token_id=0,
            **VOCABULARY,
        ),
        True,
    ),
    "BartForConditionalGeneration": (
        transformers.BartConfig(
            d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, scale_embedding=True,
            decoder_start_token_id=2, **VOCABULARY,
        ),
        True,
    ),
    "LlamaForCausalLM": (
        transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
            **VOCABULARY,
        ),
        False,
    ),
}  # fmt: skip


def model_and_batch(name, **changes):
    config, _ = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(type(config)(**{**config.to_dict(), **changes}))
    inputs = sample_batch(model, batch_size=2, length=8, padded=True)
    inputs.setdefault("labels", inputs["input_ids"])
    return model, inputs


def configurations(is_tied):
    """Return what can be asked of a model, on two IPUs and on one."""
    given = [{"embedding_serialization_factor": 4}, {"serialized_embedding_splits_per_ipu": [1, 2]}]
    if is_tied is not None:
        given += [
            {"projection_serialization_factor": 3},
            {"serialized_projection_splits_per_ipu": [2, 1]},
            {"embedding_serialization_factor": 2, "projection_serialization_factor": 4},
        ]
    if is_tied is False:
        given += [
            {"serialized_embedding_splits_per_ipu": [2, 0], "serialized_projection_splits_per_ipu": [0, 3]},
        ]
    return [IPUConfig(layers_per_ipu=[1, 2], **options) for options in given]


@pytest.mark.parametrize("name", MODELS)
def test_training_equals_plain(name):
    model, inputs = model_and_batch(name)
    assert_training_equals_plain(model, configurations(MODELS[name][1]), inputs, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_inference_equals_plain(name):
    model, inputs = model_and_batch(name)
    assert_inference_equals_plain(model, configurations(MODELS[name][1])[:2], inputs, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_taken_back(name):
    for ipu_config in configurations(MODELS[name][1]):
        assert_round_trip(model_and_batch(name)[0], ipu_config)


def test_a_tied_model_can_be_untied():
    model, inputs = model_and_batch("BertForMaskedLM", tie_word_embeddings=False)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert_training_equals_plain(model, configurations(False)[-1], inputs, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "schedule": "1f1b"},
        {"recompute_checkpoint_every_layer": True},
        {"layers_per_ipu": [2, 1], "stages_per_ipu": 2},
    ],
    ids=str,
)
def test_splits_go_with_the_other_options(options):
    """Rows are of one length, so that the mean of the micro-batches' losses is the loss of the batch."""
    model, inputs = model_and_batch("GPT2LMHeadModel", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    inputs = {**sample_batch(model, batch_size=2, length=8), "labels": inputs["input_ids"]}
    model.train()(**inputs).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    options = {"layers_per_ipu": [1, 2], "serialized_embedding_splits_per_ipu": [1, 2], **options}
    training_model(to_pipelined(model, IPUConfig(**options)))(**inputs)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


def planned(name, *, for_inference=False, model_options=None, **options):
    model, inputs = model_and_batch(name, **(model_options or {}))
    made = plan(to_pipelined(model, IPUConfig(**{"layers_per_ipu": [1, 2], **options})), inputs, for_inference)
    return [(stage.ipu, stage.modules) for stage in made.stages]


def test_shards_sit_where_the_splits_say():
    stages = [
        (0, ("transformer.wte.shards.0",)),
        (1, ("transformer.wte.shards.1", "transformer.wte.shards.2")),
        (0, ("transformer.wpe", "transformer.h.0")),
        (1, ("transformer.h.1", "transformer.h.2", "transformer.ln_f")),
        (0, ("lm_head.shards.0",)),
        (1, ("lm_head.shards.1", "lm_head.shards.2", "lm_head")),
    ]
    assert planned("GPT2LMHeadModel", serialized_embedding_splits_per_ipu=[1, 2]) == stages
    assert planned("GPT2LMHeadModel", serialized_projection_splits_per_ipu=[1, 2]) == stages


def test_the_rest_of_a_module_runs_where_its_last_shard_is():
    """The embeddings of BERT add positions to what is looked up, and its head transforms what it projects."""
    bert = Family(model_type="bert", layout=("embeddings", "encoder.layer.*", "pooler"))
    model, inputs = model_and_batch("BertForMaskedLM")
    config = IPUConfig(layers_per_ipu=[1, 2], serialized_embedding_splits_per_ipu=[1, 1])
    made = plan(to_pipelined(model, config, family=bert), inputs)
    assert [(stage.ipu, stage.modules) for stage in made.stages] == [
        (0, ("bert.embeddings", "bert.embeddings.word_embeddings.shards.0")),
        (1, ("bert.embeddings.word_embeddings.shards.1", "bert.embeddings")),
        (0, ("bert.encoder.layer.0",)),
        (1, ("bert.encoder.layer.1", "bert.encoder.layer.2", "cls")),
        (0, ("cls.predictions.decoder.shards.0",)),
        (1, ("cls.predictions.decoder.shards.1", "cls")),
    ]
    assert made.num_parameters == sum(p.numel() for p in model.parameters())


def test_embeddings_that_share_a_weight_are_split():
    stages = planned("T5ForConditionalGeneration", serialized_embedding_splits_per_ipu=[0, 2])
    shards = {path: ipu for ipu, modules in stages for path in modules if ".shards." in path}
    assert shards == {
        f"{path}.shards.{k}": 1 for path in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head") for k in (0, 1)
    }


def test_a_factor_leaves_the_stages_as_they_are():
    for factor in ({"embedding_serialization_factor": 4}, {"projection_serialization_factor": 4}):
        assert planned("GPT2LMHeadModel", **factor) == planned("GPT2LMHeadModel")


def test_an_untied_projection_is_split_alone():
    stages = planned("LlamaForCausalLM", serialized_projection_splits_per_ipu=[1, 1])
    assert (0, ("lm_head.shards.0",)) in stages
    assert stages[0] == (0, ("model.embed_tokens", "model.layers.0"))


def types(model, paths):
    return [type(model.get_submodule(path)).__name__ for path in paths]


def test_what_is_tied_follows():
    """The projection follows the embedding, the embedding a projection that is split."""
    gpt2, llama = model_and_batch("GPT2LMHeadModel")[0], model_and_batch("LlamaForCausalLM")[0]
    tied, untied = ["transformer.wte", "lm_head"], ["model.embed_tokens", "lm_head"]
    for model, paths, options, expected in (
        (gpt2, tied, {"embedding_serialization_factor": 2}, ["SerializedEmbedding", "SerializedLinear"]),
        (gpt2, tied, {"projection_serialization_factor": 2}, ["Embedding", "SerializedLinear"]),
        (gpt2, tied, {"serialized_projection_splits_per_ipu": [2, 0]}, ["SerializedEmbedding", "SplitProjection"]),
        (llama, untied, {"embedding_serialization_factor": 2}, ["SerializedEmbedding", "Linear"]),
        (llama, untied, {"serialized_projection_splits_per_ipu": [2, 0]}, ["Embedding", "SplitProjection"]),
    ):
        pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], **options))
        with pipelined.parallelized():
            assert types(pipelined, paths) == expected
        assert types(pipelined, paths) == ["Embedding", "Linear"]


def test_inference_has_options_of_its_own():
    options = {"embedding_serialization_factor": 2, "inference_serialized_embedding_splits_per_ipu": [1, 1]}
    trained = planned("GPT2LMHeadModel", **options)
    assert not any(".shards." in path for _, modules in trained for path in modules)
    inferred = planned("GPT2LMHeadModel", for_inference=True, **options, inference_embedding_serialization_factor=None)
    assert inferred[:2] == [(0, ("transformer.wte.shards.0",)), (1, ("transformer.wte.shards.1",))]
    model, inputs = model_and_batch("GPT2LMHeadModel")
    config = IPUConfig(layers_per_ipu=[1, 2], **options)
    assert_training_equals_plain(model, config, inputs, atol=1e-5)
    assert_inference_equals_plain(model, config, inputs, atol=1e-5)


def test_auto_makes_the_slowest_ipu_as_fast_as_it_can_be_beside_shards():
    def slowest(layers_per_ipu):
        model, inputs = model_and_batch("GPT2LMHeadModel", vocab_size=1200)
        config = IPUConfig(
            layers_per_ipu=layers_per_ipu, ipus_per_replica=2, serialized_embedding_splits_per_ipu=[3, 1]
        )
        stages = plan(to_pipelined(model, config), inputs).stages
        return max(sum(s.seconds for s in stages if s.ipu == ipu) for ipu in range(2))

    assert slowest("auto") == pytest.approx(min(slowest([n, 3 - n]) for n in range(4)))


def test_a_model_saved_while_it_is_in_shards_is_plain(tmp_path):
    model, inputs = model_and_batch("GPT2LMHeadModel")
    config = IPUConfig(layers_per_ipu=[1, 2], serialized_embedding_splits_per_ipu=[1, 2])
    pipelined = to_pipelined(model, config).parallelize()
    pipelined.save_pretrained(tmp_path)
    assert type(pipelined.get_input_embeddings()) is SerializedEmbedding
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = pipelined.to_transformers()
    assert types(plain, ["lm_head"]) == types(loaded, ["lm_head"]) == ["Linear"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        del inputs["labels"]
        expected = model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected)
        torch.testing.assert_close(plain(**inputs).logits, expected)


def test_a_model_in_shards_runs_by_itself_and_is_trained_and_frozen_as_the_plain_one():
    model, inputs = model_and_batch("GPT2LMHeadModel")
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2], embedding_serialization_factor=4)).parallelize()
    pipelined.eval()
    with torch.no_grad():
        sharded = pipelined(**inputs).logits
    pipelined.deparallelize()
    assert not any(module.training for module in pipelined.modules())
    with torch.no_grad():
        torch.testing.assert_close(sharded, pipelined(**inputs).logits)


def test_another_configuration_is_used_at_once():
    model, inputs = model_and_batch("GPT2LMHeadModel")
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 2])).parallelize()
    pipelined.ipu_config = IPUConfig(layers_per_ipu=[1, 2], serialized_embedding_splits_per_ipu=[0, 1])
    assert plan(pipelined, inputs).stages[0].modules == ("transformer.wte.shards.0",)


def test_a_weight_replaced_after_compiling_is_used():
    model, inputs = model_and_batch("LlamaForCausalLM")
    del inputs["labels"]
    config = IPUConfig(layers_per_ipu=[1, 2], serialized_projection_splits_per_ipu=[1, 1])
    executor = inference_model(to_pipelined(model.eval(), config)).compile(**inputs)
    model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight.detach())
    with torch.no_grad():
        torch.testing.assert_close(executor(**inputs).logits, model(**inputs).logits)


class ByItself(nn.Embedding):
    """Looks up without asking `nn.Embedding`."""

    def forward(self, ids):
        return self.weight[ids]


class Vocabulary(Chain):
    """A `Chain` with the two modules that the options are about."""

    def __init__(self, embedding=None, projection=None):
        super().__init__()
        self.embedding, self.projection = embedding or nn.Embedding(12, 4), projection or nn.Linear(4, 12)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.projection


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 12))


def instrumented():
    module = nn.Linear(4, 12)
    module.forward = module.forward
    return module


def tied(**options):
    model = Vocabulary(**options)
    model.projection.weight = model.embedding.weight
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            lambda: make(Chain),
            {"embedding_serialization_factor": 2},
            "`embedding_serialization_factor=2` is about the input embedding .* `PipelinedChain` has none: leave",
        ),
        (
            lambda: model_and_batch("BertForSequenceClassification")[0],
            {"serialized_projection_splits_per_ipu": [1, 1]},
            r"`serialized_projection_splits_per_ipu=\[1, 1\]` is about the output projection .* has none",
        ),
        (
            Vocabulary,
            {"embedding_serialization_factor": 5},
            r"`embedding_serialization_factor=5` does not fit `embedding`: 12 rows do not divide into 5 shards, they "
            r"do into 4 or 6: .* `model.resize_token_embeddings\(15\)`",
        ),
        (
            Vocabulary,
            {"serialized_projection_splits_per_ipu": [20, 5]},
            r"does not fit `projection`: 12 rows do not divide into 25 shards, they do into 12: .*\(25\)",
        ),
        (
            tied,
            {"serialized_embedding_splits_per_ipu": [1, 2], "serialized_projection_splits_per_ipu": [2, 1]},
            r"`serialized_embedding_splits_per_ipu=\[1, 2\]` and `serialized_projection_splits_per_ipu=\[2, 1\]` place "
            "the rows of one weight differently, and a row would be on two IPUs: .* give one of the two",
        ),
        (
            tied,
            {"embedding_serialization_factor": 3, "serialized_projection_splits_per_ipu": [2, 1]},
            "`embedding_serialization_factor=3` and .* a row would be on two IPUs",
        ),
        *(
            (
                lambda option=option: Vocabulary(nn.Embedding(12, 4, **option)),
                {"serialized_embedding_splits_per_ipu": [2, 1]},
                f"`{next(iter(option))}=.*` cannot be looked up in shards, it {reason}.*: use one without",
            )
            for option, reason in (
                ({"max_norm": 1.0}, "scales rows"),
                ({"sparse": True}, "has sparse gradients"),
                ({"scale_grad_by_freq": True}, "counts how often"),
            )
        ),
        (
            lambda: Vocabulary(ByItself(12, 4)),
            {"embedding_serialization_factor": 2},
            "`embedding`: this `ByItself` has a `forward` that does not call that of `torch.nn.Embedding`",
        ),
        (
            lambda: Vocabulary(projection=instrumented()),
            {"projection_serialization_factor": 2},
            "this `Linear` has a `forward` that does not call",
        ),
        (
            lambda: Vocabulary(projection=parametrized()),
            {"projection_serialization_factor": 2},
            "the weight of this `ParametrizedLinear` is computed, not a parameter",
        ),
        (
            lambda: Vocabulary(projection=nn.Conv1d(4, 12, 1)),
            {"projection_serialization_factor": 2},
            "`projection`: a `Conv1d` has no shards: they are made of a `torch.nn.Linear` only",
        ),
        (
            lambda: Vocabulary(nn.Conv1d(4, 12, 1)),
            {"embedding_serialization_factor": 2},
            "`embedding`: a `Conv1d` has no shards: they are made of a `torch.nn.Embedding` only",
        ),
    ],
)
def test_what_cannot_work_in_shards_is_refused(model, options, message):
    pipelined = to_pipelined(model(), IPUConfig(layers_per_ipu=[1, 2], **options))
    with pytest.raises(IncompatibleIPUConfigError, match=message):
        pipelined.parallelize()
    assert not pipelined.is_parallelized
    inference = {f"inference_{name}": value for name, value in options.items()}
    pipelined.ipu_config = IPUConfig(layers_per_ipu=[1, 2], **inference)
    with pytest.raises(IncompatibleIPUConfigError, match="inference_"):
        pipelined.parallelize(for_inference=True)


class Scaled(nn.Embedding):
    """Scales what `nn.Embedding` finds."""

    def forward(self, ids):
        return 3 * super().forward(ids)


@pytest.mark.parametrize("cls", [nn.Embedding, Scaled])
@pytest.mark.parametrize("padding_idx", [None, 0, 5, 11, -1])
@pytest.mark.parametrize("shards", [1, 3, 12, [1, 1], [0, 4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_embedding_in_shards_is_the_embedding(cls, padding_idx, shards, dtype):
    torch.manual_seed(0)
    embedding = cls(12, 4, padding_idx=padding_idx)
    nn.init.normal_(embedding.weight)
    ids = torch.randint(12, (5, 7), dtype=dtype)
    results = []
    for module in (embedding, SerializedEmbedding.of(embedding, shards)):
        embedding.zero_grad()
        found = module(ids)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        results.append((found.detach(), embedding.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_infinite_rows_stay_where_they_are():
    embedding = nn.Embedding(6, 2)
    with torch.no_grad():
        embedding.weight[::2] = torch.tensor([torch.inf, torch.nan])
    SerializedEmbedding.of(embedding, 3)(torch.tensor([1, 3, 5])).sum().backward()
    assert torch.equal(embedding.weight.grad, torch.tensor([[0.0], [1.0]]).expand(2, 2).repeat(3, 1))


@pytest.mark.parametrize("wrong", [-1, 12])
def test_an_id_outside_the_vocabulary_is_refused_as_the_embedding_refuses_it(wrong):
    embedding = nn.Embedding(12, 4)
    for module in (embedding, SerializedEmbedding.of(embedding, 3)):
        with pytest.raises(IndexError, match="out of range"):
            module(torch.tensor([3, wrong]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cls", "shards"), [(SerializedLinear, 1), (SerializedLinear, 3), (SplitProjection, [1, 2])])
def test_a_projection_in_shards_is_the_projection(cls, shards, bias):
    torch.manual_seed(0)
    linear = nn.Linear(4, 12, bias=bias).double()
    inputs = torch.randn(2, 5, 4, dtype=torch.double)
    results = []
    for module in (linear, cls.of(linear, shards)):
        linear.zero_grad()
        output = module(inputs)
        output.square().sum().backward()
        results.append((output.detach(), *(p.grad for p in linear.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


def test_a_view_has_the_modules_tensors_and_hooks_and_leaves_it_as_it_was():
    linear = nn.Linear(4, 12)
    seen = []
    linear.register_forward_hook(lambda *_: seen.append(1))
    view = SerializedLinear.of(linear, 3)
    view(torch.zeros(1, 4))
    assert seen == [1]
    assert isinstance(view, nn.Linear)
    assert view.state_dict().keys() == linear.state_dict().keys()
    assert all(a is b for a, b in zip(view.parameters(), linear.parameters(), strict=True))
    assert not list(linear.children())
