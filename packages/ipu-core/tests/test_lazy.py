# SPDX-License-Identifier: Apache-2.0
"""Models whose tensors are read by whoever runs them: `from_pretrained`'s values, on one process and on two ranks."""

import json

import lazy_cases
import pytest
import torch
from ipu_core import IPUConfig, generation_model, plan, to_pipelined, training_model
from ipu_core.checkpoints import read_lazily
from ipu_core.checkpoints.lazy import read_from, read_now, refuse_without_values
from ipu_core.errors import CheckpointError
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, MixtralConfig, MixtralForCausalLM

ROPE = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 2.0, "original_max_position_embeddings": 8}
ROPE |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 37}


def on_meta(cls, config, dtype=torch.float32):
    with torch.device("meta"):
        return cls._from_config(config, dtype=dtype)


def tensors(model):
    return {name: tensor for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named}


@pytest.mark.turns(16)
def test_two_ranks_each_read_train_and_write_their_part(tmp_path):
    for name in lazy_cases.MODELS:
        lazy_cases.made(name).save_pretrained(tmp_path / name, max_shard_size="4KB")
    results = run_ranks(2, lazy_cases.in_parts, str(tmp_path))
    parts = [set(result.pop("generated")) for result in results]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 21
    for name in lazy_cases.MODELS:
        cls, _ = lazy_cases.configured(name)
        ours, theirs = (cls.from_pretrained(tmp_path / f"{name}-{which}") for which in ("trained", "plain"))
        for parameter, value in theirs.state_dict().items():
            lazy_cases.equal(f"{name}, {parameter} as saved", ours.state_dict()[parameter], value)
        index = json.loads((tmp_path / f"{name}-trained" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in ours.double().parameters())
        assert not (tmp_path / f"{name}-trained" / ".parts").exists()
        found = [result[name] for result in results]
        names = {name for name, _ in theirs.named_parameters()}
        run = {name for name in names if not any(part in name for part in lazy_cases.UNREAD)}
        for what in ("held", "gradients"):
            assert set().union(*(each[what] for each in found)) & names == run
        for each in found:
            assert each["held"] & names < run and each["states"] == len(each["gradients"])


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        # Whose checkpoints have an expert a tensor, and whose modules have all of them in one.
        (MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=2, num_key_value_heads=1, rope_parameters=ROPE)),
        # Of whose checkpoint the names have a prefix, and a head is left over.
        (BertModel, BertConfig(**SIZES)),
    ],
)
def test_tensors_are_those_of_from_pretrained_and_stay_the_objects_they_are(cls, config, tmp_path):
    torch.manual_seed(0)
    saved = BertForMaskedLM(config) if cls is BertModel else cls(config)
    if cls is BertModel:
        saved.bert.pooler = BertModel(config).pooler
    saved.save_pretrained(tmp_path, max_shard_size="4KB")
    model = read_lazily(on_meta(cls, config), tmp_path)
    plan_before = tensors(model)
    some = [t for name, t in tensors(model).items() if "layers.1." in name or "layer.1." in name or "pos" in name]
    read_now(some)
    assert sum(not t.is_meta for t in tensors(model).values()) == len(some)
    read_now(tensors(model).values())
    plain = tensors(cls.from_pretrained(tmp_path))
    for name, tensor in tensors(model).items():
        assert tensor is plan_before[name] and tensor.requires_grad == plain[name].requires_grad
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0, msg=name)


def test_one_process_plans_before_it_reads_and_trains_as_the_plain_model(tmp_path):
    lazy_cases.made("t5").save_pretrained(tmp_path)
    model, plain = lazy_cases.lazy("t5", tmp_path), lazy_cases.made("t5").train()
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1]))
    inputs = lazy_cases.batch()
    assert plan(pipelined, inputs).num_parameters == plain.num_parameters()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training_model(pipelined, optimizer)(**inputs).loss
    expected = plain(**inputs).loss
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-10)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach() - 0.1 * theirs.grad, rtol=0, atol=1e-10)


def changed(change, folder):
    values = load_file(folder / "model.safetensors")
    change(values)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


