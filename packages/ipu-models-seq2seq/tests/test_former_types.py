# SPDX-License-Identifier: Apache-2.0
"""XLM-ProphetNet gives what transformers 4.57.6 gave and loads its checkpoints, and `code_llama` is a Llama."""

from pathlib import Path

import pytest
import torch
import transformers
from golden import Golden, auto_of
from ipu_models_seq2seq.architectures import XLM_PROPHETNET
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
LLAMA = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_checkpoint_of_the_former_release_gives_what_it_gave(path, tmp_path):
    golden = Golden(path)
    assert golden.about["made_with"].startswith("transformers 4.57.6, ")
    golden.assert_equal(golden.model(tmp_path, auto_of(golden.about["class"])))


def test_every_class_has_a_golden_file():
    declared = {target.partition(":")[2] for target in XLM_PROPHETNET.models.values()}
    assert {Golden(path).about["class"] for path in FILES} == declared


def test_xlm_prophetnet_has_the_parameters_and_defaults_of_prophetnet():
    ours, theirs = (AutoConfig.for_model(name).to_dict() for name in ("xlm-prophetnet", "prophetnet"))
    assert ours.pop("model_type") == "xlm-prophetnet" and theirs.pop("model_type") == "prophetnet"
    assert ours == theirs


def test_a_checkpoint_that_says_code_llama_is_a_llama(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("code_llama", **LLAMA)
    assert type(config) is transformers.LlamaConfig and config.model_type == "llama"
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "code_llama"'))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is transformers.LlamaForCausalLM
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert type(AutoModel.from_pretrained(tmp_path)) is transformers.LlamaModel
