# SPDX-License-Identifier: Apache-2.0
"""The catalogue: its configurations, how it compares, and one type from end to end."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core.plugins.registry import installed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def catalogue():
    spec = importlib.util.spec_from_file_location("catalogue_run", ROOT / "catalogue" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_every_type_is_one_the_auto_classes_know_and_every_tiny_option_is_read(catalogue):
    installed()
    assert len(catalogue.TINY) == 86
    for name, options in catalogue.TINY.items():
        config = transformers.AutoConfig.for_model(name, **options)
        assert all(hasattr(config, option) for option in options), name
    for name in ("phi", "gpt_neox", "persimmon", "biogpt", "xglm"):
        assert name in catalogue.TINY


def test_differences_are_shares_of_the_largest_value(catalogue):
    ones = torch.ones(2, 2)
    assert catalogue.difference([ones, None], [ones, None]) == 0.0
    assert catalogue.difference([ones, ones * 4], [ones, ones * 5]) == pytest.approx(0.2)
    assert catalogue.difference([ones * math.nan], [ones * math.nan]) == 0.0
    with pytest.raises(AssertionError, match="no number where the plain model has one"):
        catalogue.difference([ones * math.nan], [ones])
    assert catalogue.difference([ones * 0], [None]) == 0.0
    with pytest.raises(AssertionError, match="and the plain model has None"):
        catalogue.difference([ones], [None])
    with pytest.raises(AssertionError, match="None, and the plain model has"):
        catalogue.difference([None], [ones])
    with pytest.raises(AssertionError, match=r"shape \[2\], and the plain model has \[2, 2\]"):
        catalogue.difference([ones[0]], [ones])


def test_a_type_is_examined_with_its_head(catalogue):
    rows = catalogue.examine("distilbert")
    assert [row.model for row in rows] == ["DistilBertModel", "DistilBertForMaskedLM"]
    for row in rows:
        assert row.layers == 4
        assert not row.failures
        assert set(row.differences) == {(kind, n) for kind in ("inference", "training") for n in (1, 2, 4)}
        assert str(row).count("ok") == 6


def test_a_head_that_generates_gives_the_plain_models_tokens(catalogue):
    base, head = catalogue.examine("gpt2")
    assert ("generation", 2) not in base.differences
    assert 0 <= head.differences["generation", 2] < 1e-6
    assert str(head).count("ok") == 7


def test_other_tokens_are_a_failure(catalogue, monkeypatch):
    monkeypatch.setattr(catalogue.torch, "equal", lambda *_: False)
    rows = catalogue.examine("gpt2")
    (failure,) = rows[1].failures
    assert failure.startswith("gpt2 (GPT2LMHeadModel), generation on 2 IPUs: AssertionError: greedy search gives [[")


def test_a_failure_names_the_type_and_what_went_wrong(catalogue, monkeypatch):
    monkeypatch.setattr(catalogue, "TINY", {"bert": {"hidden_size": 32, "num_attention_heads": 5}})
    (row,) = catalogue.examine("bert")
    (failure,) = row.failures
    assert failure.startswith("bert (), making it on 1 IPUs: ValueError: The hidden size (32)")


def test_a_type_nobody_knows_is_an_error_with_the_nearest_names(catalogue, capsys):
    assert catalogue.main(["lama"]) == 2
    assert "no model type `lama` in the catalogue: is it ['llama'" in capsys.readouterr().err
