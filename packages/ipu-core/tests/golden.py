# SPDX-License-Identifier: Apache-2.0
"""Golden files of models that transformers no longer has, of `tests/make_goldens.py`: loaded, run and compared."""

import json

import torch
import transformers
from ipu_core.upstream import CACHE
from safetensors import safe_open
from safetensors.torch import save_file

TOLERANCE = 1e-5


class Golden:
    """One file: `about` it, and its tensors by what they are."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.about = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping

    def part(self, prefix):
        return {
            key.removeprefix(f"{prefix}."): value for key, value in self.tensors.items() if key.startswith(f"{prefix}.")
        }

    def checkpoint(self, folder):
        """Write the checkpoint as the former release did."""
        (folder / "config.json").write_text(self.about["config"])
        save_file(self.part("weights"), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def model(self, folder, auto):
        """Load the checkpoint with an auto class: every tensor is used, and none is missing."""
        model, info = auto.from_pretrained(
            self.checkpoint(folder), output_loading_info=True, attn_implementation="eager"
        )
        assert type(model).__name__ == self.about["class"]
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        return model.eval()

    def assert_equal(self, model):
        """Assert that a model gives what the former release gave, and goes on from its cache as that did."""
        with torch.no_grad():
            outputs = model(**self.part("inputs"), **json.loads(self.about["calls"]))
        assert_close(outputs, self.part("outputs"))
        if following := self.part("next_inputs"):
            with torch.no_grad():
                after = model(**following, **{CACHE: outputs[CACHE]}, use_cache=True)
            assert_close(after, self.part("next_outputs"))


def assert_close(outputs, expected):
    """Compare every tensor that was kept, by its path; states of a cache have another form, and are compared by use."""
    for path, tensor in expected.items():
        if path.startswith("past_key_values"):
            continue
        found = outputs
        for step in path.split("."):
            found = found[int(step) if step.isdigit() else step]
        torch.testing.assert_close(
            found, tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda text, path=path: f"{path}: {text}"
        )


def auto_of(class_name):
    """Return the auto class that makes a class, by its name."""
    head = class_name.partition("For")[2]
    name = {"": "AutoModel", "ConditionalGeneration": "AutoModelForSeq2SeqLM"}.get(head, f"AutoModelFor{head}")
    return getattr(transformers, name)
