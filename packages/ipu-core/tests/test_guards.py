# SPDX-License-Identifier: Apache-2.0
"""A model that is not as it was when it was compiled is refused at the next call; what changes no graph is not."""

import copy

import pytest
import safetensors.torch
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, to_pipelined, training_model
from ipu_core.capture.guards import Snapshot
from ipu_core.errors import ModelChangedError
from torch.nn.utils import prune

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(2, 18).reshape(2, 8)
BATCH = {"input_ids": IDS, "labels": torch.tensor([0, 1])}


def bert(**options):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=32, initializer_range=0.3, **options)
    return transformers.BertForSequenceClassification(config).eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SMALL, vocab_size=32, pad_token_id=0, eos_token_id=None, tie_word_embeddings=True, initializer_range=0.3
    )
    return transformers.LlamaForCausalLM(config).eval()


def pruned(model):
    prune.l1_unstructured(model.classifier, "weight", amount=0.5)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def freeze_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eval()


# These make another number of layers, so that the same configuration does not fit any more.
LAYERS = {
    "a layer less": (lambda m: m.bert.encoder.layer.__delitem__(1), r"`bert.encoder.layer.1` is gone, a BertLayer"),
    "a layer more": (lambda m: m.bert.encoder.layer.append(copy.deepcopy(m.bert.encoder.layer[0])), "layer.2` is new"),
}
CHANGES = {
    "a head": (lambda m: setattr(m, "classifier", torch.nn.Linear(16, 2)), "`classifier` is another module"),
    "an activation": (
        lambda m: setattr(m.bert.encoder.layer[0].intermediate, "intermediate_act_fn", torch.nn.Tanh()),
        r"`bert.encoder.layer.0.intermediate.intermediate_act_fn` is another module, Tanh for GELU",
    ),
    "another order": (
        lambda m: setattr(m.bert.encoder, "layer", torch.nn.ModuleList(reversed(m.bert.encoder.layer))),
        "`bert.encoder.layer` is another module",
    ),
    "a hook": (
        lambda m: m.bert.pooler.register_forward_hook(lambda module, given, output: output * 0),
        "`bert.pooler` has 1 hooks, and had 0",
    ),
    "a hook on the model itself": (
        lambda m: m.register_forward_pre_hook(lambda module, given: None),
        "the model has 1 hooks",
    ),
    "pruning": (pruned, "the tensor `classifier.weight` is gone"),
    "a forward of its own": (lambda m: setattr(m.dropout, "forward", lambda x: x * 2), "`dropout.forward` is "),
    "an output that is asked for": (
        lambda m: setattr(m.config, "output_hidden_states", True),
        "`config.output_hidden_states` is True, and was ",
    ),
    "a number": (
        lambda m: setattr(m.bert.encoder.layer[0], "chunk_size_feed_forward", 2),
        "`bert.encoder.layer.0.chunk_size_feed_forward` is 2",
    ),
}


@pytest.mark.parametrize("change", [*CHANGES, *LAYERS])
@pytest.mark.parametrize("make", [inference_model, training_model])
def test_what_a_graph_has_as_a_constant_may_not_change(change, make):
    model = bert()
    executor = make(to_pipelined(model, CONFIG))
    executor(**BATCH)
    make_it, said = {**CHANGES, **LAYERS}[change]
    make_it(model)
    with pytest.raises(ModelChangedError, match=said):
        executor(**BATCH)
    with pytest.raises(ModelChangedError, match=said):  # and at every call
        executor(**BATCH)
    if change in CHANGES:  # a new executor follows
        found = inference_model(to_pipelined(model, CONFIG))(**BATCH)
        torch.testing.assert_close(found.logits, model.eval()(**BATCH).logits)


def test_a_change_that_is_taken_back_is_none():
    model = bert()
    executor = inference_model(to_pipelined(model, CONFIG))
    before = executor(**BATCH).logits
    handle = model.bert.pooler.register_forward_hook(lambda module, given, output: output * 0)
    with pytest.raises(ModelChangedError):
        executor(**BATCH)
    handle.remove()
    assert torch.equal(executor(**BATCH).logits, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [(without_dropout, r"dropout.p` is 0.0, and was 0.1"), (freeze_norms, "LayerNorm` is in inference mode")],
)
def test_dropout_and_modes_of_single_modules_count_in_training(change, said):
    model = bert().train()
    executor = training_model(to_pipelined(model, CONFIG))
    executor(**BATCH)
    change(model)
    with pytest.raises(ModelChangedError, match=said):
        executor(**BATCH)


