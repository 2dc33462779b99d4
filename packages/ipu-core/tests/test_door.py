# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments of public functions are refused where they come in, by their names."""

import pytest
import torch
import transformers
from ipu_core import (
    Family,
    IPUConfig,
    families_in,
    generation_model,
    identity_loss,
    inference_model,
    pipelined_classes,
    pipelined_in,
    plan,
    split_encoder_decoder_ipu_config,
    to_pipelined,
    training_model,
)
from ipu_core.errors import BatchError, IPUError

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(2, 18).reshape(2, 8)
BATCH = {"input_ids": IDS, "labels": torch.tensor([0, 1])}


def bert():
    config = transformers.BertConfig(**SMALL, vocab_size=32)
    return to_pipelined(transformers.BertForSequenceClassification(config), CONFIG)


def llama():
    config = transformers.LlamaConfig(**SMALL, vocab_size=32, pad_token_id=0, eos_token_id=None)
    return to_pipelined(transformers.LlamaForCausalLM(config).eval(), CONFIG)


CALLS = {
    "outputs='loss'": (
        lambda: training_model(bert(), outputs="loss"),
        TypeError,
        r"give a list .* `outputs=\['loss'\]`",
    ),
    "outputs=3": (lambda: inference_model(bert(), outputs=3), TypeError, "`outputs=3` is a int: give a list of names"),
    "outputs=[0]": (lambda: inference_model(bert(), outputs=[0]), TypeError, r"`outputs=\[0\]` is a list"),
    "optimizer='sgd'": (lambda: training_model(bert(), "sgd"), TypeError, "`optimizer='sgd'` is a str: give one made"),
    "optimizer=SGD": (lambda: training_model(bert(), torch.optim.SGD), TypeError, "`optimizer=.*SGD.*` is a class"),
    "plan's optimizer": (
        lambda: plan(bert(), BATCH, optimizer="AdamW"),
        TypeError,
        "`optimizer='AdamW'` is a str: .* class",
    ),
    "engine=3": (
        lambda: training_model(bert(), engine=3),
        TypeError,
        "`engine=3` is a int: give the name of an engine",
    ),
    "input_idz": (
        lambda: plan(bert(), {"input_idz": IDS}),
        BatchError,
        "`input_idz` is no input .* did you mean `input_ids`",
    ),
    "lables": (
        lambda: training_model(bert())(input_ids=IDS, lables=BATCH["labels"]),
        BatchError,
        "`lables` is no input .* did you mean `labels`",
    ),
    "a batch": (lambda: plan(bert(), [IDS]), TypeError, "a batch is a list: give a mapping"),
    "weights=4": (lambda: generation_model(llama(), weights=4), ValueError, "`weights=4` is not one of"),
    "max_length=16.0": (lambda: generation_model(llama(), max_length=16.0), TypeError, "`max_length=16.0` is a float"),
    "prefill_chunk_size=0": (
        lambda: generation_model(llama(), prefill_chunk_size=0),
        ValueError,
        "`prefill_chunk_size=0`: give 1 or more",
    ),
    "batch_size=True": (lambda: generation_model(llama(), batch_size=True), TypeError, "`batch_size=True` is a bool"),
    "in_flight='2'": (lambda: generation_model(llama(), in_flight="2"), TypeError, "`in_flight='2'` is a str"),
    "sed": (lambda: setattr(IPUConfig(), "sed", 3), AttributeError, "`sed` is not an option .* did you mean `seed`"),
    "use_cache": (
        lambda: inference_model(llama())(input_ids=IDS, use_cache=True),
        BatchError,
        "`use_cache=True`: an executor .* leave `use_cache` out, or generate with",
    ),
    "a cache": (
        lambda: inference_model(llama())(input_ids=IDS, past_key_values=transformers.DynamicCache()),
        BatchError,
        "`past_key_values` is a `DynamicCache`: an executor runs whole sequences",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_it_is_named_with_what_is_there_and_what_to_give(call):
    make, kind, said = CALLS[call]
    with pytest.raises(kind, match=said):
        make()


OTHERS = {
    **{"None": None, "'x'": "x", "''": "", "-1": -1, "0": 0, "1.5": 1.5, "nan": float("nan"), "inf": float("inf")},
    **{"[]": [], "{}": {}, "[-5]": [-5], "['x']": ["x"], "{'x': 1}": {"x": 1}, "b'x'": b"x"},
    **{"True": True, "an object": object(), "a class": int, "a function": len, "a tensor": torch.ones(2)},
}
DECODER, ENCODER = llama(), bert()
FOUR = IPUConfig(layers_per_ipu=[1, 1, 1, 1])
FAMILY = {"model_type": "a", "layout": ()}
# For each argument of each public function: a call with it, and the others that it takes.
DOORS = {
    "to_pipelined(model)": (lambda v: to_pipelined(v, CONFIG), ()),
    "to_pipelined(ipu_config)": (lambda v: to_pipelined(torch.nn.Linear(1, 1), v), ()),
    "to_pipelined(family)": (lambda v: to_pipelined(ENCODER, CONFIG, family=v), ("None",)),
    "to_pipelined(rewrites)": (lambda v: to_pipelined(ENCODER, CONFIG, rewrites=v), ("''", "[]", "{}")),
    "training_model(model)": (training_model, ()),
    "training_model(optimizer)": (lambda v: training_model(ENCODER, v), ("None",)),
    "training_model(engine)": (lambda v: training_model(ENCODER, engine=v), ("None",)),
    "training_model(outputs)": (
        lambda v: training_model(ENCODER, outputs=v),
        ("None", "[]", "{}", "['x']", "{'x': 1}"),
    ),
    "training_model(loss)": (lambda v: training_model(ENCODER, loss=v), ("None", "'x'", "''")),
    "inference_model(model)": (inference_model, ()),
    "plan(model)": (lambda v: plan(v, BATCH), ()),
    "plan(inputs)": (lambda v: plan(ENCODER, v), ()),
    "plan(for_inference)": (lambda v: plan(ENCODER, BATCH, v), ("True",)),
    "plan(optimizer)": (lambda v: plan(ENCODER, BATCH, optimizer=v), ("None",)),
    "plan(loss)": (lambda v: plan(ENCODER, BATCH, loss=v), ("None",)),
    "executor(input_ids)": (lambda v: inference_model(ENCODER)(input_ids=v), ("None", "a tensor")),
    "executor(attention_mask)": (
        lambda v: inference_model(ENCODER)(input_ids=IDS, attention_mask=v),
        ("None", "a tensor"),
    ),
    "executor(labels)": (lambda v: training_model(ENCODER)(input_ids=IDS, labels=v), ("None", "a tensor")),
    "generation_model(model)": (generation_model, ()),
    "generation_model(weights)": (lambda v: generation_model(DECODER, weights=v), ("None",)),
    "generation_model(cache_dtype)": (lambda v: generation_model(DECODER, cache_dtype=v), ("None",)),
    "generation_model(max_length)": (lambda v: generation_model(DECODER, max_length=v), ("None",)),
    "generation_model(num_beams)": (lambda v: generation_model(DECODER, num_beams=v), ("None",)),
    "generate(inputs)": (lambda v: generation_model(DECODER).generate(v), ("None", "a tensor")),
    "generate(input_ids)": (lambda v: generation_model(DECODER).generate(input_ids=v), ("None", "a tensor")),
    "generate(attention_mask)": (
        lambda v: generation_model(DECODER).generate(IDS, attention_mask=v),
        ("None", "a tensor"),
    ),
    "generate(generation_config)": (lambda v: generation_model(DECODER).generate(IDS, generation_config=v), ("None",)),
    "save_pretrained": (lambda v: ENCODER.save_pretrained(v), ("'x'", "''")),
    "IPUConfig.from_pretrained": (IPUConfig.from_pretrained, ("'x'", "''")),
    "IPUConfig(matmul_proportion)": (lambda v: IPUConfig(matmul_proportion=v), ("0",)),
    "identity_loss(value)": (identity_loss, ("a tensor",)),
    "identity_loss(reduction)": (lambda v: identity_loss(torch.ones(1), v), ()),
    "split(ipu_config)": (lambda v: split_encoder_decoder_ipu_config(v, 2, 2), ()),
    "split(num_encoder_layers)": (lambda v: split_encoder_decoder_ipu_config(FOUR, v, 2), ()),
    "split(num_decoder_layers)": (lambda v: split_encoder_decoder_ipu_config(FOUR, 2, v), ()),
    "split(for_inference)": (lambda v: split_encoder_decoder_ipu_config(FOUR, 2, 2, for_inference=v), ("True",)),
    "Family(model_type)": (lambda v: Family(**{**FAMILY, "model_type": v}), ("'x'", "''")),
    "Family(layout)": (lambda v: Family(**{**FAMILY, "layout": v}), ("[]", "['x']")),
    "Family(rewrites)": (lambda v: Family(**FAMILY, rewrites=v), ("[]", "['x']")),
    "Family(models)": (lambda v: Family(**FAMILY, models=v), ("{}", "[]")),
    "Family of a package(models)": (lambda v: Family(**FAMILY, models=v, package="a"), ("{}", "[]", "['x']")),
    "Family(package)": (lambda v: Family(**FAMILY, package=v), ("'x'", "''")),
    "Family(plain_in)": (lambda v: Family(**FAMILY, plain_in=v), ("'x'", "''")),
    "Family(sample)": (lambda v: Family(**FAMILY, sample=v), ("None", "'x'", "''")),
    "pipelined_in": (pipelined_in, ("'x'", "''")),
    "families_in(package)": (families_in, ("'x'", "''")),
    "pipelined_classes(package)": (pipelined_classes, ("'x'", "''")),
}

# What is said where it is not the name of the argument.
SAID = {
    "training_model(engine)": ("there is no engine",),
    "plan(inputs)": ("a batch is a", "the batch has no tensor"),
    "generate(inputs)": ("`input_ids",),
    **{f"{made}(model)": ("is not pipelined",) for made in ("training_model", "inference_model", "plan")},
    "generation_model(model)": ("is not pipelined",),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_no_argument_takes_is_refused_by_its_name(door):
    call, taken = DOORS[door]
    for name in OTHERS.keys() - {*taken}:
        with pytest.raises((TypeError, ValueError, IPUError)) as refused:
            call(OTHERS[name])
        said = str(refused.value)
        argument = door.partition("(")[2].strip(")")
        assert any(name in said for name in (argument, *SAID.get(door, ()))), f"{name}: {said}"


def test_other_names_are_upstreams_to_take():
    found = inference_model(llama())(input_ids=IDS, output_hidden_states=True)
    assert len(found.hidden_states) == 3


def test_an_optimizer_that_evaluates_by_itself_steps_as_on_the_plain_model():
    def model():
        torch.manual_seed(0)
        config = transformers.BertConfig(**SMALL, vocab_size=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
        return transformers.BertForSequenceClassification(config).train()

    plain, ours = model(), model()
    theirs = torch.optim.LBFGS(plain.parameters(), lr=0.1, max_iter=3)
    rows = {name: torch.cat([value, value.flip(0)]) for name, value in BATCH.items()}

    def closure():
        theirs.zero_grad()
        loss = plain(**rows).loss
        loss.backward()
        return loss

    config = CONFIG.replace(gradient_accumulation_steps=2, output_mode="all")
    executor = training_model(to_pipelined(ours, config), torch.optim.LBFGS(ours.parameters(), lr=0.1, max_iter=3))
    for _ in range(2):
        wanted = theirs.step(closure)
        torch.testing.assert_close(executor(**rows).loss.mean(), wanted)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name), atol=1e-5, rtol=1e-4)


def test_a_model_with_more_rows_than_when_it_was_trained_runs():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)).eval()
    view = to_pipelined(model, CONFIG)
    training_model(view)(input_ids=IDS, labels=IDS)
    gradient = model.transformer.h[0].mlp.c_fc.weight.grad
    model.resize_token_embeddings(40, mean_resizing=False)
    found = inference_model(view)(input_ids=IDS + 20).logits
    torch.testing.assert_close(found, model(input_ids=IDS + 20).logits)
    assert model.transformer.h[0].mlp.c_fc.weight.grad is gradient
    training_model(view)(input_ids=IDS, labels=IDS)
