# SPDX-License-Identifier: Apache-2.0
"""What `nox -s package` blocks: all that the metadata of a package does not reach, and nothing else."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def isolated():
    spec = importlib.util.spec_from_file_location("isolated", ROOT / "tests" / "isolated.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_requirements_are_followed_and_extras_are_not(isolated):
    bert = isolated.requirements_of("ipu-models-bert")
    assert {"ipu-models-bert", "ipu-core", "torch", "transformers", "tokenizers", "optimum", "pluggy"} <= bert
    assert not {"ipu-trainer", "ipu-models-seq2seq", "datasets", "accelerate", "peft"} & bert
    assert {"datasets", "accelerate"} <= isolated.requirements_of("ipu-trainer")


def test_modules_of_other_packages_are_blocked(isolated):
    blocked = isolated.modules_beyond(isolated.requirements_of("ipu-core", *isolated.TOOLS))
    assert {"ipu_trainer", "ipu_models_bert", "datasets", "accelerate"} <= blocked
    assert not {"ipu_core", "torch", "transformers", "numpy", "pytest", "xdist", "json"} & blocked


def test_a_blocked_module_is_not_found(isolated):
    finder = isolated.Without(importlib.machinery.PathFinder, {"json"})
    assert finder.find_spec("json") is None
    assert finder.find_spec("json.decoder") is None
    assert finder.find_spec("csv") is not None
