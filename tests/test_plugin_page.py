# SPDX-License-Identifier: Apache-2.0
"""The page for plugin authors: its reference is the docstring of `Family`, its layouts are those declared."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

from ipu_core import Family
from ipu_models_bert.families.bert import BERT
from ipu_models_seq2seq.families.llama import LLAMA
from ipu_models_seq2seq.families.t5 import T5

PAGE = (Path(__file__).parent.parent / "docs/writing-a-plugin.md").read_text(encoding="utf-8")


def fields() -> dict[str, str]:
    """Return what the docstring says of each field, as one line."""
    attributes = inspect.cleandoc(Family.__doc__).split("Attributes:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def table() -> str:
    """Return the rows of the page's reference."""
    return "\n".join(
        f"| `{name}` | {text.replace('``', '`').replace('|', '&#124;')} |" for name, text in fields().items()
    )


def test_the_reference_has_every_field_as_its_docstring_says():
    assert list(fields()) == [field.name for field in dataclasses.fields(Family)]
    reference = PAGE.split("docstring of `Family` -->\n")[1].split("\n<!-- end of fields -->")[0]
    assert reference.split("\n", 2)[2] == table()


def test_the_layouts_it_shows_are_those_that_are_declared():
    shown = dict(re.findall(r"^\| (\w+) \| `(\(.*\))` \|$", PAGE, re.MULTILINE))
    declared = {"BERT": BERT, "Llama": LLAMA, "T5": T5}
    assert {name: ast.literal_eval(layout) for name, layout in shown.items()} == {
        n: f.layout for n, f in declared.items()
    }
