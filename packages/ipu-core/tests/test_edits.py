# SPDX-License-Identifier: Apache-2.0
"""Checked source edits: they match by syntax and exactly, bind to one model, and go without a trace."""

from __future__ import annotations

import copy
import importlib
import inspect
import linecache
import logging
import pickle
import sys
import traceback

import pytest
import torch
from ipu_core.errors import EditError
from ipu_core.rewrites.source_edits import Edit, digest_of, edited, edited_source, edits_of

UPSTREAM = '''
import functools
import torch

LIMIT = 0.5

def counted(function):
    calls.append(function.__name__)

    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs), len(calls)

    return wrapper

def held_elsewhere(function):
    class Holder:
        pass
    Holder.function = staticmethod(function)

    @functools.wraps(function)
    def wrapper(self, *args):
        return Holder.function(self, *args)

    return wrapper

calls = []

class Base(torch.nn.Module):
    def scaled(self, x):
        return 2 * x

class Block(Base):
    __secret = 3

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    @counted
    def forward(self, x, *, shift=0.0):
        """Say nothing."""
        # a comment
        if x.sum().item() > LIMIT:
            x = x + 1
        else:
            x = x - 1
        x = self.linear(x) * self.__secret
        return self.scaled(x) + shift

    def scaled(self, x):
        y = super().scaled(x)
        y = y + 1
        return y

    @held_elsewhere
    def lost(self, x):
        return x + 1

    @property
    def width(self):
        return 2

class Child(Block):
    pass

class Other(Block):
    def forward(self, x, *, shift=0.0):
        return super().forward(x, shift=shift)
'''


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """A module like one of upstream's, imported from a file."""
    (tmp_path / "upstream_copy.py").write_text(UPSTREAM)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("upstream_copy")
    del sys.modules["upstream_copy"]
    linecache.checkcache()


BRANCH = """
if x.sum().item()  >  LIMIT :
    x = x + 1
else:
    x = (x - 1)
"""


def edit(*changes, method="Block.forward", digest=None, **values):
    target = f"upstream_copy:{method}"
    return Edit(
        target=target,
        changes=changes,
        digest=digest or digest_of(target),
        reason="it looks at values",
        versions=">=1,<2",
        **values,
    )


def test_statements_match_whatever_their_layout_and_quotes(upstream):
    model, x = upstream.Block(), torch.ones(1, 2)
    expected, _ = model(x)
    with edited(model, [edit((BRANCH, "x = torch.where(x.sum() > LIMIT, x + 1, x - 1)"))]):
        torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=0)
        assert "torch.where" in inspect.getsource(model.forward.__wrapped__)
    assert "forward" not in vars(model)


def test_an_expression_matches_anywhere_and_its_count_is_exact(upstream):
    model, x = upstream.Block(), torch.ones(1, 2)
    with edited(model, [edit(("x.sum().item() > LIMIT", "False"))]):
        lower, _ = model(x)
    assert not torch.equal(lower, model(x)[0])
    with pytest.raises(EditError, match=r"wants 1 of the source\n    self\nand `upstream_copy`.* has 3"):
        edited_source([edit(("self", "model"))])
    edited_source([edit(("self", "self", 3))])
    with pytest.raises(EditError, match="wants 4 of the source"):
        edited_source([edit(("self", "self", 4))])


def test_the_variant_for_the_installed_body_is_made(upstream, caplog):
    model, x = upstream.Block(), torch.ones(1, 2)
    other = edit(("y = y + 7", "y = y + 9"), method="Block.scaled", digest="0" * 16)
    both = other.or_for(">=2", digest=digest_of(other.target), changes=(("y = y + 1", "y = y + 2"),))
    expected = model.scaled(x) + 1
    with edited(model, [both]):
        torch.testing.assert_close(model.scaled(x), expected, rtol=0, atol=0)
    assert not caplog.records
    assert both.fitting().versions == ">=2"
    with pytest.raises(EditError, match=r"y = y \+ 7\n.*it was written for >=1,<2"):
        edited_source([other.or_for(">=2", digest="1" * 16)])