def lacking(values):
    del values["bert.encoder.layer.1.output.dense.bias"]


def of_another_shape(values):
    values["bert.encoder.layer.1.output.dense.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, "lacks 1 of the .* tensors of BertForMaskedLM, bert.encoder.layer.1.output.dense.bias"),
        (of_another_shape, r"dense.bias` is \[3\] there and \[16\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_read(change, message, tmp_path):
    lazy_cases.made("bert").save_pretrained(tmp_path)
    changed(change, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        lazy_cases.lazy("bert", tmp_path)


def test_a_tied_tensor_with_two_values_is_refused(tmp_path):
    lazy_cases.made("bert").save_pretrained(tmp_path)
    changed(lambda v: v.update({"cls.predictions.decoder.weight": torch.zeros(37, 16, dtype=torch.float64)}), tmp_path)
    model = lazy_cases.lazy("bert", tmp_path)
    with pytest.raises(CheckpointError, match="are one tensor of the model, and differ"):
        read_now(model.parameters())


class WithOwnBuffer(BertModel):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.ones(2), persistent=False)


def test_a_buffer_without_a_rule_is_refused_rather_than_left_empty(tmp_path):
    config = BertConfig(**SIZES)
    BertModel(config).save_pretrained(tmp_path)
    model = read_lazily(on_meta(WithOwnBuffer, config), tmp_path)
    with pytest.raises(CheckpointError, match="scale of WithOwnBuffer are in no checkpoint"):
        read_now(model.buffers())


def test_what_is_no_lazy_model_is_refused(tmp_path):
    torch.save(lazy_cases.made("bert").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin` is no safetensors"):
        lazy_cases.lazy("bert", tmp_path)
    with pytest.raises(CheckpointError, match="parameters of BertForMaskedLM have memory already"):
        read_lazily(lazy_cases.made("bert"), tmp_path)
    with pytest.raises(TypeError, match="a transformers model"):
        read_lazily(torch.nn.Linear(1, 1), tmp_path)


def test_another_checkpoint_is_read_into_the_memory_of_what_was_read_and_later_for_the_rest(tmp_path):
    first, second = lazy_cases.made("bert"), lazy_cases.made("bert")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = lazy_cases.lazy("bert", tmp_path / "first")
    here = [t for name, t in tensors(model).items() if "layer.0." in name or "word_embeddings" in name]
    read_now(here)
    places = [tensor.data_ptr() for tensor in here]
    read_from(model, tmp_path / "second")
    assert [tensor.data_ptr() for tensor in here] == places
    assert sum(not tensor.is_meta for tensor in tensors(model).values()) == len(here)
    read_now(tensors(model).values())
    for name, tensor in tensors(second).items():
        torch.testing.assert_close(tensors(model)[name], tensor, rtol=0, atol=0, msg=name)


def test_one_process_reads_all_of_what_it_generates_with(tmp_path):
    lazy_cases.made("t5").save_pretrained(tmp_path)
    lazy_cases.assert_generates("t5", tmp_path, engine="host")


def test_what_every_rank_would_read_all_of_is_refused_to_generate_with(tmp_path):
    for name, options, message in (
        ("t5", {}, "0 of the .* tensors .*: every rank runs all of the encoder: load it with `from_pretrained`"),
        ("llama", {"weights": "exact"}, '`weights="exact"` looks at all of them: leave it out'),
    ):
        lazy_cases.made(name).save_pretrained(tmp_path / name)
        model = to_pipelined(lazy_cases.lazy(name, tmp_path / name), IPUConfig())
        with pytest.raises(CheckpointError, match=message):
            generation_model(model, engine="distributed", **options)


def test_a_model_without_a_checkpoint_is_refused():
    with pytest.raises(CheckpointError, match="on the meta device, .*, and have no values: say where"):
        generation_model(to_pipelined(on_meta(*lazy_cases.configured("llama")), IPUConfig()))
    with pytest.raises(CheckpointError, match="on the meta device, .*, and have no values: say where"):
        refuse_without_values(on_meta(*lazy_cases.configured("llama")))
