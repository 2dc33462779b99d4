# SPDX-License-Identifier: Apache-2.0
"""Correspondences of tensors: matched, checked, inverted, read and written."""

import json
import pickle

import pytest
import torch
from ipu_core.checkpoints import (
    Correspondence,
    Divide,
    Join,
    PermuteRotary,
    Rule,
    TensorSpec,
    load_checkpoint,
    open_checkpoint,
    published_tensors,
    save_checkpoint,
)
from ipu_core.checkpoints.conversion import converted
from ipu_core.checkpoints.patterns import filled, numbers_of
from ipu_core.errors import CheckpointError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.core_model_loading import Chunk, Concatenate, Split, Transpose

QKV = ("layers.*.query.weight", "layers.*.key.weight", "layers.*.value.weight")
FUSED = Rule("[model.]h.*.qkv", QKV, Transpose(), Chunk())
RULES = Correspondence(
    rules=(
        Rule("[model.]embed", "embedding.weight"),
        FUSED,
        Rule("[model.]h.*.out", "layers.*.output.weight"),
        Rule("[model.]h.*.out_bias", "layers.*.output.bias"),
    ),
    ignored=("[model.]h.*.mask",),
    copies={"head": "[model.]embed"},
)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.output = nn.Linear(4, 4)


class Own(nn.Module):
    """Two layers, and a head that is tied."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight


def made():
    torch.manual_seed(0)
    return Own()


def theirs(prefix="model."):
    generator = torch.Generator().manual_seed(1)
    shapes = {f"{prefix}embed": (6, 4)}
    for i in range(2):
        shapes |= {f"{prefix}h.{i}.qkv": (4, 12), f"{prefix}h.{i}.out": (4, 4), f"{prefix}h.{i}.out_bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def written(folder, tensors, name="model.safetensors"):
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def test_a_star_is_a_number_and_brackets_may_be_missing():
    assert numbers_of("[a.]h.*.x.*", "h.3.x.12") == ("3", "12")
    assert numbers_of("[a.]h.*.x.*", "a.h.3.x.12") == ("3", "12")
    assert numbers_of("h.*.x", "h.3axx") is None
    assert filled("[a.]h.*.x.*", ("3", "12")) == "a.h.3.x.12"


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((("a.*", "b"),), r"patterns with \[0, 1\] numbers"),
        (("a.*", ("b.*", "c.*")), "says nothing of how"),
        ((("a", "b"), ("c", "d"), Chunk()), "2 tensors and 2: one side of a rule is one tensor"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        Rule(*sides) if len(sides) > 1 else Rule(*sides, "c")


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("on_meta", [True, False])
def test_a_checkpoint_is_loaded_and_comes_back_bit_for_bit(prefix, on_meta, tmp_path):
    tensors = theirs(prefix)
    with torch.device("meta" if on_meta else "cpu"):
        model = made()
    extra = {f"{prefix}h.0.mask": torch.ones(1), "head": tensors[f"{prefix}embed"].clone()}
    assert load_checkpoint(model, written(tmp_path, {**tensors, **extra}), RULES) is model
    assert model.head.weight is model.embedding.weight
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.layers[1].key.weight, tensors[f"{prefix}h.1.qkv"][:, 4:8].T, rtol=0, atol=0)
    back = {name.removeprefix("model."): tensor for name, tensor in published_tensors(model, RULES)}
    assert back.keys() == {name.removeprefix(prefix) for name in tensors}
    assert all(torch.equal(back[name.removeprefix(prefix)], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("shard_bytes", [10**9, 250])
def test_what_is_saved_is_the_published_checkpoint_in_shards_too(shard_bytes, tmp_path):
    tensors = theirs()
    model = load_checkpoint(made(), written(tmp_path, tensors), RULES)
    save_checkpoint(model, tmp_path / "back", RULES, shard_bytes=shard_bytes)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 250)
    back = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    checkpoint = open_checkpoint(tmp_path / "back")
    assert checkpoint.specs == {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    assert torch.equal(checkpoint.read("model.embed"), tensors["model.embed"])
    assert "7 tensors" in str(checkpoint)


def test_operations_invert():
    tensors = {"q": torch.randn(8, 3), "k": torch.randn(4, 3), "v": torch.randn(4, 3)}
    join = Join(8, 4, 4)
    fused = converted(dict(tensors), (join,), ["qkv"])
    back = converted(dict(fused), (join.reverse_op,), ["q", "k", "v"])
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    sizes = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    split = converted(dict(fused), (Split(),), ["q", "k", "v"], sizes)
    assert all(torch.equal(split[name], tensor) for name, tensor in tensors.items())
    permute = PermuteRotary(2)
    rows = converted({"x": torch.arange(8)[:, None].float()}, (permute,), ["y"])["y"]
    assert rows.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert converted({"y": rows}, (permute.reverse_op,), ["x"])["x"].flatten().tolist() == list(range(8))
    assert [repr(each) for each in (join, join.reverse_op, permute, permute.reverse_op)] == [
        "Join(8, 4, 4, dim=0)",
        "Divide(8, 4, 4, dim=0)",
        "PermuteRotary(2)",
        "PermuteRotary(2, inverse=True)",
    ]


def test_a_correspondence_prints_as_a_table():
    text = str(RULES)
    assert "[model.]embed         embedding.weight\n" in text
    assert "Transpose, Chunk(dim=0)" in text
    assert text.endswith("head                  -  " + " " * (len(", ".join(QKV)) - 1) + "= [model.]embed")
    assert "Concatenate(dim=0), Transpose" in repr(FUSED.inverse())


def too_many(tensors):
    return {**tensors, "model.h.0.more": torch.ones(1)}


def too_few(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "model.h.1.out"}


def misnamed(tensors):
    return {name.replace("1.out_bias", "1.out_bia"): tensor for name, tensor in tensors.items()}


def one_more_layer(tensors):
    return {**tensors, **{n.replace("h.1", "h.2"): t.clone() for n, t in tensors.items() if "h.1" in n}}


def twice(tensors):
    return {**tensors, "embed": tensors["model.embed"].clone()}


def wider(tensors):
    return {**tensors, "model.h.0.out_bias": torch.ones(5)}


def flat(tensors):
    return {**tensors, "model.h.0.qkv": torch.ones(48)}


def half(tensors):
    return {**tensors, "model.h.0.out": tensors["model.h.0.out"].half()}


def untied(tensors):
    return {**tensors, "head": torch.zeros(6, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_many, "1 left over of the checkpoint: `model.h.0.more`: make the model of"),
        (too_few, "1 missing in the checkpoint: `model.h.1.out`: make the model of"),
        (misnamed, "missing in the checkpoint: `model.h.1.out_bias`; 1 left over .* did you mean `model.h.1.out_bia`?"),
        (one_more_layer, "3 left over of the checkpoint: `model.h.2.out`, `model.h.2.out_bias`, `model.h.2.qkv`"),
        (twice, "1 used twice: `model.embed`"),
        (wider, r"`model.h.0.out_bias` \[5\] float32 becomes .*, and the model has .* \[4\] float32"),
        (flat, r"`model.h.0.qkv` \[48\] float32 cannot become `layers.0.query.weight` \[4, 4\] float32"),
        (half, r"`model.h.0.out` \[4, 4\] float16 has another dtype than .* or load with `casts=True`"),
        (untied, "`head` is not equal to `.model.*embed`, which it should repeat"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_before_anything_changes(change, message, tmp_path):
    model = made()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, written(tmp_path, change(theirs())), RULES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_dtype_is_cast_where_it_is_asked_for(tmp_path):
    model = load_checkpoint(made(), written(tmp_path, half(theirs())), RULES, casts=True)
    assert torch.equal(model.layers[0].output.weight, theirs()["model.h.0.out"].half().float())


def test_a_rule_that_does_not_invert_is_refused(tmp_path):
    model = nn.ModuleDict({"fused": nn.Linear(2, 6, bias=False)})
    written(tmp_path, {"a": torch.ones(4, 2), "b": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="its rule does not invert, name sizes with `Join`"):
        load_checkpoint(model, tmp_path, Correspondence(rules=(Rule(("a", "b"), "fused.weight", Concatenate()),)))
    load_checkpoint(model, tmp_path, Correspondence(rules=(Rule(("a", "b"), "fused.weight", Join(4, 2)),)))
    with pytest.raises(CheckpointError, match="cannot become .*: Join.* is given parts of"):
        load_checkpoint(model, tmp_path, Correspondence(rules=(Rule(("a", "b"), "fused.weight", Join(2, 4)),)))


def test_a_tensor_of_the_model_without_a_rule_is_named(tmp_path):
    model = made()
    model.more = nn.Linear(1, 1, bias=False)
    with pytest.raises(CheckpointError, match="1 without a rule in the model: `more.weight`"):
        load_checkpoint(model, written(tmp_path, theirs()), RULES)
    with pytest.raises(CheckpointError, match="1 no rule has: `more.weight`"):
        list(published_tensors(model, RULES))


def test_a_buffer_that_no_checkpoint_has_is_refused_on_meta(tmp_path):
    with torch.device("meta"):
        model = made()
        model.register_buffer("table", torch.ones(2), persistent=False)
    with pytest.raises(CheckpointError, match="1 buffers on the meta device are in no checkpoint, table"):
        load_checkpoint(model, written(tmp_path, theirs()), RULES)


def test_no_file_and_no_correspondence_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not there: give a file or a folder"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "readme").touch()
    with pytest.raises(CheckpointError, match=r"has none of model.safetensors.index.json, .*: it has \['readme'\]"):
        open_checkpoint(tmp_path)
    with pytest.raises(TypeError, match="give a `Correspondence`"):
        load_checkpoint(made(), tmp_path, {"a": "b"})


class Runs:
    """A pickle of it runs code."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_a_pickle_of_other_things_is_refused_and_not_run(write, tmp_path):
    write({"a": Runs()}, tmp_path / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match="is no file of tensors alone .* give safetensors"):
        open_checkpoint(tmp_path)
    write({"a": Runs()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        open_checkpoint(tmp_path)


SPLIT = {"h.*.q": 0, "h.*.o": 1}
WHOLE = {"h.0.q": torch.arange(24.0).view(6, 4), "h.0.o": torch.arange(12.0).view(2, 6), "norm": torch.arange(4.0)}


def parted(folder, number=3, change=None):
    for i in range(number):
        parts = {n: t.tensor_split(number, SPLIT["h.*." + n[-1]])[i] for n, t in WHOLE.items() if n != "norm"}
        tensors = {name: part.clone() for name, part in parts.items()} | {"norm": WHOLE["norm"].clone()}
        torch.save(change(i, tensors) if change else tensors, folder / f"consolidated.{i:02d}.pth")
    return folder


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("path", ["", "consolidated.00.pth"])
def test_parts_of_tensors_in_several_files_are_joined_as_it_is_declared(number, path, tmp_path):
    checkpoint = open_checkpoint(parted(tmp_path, number) / path, split=SPLIT)
    assert checkpoint.specs == {name: TensorSpec.of(tensor) for name, tensor in WHOLE.items()}
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in WHOLE.items())


def test_a_correspondence_says_how_parts_are_joined(tmp_path):
    model = nn.ModuleDict({"q": nn.Linear(4, 6, bias=False), "o": nn.Linear(6, 2), "norm": nn.RMSNorm(4)})
    rules = (Rule("h.0.q", "q.weight"), Rule("h.0.o", "o.weight"), Rule("norm", "norm.weight"))
    correspondence = Correspondence(rules=(*rules, Rule("bias", "o.bias")), split=SPLIT)
    bias = torch.arange(2.0)
    load_checkpoint(model, parted(tmp_path, change=lambda i, tensors: {**tensors, "bias": bias}), correspondence)
    assert torch.equal(model.q.weight, WHOLE["h.0.q"]) and torch.equal(model.o.weight, WHOLE["h.0.o"])
    assert str(Correspondence(rules=(Rule("h.*.q", "q.*"),), split=SPLIT)) == "h.*.q  q.*    parts along 0"


def shorter(i, tensors):
    return {**tensors, "h.0.q": tensors["h.0.q"][:, : 4 - i]}


def more_in_one(i, tensors):
    return {**tensors, "extra": torch.ones(1)} if i == 1 else tensors


def another_norm(i, tensors):
    return {**tensors, "norm": tensors["norm"] + i}


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        (None, None, "has a part of every tensor, and nothing says along which dimension: declare it in"),
        ({"h.*.q": 0}, None, "`h.0.o` of .* differs from file to file, so that each may have a part of it"),
        (SPLIT, another_norm, "`norm` of .* differs from file to file"),
        (SPLIT, shorter, r"`h.0.q` of .* is \[2, 4\] float32 in consolidated.00.pth, .* not parts along dimension 0"),
        ({**SPLIT, "norm": 1}, None, r"`norm` of .* not parts along dimension 1: change `Correspondence.split`"),
        ({**SPLIT, "h.0.q": 1}, None, r"`split` has `h.0.q` in dimensions \[0, 1\]"),
        (SPLIT, more_in_one, "consolidated.00.pth and consolidated.01.pth in .* differ in extra"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(split, change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parted(tmp_path, change=change), split=split)


def test_a_part_that_is_missing_or_runs_code_is_refused(tmp_path):
    (parted(tmp_path) / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match=r"has 2 parts, up to consolidated.02.pth, and not consolidated.01.pth"):
        open_checkpoint(tmp_path, split=SPLIT)
    torch.save({"norm": Runs()}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"consolidated.01.pth` is no file of tensors alone"):
        open_checkpoint(tmp_path, split=SPLIT)


def test_a_state_dict_within_another_is_refused(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "step": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="values that are no tensors, model, step: give a state dict"):
        open_checkpoint(tmp_path / "x.pt")
    torch.save([torch.ones(1)], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        open_checkpoint(tmp_path / "x.pt")


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    written(tmp_path, {"a": torch.ones(1)}, "s.safetensors")
    for text, message in (
        ({"weight_map": {"a": "s.safetensors", "b": "t.safetensors"}}, "names t.safetensors, not there"),
        ({"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}, "differ in b"),
        ({}, "is no index of shards"),
        ([], "is no index of shards"),
    ):
        index.write_text(json.dumps(text))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)


def test_divide_is_the_inverse_of_join():
    assert isinstance(Join(1, 2).reverse_op, Divide) and isinstance(Divide(1, 2).reverse_op, Join)
