# SPDX-License-Identifier: Apache-2.0
"""The example of an own architecture: equal to transformers from published weights, on one and on two devices."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, to_pipelined
from ipu_core.checkpoints import Checkpoint, load_checkpoint, open_checkpoint, published_tensors, save_checkpoint
from ipu_core.errors import CheckpointError
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from safetensors.torch import load_file, save_file
from simulated_devices import simulating
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "own_model"
VOCABULARY, NUM_TOKENS = 61, 50
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
MISTRAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "sliding_window": 12,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
IDS = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.4}
PROMPT = torch.tensor([[5, 17, 3, 40], [60, 2, 2, 9]])
ORIGINAL = {  # names of the original layout by those of transformers
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{name}_proj": f"attention.w{name}" for name in "qkvo"},
    **{f"mlp.{theirs}_proj": f"feed_forward.{w}" for theirs, w in (("gate", "w1"), ("down", "w2"), ("up", "w3"))},
}


@pytest.fixture(autouse=True)
def example(monkeypatch):
    """Find the modules of the example, and leave none behind."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module("generate")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Write random checkpoints, and return the transformers models and the folders by name."""
    found = {}
    for name, cls, config in (
        ("gpt2", transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2, **IDS)),
        ("mistral", transformers.MistralForCausalLM, transformers.MistralConfig(**MISTRAL, **IDS)),
    ):
        torch.manual_seed(0)
        model = cls(config).eval()
        for parameter in model.parameters():  # biases and norms too
            torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size="3KB")
        found[name] = model, folder
    model = found["mistral"][0]
    for name, write in (("original", torch.save), ("original-safetensors", save_file)):
        folder = tmp_path_factory.mktemp(name)
        write_original(model, folder, write, "consolidated" + (".00.pth" if write is torch.save else ".safetensors"))
        found[name] = model, folder
    folder = tmp_path_factory.mktemp("original-parts")
    write_parts(found["original"][1], folder, 2)
    found["original-parts"] = model, folder
    return found


