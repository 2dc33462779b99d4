# SPDX-License-Identifier: Apache-2.0
"""`ipu generate` prints the plain model's text as it comes, and the speed at the end."""

import pytest
import tokenizers
import torch
import transformers
from ipu_core.cli import main
from ipu_core.commands.generate import Stopwatch

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    vocabulary = {word: i for i, word in enumerate(["<s>", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=41, n_positions=32, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.5)
    model.save_pretrained(folder)
    return folder


def test_it_prints_what_the_plain_model_writes_and_the_speed(checkpoint, capsys):
    text = "w1 w2 w3"
    assert main(["generate", "--model", str(checkpoint), "--layers-per-ipu", "1,1", "--max-new-tokens", "6", text]) == 0
    printed = capsys.readouterr()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    wanted = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert printed.out.split() == tokenizer.decode(wanted).split()
    assert printed.err.splitlines()[-1].startswith("6 tokens in ")
    assert printed.err.endswith(" tokens/s, 2 IPUs\n")


def test_what_cannot_be_generated_is_said(checkpoint, capsys, tmp_path):
    def said(*arguments):
        assert main(["generate", *arguments]) == 2
        return capsys.readouterr().err

    assert "the text is empty: give what it begins with" in said("--model", str(checkpoint), "")
    assert "has no config.json: give a checkpoint that was saved with its tokenizer" in said(
        "--model", str(tmp_path), "a"
    )
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert "config.json` is no JSON: line 1, column 2" in said("--model", str(tmp_path), "a")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-9])
    assert "it was cut off" in said("--model", str(tmp_path), "a")
    assert "--temperature" in said("--model", str(checkpoint), "--temperature", "-1", "w1")
    assert "positions" in said("--model", str(checkpoint), "--max-new-tokens", "40", "w1")


def test_the_speed_leaves_the_first_token_out():
    assert Stopwatch(started=0.0, times=[2.0, 2.5, 3.0]).report == (
        "3 tokens in 3.0 s: the first after 2.0 s, then 2.0 tokens/s"
    )
    assert Stopwatch(started=0.0, times=[2.0]).report == "1 tokens in 2.0 s: the first after 2.0 s"
    assert Stopwatch(started=0.0).report == "no token came"