def test_a_drifted_edit_names_function_source_count_and_version_before_anything_changes(upstream):
    model = upstream.Block()
    good = edit(("y = y + 1", "y = y + 2"), method="Block.scaled")
    with pytest.raises(EditError) as raised, edited(model, [good, edit(("x = x + 7", "pass"))]):
        raise AssertionError("entered")
    for part in ("upstream_copy:Block.forward", "x = x + 7", "wants 1", "has 0", ">=1,<2", "looks at values"):
        assert part in str(raised.value)
    assert not {"forward", "scaled"} & set(vars(model))


def test_a_match_in_two_branches_is_refused(upstream):
    the_same_in_both = ("x = x - 1", "x = x + 1")
    with pytest.raises(EditError, match=r"(?s)wants 1 of the source.*x = x \+ 1.*has 2"):
        edited_source([edit(the_same_in_both, ("x = x + 1", "x = x + 2"))])
    assert edited_source([edit(the_same_in_both, ("x = x + 1", "x = x + 2", 2))]).text.count("x + 2") == 2


def test_changes_see_what_those_before_them_made_and_edits_of_one_method_add_up(upstream):
    first = edit(("x = x + 1", "x = x + 10"), ("x + 10", "x + 20"))
    second = edit(("x + 20", "x + 30"), ("x = x - 1", ""))
    text = edited_source([first, second]).text
    assert "x + 30" in text
    assert "x - 1" not in text
    assert "pass" in text


def test_super_private_names_defaults_and_module_globals_keep_their_meaning(upstream):
    model, x = upstream.Block(), torch.ones(1, 2)
    expected, _ = model(x, shift=2.0)
    neutral = [edit(("x = x + 1", "x = 1 + x")), edit(("y = y + 1", "y = 1 + y"), method="Block.scaled")]
    with edited(model, neutral):
        torch.testing.assert_close(model(x, shift=2.0)[0], expected, rtol=0, atol=0)
        torch.testing.assert_close(model(x)[0], expected - 2, rtol=0, atol=1e-6)
    with edited(model, [edit(("y = y + 1", "y = super().scaled(y)"), method="Block.scaled")]):
        assert model(x)[0].shape == (1, 2)
    with edited(model, [edit(("return 2 * x", "return 2 * super().forward"), method="Base.scaled")]):
        pass  # a method that had no `super()` may gain one


def test_decorators_stay_and_do_not_run_again(upstream):
    model, x = upstream.Block(), torch.ones(1, 2)
    decorated = list(upstream.calls)
    with edited(model, [edit(("x = x + 1", "x = x + 2"))]):
        _, calls = model(x)
        assert calls == len(decorated) == len(upstream.calls)
        assert model.forward.__doc__ == "Say nothing."
        assert inspect.signature(model.forward) == inspect.signature(upstream.Block().forward)
    with pytest.raises(EditError, match="a decorator of `upstream_copy:Block.lost`, `held_elsewhere"):
        edited(model, [edit(("x + 1", "x + 2"), method="Block.lost")]).__enter__()


def test_classes_that_inherit_the_method_are_meant_and_those_that_override_it_are_not(upstream):
    model = torch.nn.ModuleList([upstream.Block(), upstream.Child(), upstream.Other(), torch.nn.Linear(1, 1)])
    with edited(model, [edit(("x = x + 1", "x = x + 2"))]):
        assert ["forward" in vars(module) for module in model] == [True, True, False, False]
    assert not any("forward" in vars(module) for module in model)
    with edited(torch.nn.Linear(1, 1), [edit(("x = x + 1", "x = x + 2"))]):
        pass  # an edit of another class is left out


def test_another_model_of_the_class_its_module_and_pickles_stay_as_they_were(upstream):
    model, other, x = upstream.Block(), upstream.Block(), torch.ones(1, 2)
    before, names = other(x)[0], dict(vars(upstream))
    with edited(model, [edit(("x = x + 1", "import math\nx = x + math.pi"))]):
        assert type(model) is type(other) is upstream.Block
        torch.testing.assert_close(other(x)[0], before, rtol=0, atol=0)
        assert copy.deepcopy(other)(x)[0].equal(before)
        assert type(pickle.loads(pickle.dumps(other))) is upstream.Block
        assert upstream.Block()(x)[0].shape == (1, 2)
        assert vars(upstream) == names
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)