def write_parts(original, folder, number):
    """Write an original checkpoint as so many devices hold it: heads and widths shared among them, norms in each."""
    tensors = torch.load(original / "consolidated.00.pth", weights_only=True)
    along = {"wo": 1, "w2": 1, "tok_embeddings": 1, "output": 0, **dict.fromkeys(("wq", "wk", "wv", "w1", "w3"), 0)}
    for i in range(number):
        dims = {name: along.get(name.split(".")[-2]) for name in tensors}
        own = {n: t if dims[n] is None else t.tensor_split(number, dims[n])[i].clone() for n, t in tensors.items()}
        torch.save(own, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text((original / "params.json").read_text())


def write_original(model, folder, write, file):
    """Write a Mistral model in the layout of its authors."""
    config, tensors = model.config, {}
    for name, tensor in model.state_dict().items():
        for theirs, original in ORIGINAL.items():
            name = name.replace(theirs, original)
        if name.endswith(("wq.weight", "wk.weight")):  # from rotated halves to rotated neighbours
            heads = tensor.unflatten(0, (-1, 2, config.head_dim // 2))
            tensor = heads.transpose(1, 2).flatten(0, 2)
        tensors[name] = tensor.contiguous()
    write(tensors, folder / file)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "sliding_window": config.sliding_window,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    (folder / "params.json").write_text(json.dumps(params))


ALL = ["gpt2", "mistral", "original", "original-safetensors", "original-parts"]


@pytest.mark.parametrize("name", ALL)
def test_logits_and_fifty_tokens_are_those_of_transformers(name, checkpoints, example):
    theirs, folder = checkpoints[name]
    ours = example.load(folder, torch.float32)
    with torch.no_grad():
        wanted = theirs.generate(PROMPT, max_new_tokens=NUM_TOKENS, do_sample=False)
        torch.testing.assert_close(ours(wanted)["logits"], theirs(wanted).logits, atol=1e-5, rtol=0)
        ours.allocate_cache(rows=2, length=64)
        assert torch.equal(example.generate(ours, PROMPT, NUM_TOKENS), wanted)
    assert len(wanted[0].unique()) > 5


@pytest.mark.turns(4)
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
@pytest.mark.parametrize("devices", [["cpu"], ["meta:0", "meta:1"]], ids=["one device", "two devices"])
def test_pipelined_it_gives_the_logits_and_tokens_of_transformers(name, devices, checkpoints, example, monkeypatch):
    theirs, folder = checkpoints[name]
    wanted = theirs.generate(PROMPT, max_new_tokens=NUM_TOKENS, do_sample=False)
    ours = example.load(folder, torch.float32)
    ours.allocate_cache(rows=2, length=64)
    with simulating(monkeypatch) if len(devices) > 1 else contextlib.nullcontext():
        model = to_pipelined(ours, IPUConfig(layers_per_ipu=[-1] * len(devices), devices=devices))
        assert torch.equal(example.generate(example.runner(model), PROMPT, NUM_TOKENS), wanted)
        homes = [str(block.attention.keys.device) for block in ours.blocks]
        logits = inference_model(model)(input_ids=wanted)["logits"]
    assert homes == [devices[0], devices[-1]]
    torch.testing.assert_close(logits, theirs(wanted).logits, atol=1e-5, rtol=0)


@pytest.mark.turns(4)
@pytest.mark.parametrize(("name", "dtype"), [("gpt2", torch.float16), ("mistral", torch.bfloat16)])
def test_in_half_precision_two_devices_equal_one(name, dtype, checkpoints, example, monkeypatch):
    ours = example.load(checkpoints[name][1], dtype)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    config = IPUConfig(layers_per_ipu=[-1, -1], devices=["meta:0", "meta:1"])
    with simulating(monkeypatch):
        on_two, on_one = (
            inference_model(to_pipelined(ours, each))(input_ids=PROMPT)["logits"]
            for each in (config, config.replace(devices=["meta:0", "meta:0"]))
        )
    assert on_two.dtype == dtype
    torch.testing.assert_close(on_two, on_one, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_two_stages_equal_the_plain_model(dtype, checkpoints, example):
    ours = example.load(checkpoints["mistral"][1], dtype)
    model = to_pipelined(ours, IPUConfig(layers_per_ipu=[-1, -1], devices=["cpu", "cpu"]))
    with torch.no_grad():
        logits = inference_model(model)(input_ids=PROMPT)["logits"]
        torch.testing.assert_close(logits, ours(PROMPT)["logits"], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_pipelined_training_and_inference_equal_the_plain_model(name, checkpoints, example):
    model = example.load(checkpoints[name][1], torch.float32)
    batch = {"input_ids": PROMPT, "labels": PROMPT}
    splits = [IPUConfig(layers_per_ipu=split) for split in ([2], [1, 1], [-1, -1])]
    assert_training_equals_plain(model, splits, batch, atol=1e-5)
    assert_inference_equals_plain(model, splits, {"input_ids": PROMPT}, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_published_checkpoint_comes_back_bit_for_bit(name, checkpoints, example, tmp_path):
    folder = checkpoints[name][1]
    correspondence = example.published(folder).correspondence
    checkpoint = open_checkpoint(folder, split=correspondence.split)
    ours = example.load(folder, torch.float32)
    back = dict(published_tensors(ours, correspondence))
    assert back.keys() == checkpoint.specs.keys()
    assert all(torch.equal(tensor, checkpoint.read(name)) for name, tensor in back.items())
    save_checkpoint(ours, tmp_path, correspondence)
    assert load_file(tmp_path / "model.safetensors").keys() == back.keys()


def test_transformers_loads_what_is_saved(checkpoints, example, tmp_path):
    theirs, folder = checkpoints["mistral"]
    save_checkpoint(example.load(folder, torch.float32), tmp_path, example.published(folder).correspondence)
    theirs.config.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(PROMPT).logits, theirs(PROMPT).logits)


def test_gpt2_as_its_authors_published_it_is_loaded(checkpoints, example, tmp_path):
    """Their names have no prefix, and masks are among the tensors."""
    theirs, folder = checkpoints["gpt2"]
    state = theirs.transformer.state_dict()
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    save_file({**state, **masks}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ours = example.load(tmp_path, torch.float32)
    torch.testing.assert_close(ours(PROMPT)["logits"], theirs(PROMPT).logits, atol=1e-5, rtol=0)


class LiveBytes(TorchDispatchMode):
    """Keeps the most bytes of tensors made inside the block that are there at once; a view of another is none."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in _with_memory((args, kwargs))}
        for tensor in _with_memory(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: each for key, each in self.held.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self.held.values()))
        return made


def _with_memory(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]


@pytest.mark.parametrize("name", ["gpt2", "mistral", "original-parts"])
def test_loading_shards_holds_the_model_and_one_tensor_more_at_most(name, checkpoints, example):
    folder = checkpoints[name][1]
    found = example.published(folder)
    opened = open_checkpoint(folder, split=found.correspondence.split)
    with torch.device("meta"):
        model = example.Transformer(found.config)
    # A copy of each tensor, as if the files were not mapped; joined parts are one.
    copied = Checkpoint(path=folder, specs=opened.specs, read=lambda name: opened.read(name).clone())
    checkpoint = opened if "parts" in name else copied
    with LiveBytes() as live:
        load_checkpoint(model, checkpoint, found.correspondence)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    largest = max(*sizes, *(spec.num_bytes for spec in opened.specs.values()))
    assert len([*folder.glob("*.safetensors"), *folder.glob("consolidated.*")]) > (1 if "parts" in name else 5)
    assert sum(sizes) <= live.peak <= sum(sizes) + largest


def test_a_checkpoint_of_another_size_is_refused_by_name(checkpoints, example, tmp_path):
    folder = checkpoints["mistral"][1]
    values = json.loads((folder / "config.json").read_text())
    found = example.published(folder)
    for change, message in (
        ({"num_hidden_layers": 1}, "9 left over of the checkpoint: `model.layers.1.input_layernorm.weight`"),
        ({"num_hidden_layers": 3}, "9 missing in the checkpoint: `model.layers.2.input_layernorm.weight`"),
        ({"num_key_value_heads": 4}, r"`model.layers.0.self_attn.k_proj.weight` \[12, 16\] float32 becomes"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
        with torch.device("meta"):
            model = example.Transformer(example.published(tmp_path).config)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(model, folder, found.correspondence)


def test_the_script_runs_without_any_argument(example, capsys):
    tokens = example.main(["--num_tokens", "2"])
    assert capsys.readouterr().out.split() == [str(token) for token in tokens[0].tolist()]
    assert tokens.shape == (1, 5)


def test_a_folder_of_another_architecture_ends_the_run(example, tmp_path):
    with pytest.raises(SystemExit, match="has no config.json and no params.json"):
        example.main(["--checkpoint", str(tmp_path)])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SystemExit, match="is of bert: give a checkpoint of gpt2 or mistral"):
        example.main(["--checkpoint", str(tmp_path)])


def test_the_real_sizes_are_those_that_were_published(example):
    module = importlib.import_module("transformer")
    with torch.device("meta"):
        gpt2, mistral = (example.Transformer(config) for config in (module.GPT2, module.MISTRAL_7B))
    assert sum(parameter.numel() for parameter in gpt2.parameters()) == 124_439_808
    assert sum(parameter.numel() for parameter in mistral.parameters()) == 7_241_732_096


def test_what_a_plain_module_has_not_of_transformers_is_said(example, tmp_path):
    config = example.published(example.write_tiny(tmp_path)).config
    model = to_pipelined(example.Transformer(config), IPUConfig(layers_per_ipu=[-1, -1]))
    with pytest.raises(TypeError, match="has no language-model head"):
        model.generate(PROMPT)
    with pytest.raises(TypeError, match="`Transformer` is no transformers model, and has no `generate`: run its steps"):
        generation_model(model)
    with pytest.raises(TypeError, match="`Transformer` is no transformers model, and has no `save_pretrained`: save"):
        model.save_pretrained(tmp_path)
