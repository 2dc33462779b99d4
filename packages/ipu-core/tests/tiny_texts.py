# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of a few words and small models of text, for tests of pipelines."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils import _pytree as pytree

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "one", "two", "three", "four", "five"]
WORDS += ["six", "seven"]
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,
}
ENTAILMENT = ["contradiction", "entailment"]
# Ragged on purpose, and within two compiled lengths.
TEXTS = [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(1 + 4 * i % 13)) for i in range(7)]


def tokenizer(side: str = "right", **more) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that knows WORDS, and fills rows up on a side."""
    numbers = {token: place for place, token in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    more = {"model_max_length": 48, "mask_token": "[MASK]", **more}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **names, **more)


def bert(head: str, **more) -> torch.nn.Module:
    """Return a small BERT with a head, always the same."""
    torch.manual_seed(0)
    names = dict(enumerate(ENTAILMENT))
    config = transformers.BertConfig(vocab_size=len(SPECIAL) + len(WORDS), id2label=names, **{**SIZE, **more})
    config.label2id = {name: number for number, name in names.items()}
    return getattr(transformers, head)(config).eval()


def gpt2() -> torch.nn.Module:
    """Return a small GPT-2 that writes."""
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64, "initializer_range": 0.5}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.GPT2Config(vocab_size=len(SPECIAL) + len(WORDS), **size, **ends)
    return transformers.GPT2LMHeadModel(config).eval()


def t5() -> torch.nn.Module:
    """Return a small T5."""
    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0}
    ends = {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=len(SPECIAL) + len(WORDS), **size, **ends)
    return transformers.T5ForConditionalGeneration(config).eval()


def assert_equal_answers(found, expected, *, atol: float = 1e-5) -> None:
    """Hold answers against others: words exactly, numbers to 1e-5."""
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, (float, np.floating)):
            assert abs(ours - theirs) <= atol * max(1.0, abs(theirs)), (ours, theirs)
        elif isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=atol)
        else:
            assert ours == theirs
