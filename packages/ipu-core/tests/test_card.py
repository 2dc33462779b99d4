# SPDX-License-Identifier: Apache-2.0
"""A checkpoint has a card that says how it was cut, and whose code loads it."""

import importlib.metadata
import re

import pytest
import torch
import transformers
from ipu_core import IPUConfig, to_pipelined
from ipu_core.model.card import MARK, layers_on_ipus


def saved(folder, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=99, n_positions=16)
    model = to_pipelined(transformers.GPT2LMHeadModel(config), IPUConfig(layers_per_ipu=[1, 2], **options))
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_it_says_where_layers_sit_and_with_which_versions(tmp_path):
    card = saved(tmp_path)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "`IPUConfig(layers_per_ipu=[1, 2])`" in card
    assert "IPU 0: layer 0\nIPU 1: layers 1-2\n" in card
    assert f"torch {importlib.metadata.version('torch')}, transformers {transformers.__version__}." in card


def test_its_code_loads_the_checkpoint_plain_and_pipelined_and_they_agree(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", saved(tmp_path, inference_replication_factor=2), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["batch"]["input_ids"].shape[0] == 2
    ours = names["executor"](**names["batch"]).logits
    torch.testing.assert_close(ours, names["plain"](**names["batch"]).logits, atol=1e-5, rtol=0)


def test_a_card_of_somebody_else_stays_and_ours_is_written_anew(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert saved(tmp_path) == "mine"
    (tmp_path / "README.md").write_text(f"old {MARK}")
    assert saved(tmp_path).startswith("---\n")


@pytest.mark.parametrize(
    ("layers", "num_layers", "expected"),
    [
        ([2, 0, 1], 3, "IPU 0: layers 0-1\nIPU 1: no layer\nIPU 2: layer 2"),
        ([1, 2], None, "layers_per_ipu=[1, 2] on 2 IPUs"),
        ("auto", 3, "layers_per_ipu=auto on 1 IPUs"),
    ],
)
def test_layers_are_listed_as_far_as_they_are_known(layers, num_layers, expected):
    assert layers_on_ipus(IPUConfig(layers_per_ipu=layers).for_training(), num_layers) == expected