def test_two_models_may_share_an_edited_module_and_leave_in_any_order(upstream):
    shared = upstream.Block()
    first, second = edited(shared, [edit(("x + 1", "x + 2"))]), edited(shared, [edit(("x + 1", "x + 3"))])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert "x + 3" in inspect.getsource(shared.forward.__wrapped__)
    second.__exit__(None, None, None)
    assert "forward" not in vars(shared)


def test_a_module_with_a_forward_of_its_own_is_refused(upstream):
    model = upstream.Block()
    model.forward = lambda x: x
    with pytest.raises(EditError, match="a Block has a `forward` of its own"), edited(model, [edit(("x + 1", "x"))]):
        pass
    assert "forward" in vars(model)


def test_a_changed_body_that_still_matches_is_made_and_warned_of(upstream, caplog):
    model = upstream.Block()
    caplog.set_level(logging.WARNING)
    with edited(model, [edit(("x = x + 1", "x = x + 2"), digest="0" * 16)]):
        assert model(torch.ones(1, 2))[0].shape == (1, 2)
    assert "has changed in `upstream_copy`" in caplog.text
    assert "looks at values" in caplog.text


def test_the_digest_leaves_docstring_decorators_and_layout_out_and_sees_the_body(upstream, tmp_path):
    source, digest = UPSTREAM, digest_of("upstream_copy:Block.forward")
    same = (
        source.replace("    @counted\n", "")
        .replace('"""Say nothing."""', '"""Say more."""')
        .replace("# a com", "# A com")
    )
    other = source.replace("x = x + 1", "x = x + 2")
    for name, text in (("same_copy", same), ("other_copy", other)):
        (tmp_path / f"{name}.py").write_text(text)
    assert digest_of("same_copy:Block.forward") == digest
    assert digest_of("other_copy:Block.forward") != digest


def test_tracebacks_show_the_edited_source(upstream):
    model = upstream.Block()
    with edited(model, [edit(("x = x + 1", "raise ValueError('here')"))]):
        try:
            model(torch.ones(1, 2))
        except ValueError as error:
            shown = "".join(traceback.format_exception(error))
    assert "raise ValueError('here')" in shown
    assert "<edited upstream_copy:Block.forward" in shown


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Block.nothing", "there is no method"),
        ("Nothing.forward", "there is no method"),
        ("Block.width", "only methods of module classes"),
        ("counted", "there is no method"),
    ],
)
def test_what_is_no_method_of_a_module_is_refused_by_name(upstream, method, message):
    wanted = edit(("x", "y"), method=method, digest="0")
    with pytest.raises(EditError, match=message), edited(upstream.Block(), [wanted]):
        pass


def test_source_that_is_incomplete_or_empty_is_refused(upstream):
    with pytest.raises(EditError, match="no complete Python"):
        edited_source([edit(("if x:", "pass"))])
    with pytest.raises(EditError, match="names no source"):
        edited_source([edit(("", "pass"))])


ONE = TWO = None


def test_a_family_names_an_edit_or_a_tuple_of_them(upstream, monkeypatch):
    one = edit(("x + 1", "x"))
    monkeypatch.setitem(globals(), "ONE", one)
    monkeypatch.setitem(globals(), "TWO", (one, one))
    assert edits_of([f"{__name__}:ONE", f"{__name__}:TWO"]) == (one, one, one)
    monkeypatch.setitem(globals(), "ONE", "text")
    with pytest.raises(TypeError, match="holds a str"):
        edits_of([f"{__name__}:ONE"])


def test_the_lines_that_must_run_are_those_of_simple_statements_that_do_not_raise(upstream):
    with_branches = "if self.training:\n    x = x * 2\nelif x is None:\n    raise ValueError\nx = x + 0"
    source = edited_source([edit((BRANCH, with_branches), ("shift", "shift * 1"))])
    text = source.text.splitlines()
    assert [text[number - 1].strip() for number in sorted(source.lines[0])] == [
        "x = x * 2",
        "x = x + 0",
        "return self.scaled(x) + shift * 1",
    ]