def test_the_mode_of_the_whole_model_is_the_executors():
    model = bert().train()
    view = to_pipelined(model, CONFIG)
    training, inference = training_model(view), inference_model(view)
    for switch in (model.train, model.eval, view.train, view.eval):
        switch()
        training(**BATCH)
        inference(**BATCH)
    assert model.training is view.training is False


def test_what_no_forward_reads_may_change(tmp_path):
    model = bert()
    view = to_pipelined(model, CONFIG)
    executor = training_model(view)
    executor(**BATCH)
    model(**BATCH)  # sets the kind of problem in the configuration
    model(**BATCH, output_hidden_states=True)  # installs hooks that collect
    model.config.label2id = {"yes": 0, "no": 1}
    model.config.pad_token_id = 3
    model.note = "set by somebody"
    model._is_accelerate_prepared = True
    view.save_pretrained(tmp_path)
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    model.classifier.weight = torch.nn.Parameter(torch.zeros_like(model.classifier.weight))
    wanted = model(**BATCH).loss
    torch.testing.assert_close(inference_model(view)(**BATCH).loss, wanted)
    model.train()
    executor(**BATCH)


def test_tensors_that_names_share_stay_shared():
    model = llama()
    executor = inference_model(to_pipelined(model, CONFIG))
    executor(input_ids=IDS)
    tied = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = model.model.embed_tokens.weight = tied
    torch.testing.assert_close(executor(input_ids=IDS).logits, model(input_ids=IDS).logits)
    model.lm_head.weight = torch.nn.Parameter(tied.detach() * 2)
    with pytest.raises(ModelChangedError, match="`lm_head.weight` and `model.embed_tokens.weight` are no longer one"):
        executor(input_ids=IDS)


def test_generators_are_held_to_it_too():
    model = llama()
    generator = generation_model(to_pipelined(model, CONFIG), max_length=16)
    generator.generate(IDS, max_new_tokens=2, do_sample=False)
    model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    with pytest.raises(ModelChangedError, match="act_fn` is another module, Tanh for SiLU"):
        generator.generate(IDS, max_new_tokens=2, do_sample=False)


def test_containers_within_are_looked_into():
    model = bert()
    model.bert.options = {"deep": [1, {"er": 2}]}
    executor = inference_model(to_pipelined(model, CONFIG))
    executor(**BATCH)
    model.bert.options["deep"][1]["er"] = 3
    with pytest.raises(ModelChangedError, match=r"`bert.options.deep\[1\]` is \{'er': 3\}, and was \{'er': 2\}"):
        executor(**BATCH)


def test_what_is_set_on_the_users_model_is_taken_over(tmp_path):
    model = bert()
    view = to_pipelined(model, CONFIG)
    untouched = set(vars(model))
    model.classifier = torch.nn.Linear(16, 2)
    model.scale = torch.nn.Parameter(torch.full((1,), 2.0))
    model.register_buffer("seen", torch.ones(1))
    model.register_forward_hook(lambda module, given, output: {"logits": output.logits * module.scale})
    torch.testing.assert_close(inference_model(view)(**BATCH)["logits"], model(**BATCH)["logits"])
    view.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], model.classifier.weight) and {"scale", "seen"} <= set(saved)
    del model.scale
    model.train()
    plain = view.to_transformers()
    assert plain.training and not hasattr(plain, "scale")
    assert set(vars(model)) == untouched
    view.register_buffer("own", torch.ones(1))
    assert not hasattr(model, "own")


def test_a_capture_leaves_nothing_behind_that_a_hook_set():
    model = bert()
    pruned(model)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    weight = model.classifier.weight
    executor = inference_model(to_pipelined(model, CONFIG))
    found = executor(**BATCH).logits
    assert model.classifier.weight is weight
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    torch.testing.assert_close(found, model(**BATCH).logits)
    with torch.no_grad():
        model.classifier.weight_orig.mul_(2)
    torch.testing.assert_close(executor(**BATCH).logits, model(**BATCH).logits)


def test_a_persistent_parallelization_is_no_change():
    model = to_pipelined(bert(), IPUConfig(layers_per_ipu=[1, 1], embedding_serialization_factor=2))
    executor = inference_model(model)
    executor(**BATCH)
    with model.parallelized(for_inference=True):
        executor(**BATCH)
        executor(**BATCH)
    executor(**BATCH)


def test_a_check_compares_without_looking_at_each_value():
    model = to_pipelined(bert(), CONFIG)
    snapshot = Snapshot(model, training=False)
    assert snapshot.holds(None)
    model.bert.pooler.dense.out_features = 17
    assert not snapshot.holds(None)
    model.bert.pooler.dense.out_features = 16
    assert snapshot.holds(None)
