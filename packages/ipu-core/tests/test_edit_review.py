# SPDX-License-Identifier: Apache-2.0
"""`ipu edits`: each outcome, and its exit status; a change planted in a copy of an upstream file is caught."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from ipu_core import Family, PipelineMixin, cli
from ipu_core.plugins.manager import Plugin
from ipu_core.plugins.registry import Registry
from ipu_core.rewrites.edit_review import review
from ipu_core.rewrites.source_edits import Edit, digest_of
from transformers import GPT2LMHeadModel

MLP = "transformers.models.gpt2.modeling_gpt2:GPT2MLP.forward"
TINY = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 19, "n_positions": 32, "use_cache": False}
VALUES = {"target": MLP, "reason": "for a test", "versions": ">=5.23,<6"}


class PipelinedGPT2(PipelineMixin, GPT2LMHeadModel):
    """GPT-2 as a language model."""


RUNS = Edit(changes=(("self.act(hidden_states)", "self.act(1 * hidden_states)"),), digest=digest_of(MLP), **VALUES)
IN_TRAINING = Edit(
    changes=(("hidden_states = self.act(hidden_states)", "if self.training:\n    hidden_states = 1 * hidden_states"),),
    digest=digest_of(MLP),
    **VALUES,
)
DEAD = Edit(
    changes=(
        (
            "hidden_states = self.c_fc(hidden_states)",
            "if self.dropout is None:\n    hidden_states = None\nelse:\n    pass",
        ),
        ("hidden_states = None", "hidden_states = 1"),
    ),
    digest=digest_of(MLP),
    **VALUES,
)
DRIFTED = Edit(changes=(("hidden_states = self.gone(hidden_states)", ""),), digest=digest_of(MLP), **VALUES)
BROKEN_PROBE = Edit(changes=RUNS.changes, digest=RUNS.digest, probe={"n_embd": 7}, **VALUES)
CHANGED = Edit(changes=(("self.c_fc(hidden_states)", "self.c_fc(hidden_states) * 1"),), digest="0" * 16, **VALUES)


def plugin(*names: str) -> Plugin:
    family = Family(
        model_type="gpt2",
        layout=("h.*",),
        models={"GPT2LMHeadModel": f"{__name__}:PipelinedGPT2"},
        tiny=TINY,
        edits=tuple(f"{__name__}:{name}" for name in names),
    )
    return Plugin(name="mine", version="1", state="ok", families=(family,))


@pytest.mark.parametrize(
    ("name", "outcome", "note"),
    [
        ("RUNS", "applies", ""),
        ("IN_TRAINING", "applies", ""),
        ("CHANGED", "body changed", "written for >=5.23,<6, and this is transformers 5."),
        ("DRIFTED", "drifted", "wants 1 of the source"),
        ("DEAD", "never executed", ""),
        ("BROKEN_PROBE", "never executed", "PipelinedGPT2 raised ValueError"),
    ],
)
def test_an_edit_has_one_of_four_outcomes(name, outcome, note):
    (found,) = review([plugin(name)])
    assert (found.outcome, found.plugin) == (outcome, "mine")
    assert note in found.note
    assert found.is_good is (outcome in ("applies", "body changed"))


def test_an_edit_that_two_families_name_is_one_row():
    assert len(list(review([plugin("RUNS", "RUNS")]))) == 1


@pytest.fixture
def installed(monkeypatch):
    """Have `ipu` see one plugin with the edits of these names."""

    def install(*names):
        monkeypatch.setattr("ipu_core.commands.edits.installed", lambda: Registry((plugin(*names),)))

    return install


def test_the_command_lists_function_outcome_reason_and_package_and_fails_on_drift(installed, capsys):
    installed("RUNS", "CHANGED")
    assert cli.main(["edits"]) == 0
    printed = capsys.readouterr().out
    for part in ("applies", "body changed", MLP, "for a test", "mine"):
        assert part in printed
    installed("RUNS", "DRIFTED")
    assert cli.main(["edits", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in rows] == ["applies", "drifted"]
    assert rows[0].keys() == {"function", "outcome", "reason", "package", "versions", "note"}
    installed("DEAD")
    assert cli.main(["edits"]) == 1
    installed()
    assert cli.main(["edits"]) == 0


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Put a copy of upstream's file, with a change, in its place."""

    def plant(before, after):
        module = sys.modules["transformers.models.gpt2.modeling_gpt2"]
        text = Path(module.__file__).read_text()
        assert before in text
        (tmp_path / "modeling_gpt2.py").write_text(text.replace(before, after))
        spec = importlib.util.spec_from_file_location(module.__name__, tmp_path / "modeling_gpt2.py")
        planted = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module.__name__, planted)
        spec.loader.exec_module(planted)

    return plant


def test_a_change_planted_in_a_copied_upstream_file_is_caught(copied, installed, capsys):
    installed("RUNS")
    assert cli.main(["edits"]) == 0
    copied("hidden_states = self.act(hidden_states)", "hidden_states = self.act(hidden_states).clone()")
    # It still matches; the class that runs is the one that was there before, so that nothing can run it.
    assert cli.main(["edits"]) == 1
    copied("self.act(hidden_states)", "self.act(input=hidden_states)")
    assert cli.main(["edits"]) == 1
    printed = capsys.readouterr().out
    assert "drifted" in printed
    assert f"`{MLP}` wants 1 of the source" in printed
    assert "has 0" in printed


def test_doctor_names_the_families_an_upstream_change_puts_out_of_use(monkeypatch, capsys):
    monkeypatch.setattr("ipu_core.commands.doctor.installed", lambda: Registry((plugin("RUNS", "DRIFTED", "CHANGED"),)))
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "source edits  1 of 3 apply (`ipu edits` says more)" in printed
    assert "gpt2: a model with it is refused: GPT2MLP.forward drifted, GPT2MLP.forward body changed" in printed
    monkeypatch.setattr("ipu_core.commands.doctor.installed", lambda: Registry((plugin("RUNS", "CHANGED"),)))
    assert cli.main(["doctor"]) == 0
    assert "gpt2: works, and may differ from the plain model: GPT2MLP.forward body changed" in capsys.readouterr().out
