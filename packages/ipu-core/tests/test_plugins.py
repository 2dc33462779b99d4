# SPDX-License-Identifier: Apache-2.0
"""Plugins: found, isolated, allowed and denied, in conflict or not."""

import json
import sys
from importlib.metadata import Distribution, EntryPoint, version
from pathlib import Path

import pytest
from ipu_core import Family
from ipu_core.cli import main
from ipu_core.errors import BrokenPluginError, PluginConflictError
from ipu_core.plugins import registry
from ipu_core.plugins.manager import Plugin, Selection, load_plugins
from ipu_core.plugins.registry import Registry, describe

GOOD = """
from ipu_core import Family, hookimpl

@hookimpl
def ipu_model_families():
    return (Family(model_type="{name}", layout=("layers.*",), models={{"{cls}": "m:P"}}, overrides={overrides}),)
"""


class Installed(Distribution):
    """A distribution that exists only as a value."""

    def __init__(self, requires: str) -> None:
        self._requires = requires

    def read_text(self, filename):
        return f"Metadata-Version: 2.1\nName: third-party\nVersion: 1.5\nRequires-Dist: {self._requires}\n"

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Make an entry point for a module with the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str = "", *, cls: str = "Model", overrides: tuple = (), requires: str = "ipu-core"):
        module = f"plugin_{name}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{module}.py").write_text(source or GOOD.format(name=name, cls=cls, overrides=overrides))
        monkeypatch.delitem(sys.modules, module, raising=False)
        point = EntryPoint(name, module, "ipu_core.plugins")
        vars(point).update(dist=Installed(requires))
        return point

    return make


def states(plugins):
    return {plugin.name: plugin.state for plugin in plugins}


def test_a_broken_plugin_is_reported_and_the_others_work(plugin, caplog):
    plugins = load_plugins([plugin("bad", "raise RuntimeError('no such library')"), plugin("good")], environ={})
    assert states(plugins) == {"bad": "broken", "good": "ok"}
    assert plugins[0].reason == "RuntimeError('no such library')"
    assert "raise RuntimeError('no such library')" in plugins[0].traceback
    assert "plugin `bad` 1.5 raised RuntimeError('no such library') and is left out" in caplog.text
    assert [family.model_type for family in plugins[1].families] == ["good"]


@pytest.mark.parametrize(
    "source",
    [
        "from ipu_core import hookimpl\n@hookimpl\ndef ipu_model_families(): return ('bert',)",
        "from ipu_core import hookimpl\n@hookimpl\ndef ipu_model_families(registry): return ()",
        "from ipu_core import hookimpl\n@hookimpl\ndef ipu_model_family(): return ()",
        "def f(:",
    ],
    ids=["returns no family", "unknown argument", "unknown hook", "syntax error"],
)
def test_a_plugin_that_breaks_the_contract_is_broken(plugin, source):
    assert states(load_plugins([plugin("bad", source)], environ={})) == {"bad": "broken"}


def test_strict_plugins_raise(plugin):
    with pytest.raises(BrokenPluginError, match=r"plugin `bad` 1.5 raised RuntimeError\('x'\): mend or remove it"):
        load_plugins([plugin("bad", "raise RuntimeError('x')")], environ={"IPU_STRICT_PLUGINS": "1"})
    assert states(load_plugins([plugin("bad", "raise RuntimeError('x')")], environ={"IPU_STRICT_PLUGINS": "0"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"a": "ok", "b": "ok", "c": "ok"}),
        ("a,c", {"a": "ok", "b": "disabled", "c": "ok"}),
        ("-a", {"a": "disabled", "b": "ok", "c": "ok"}),
        ("a,b,-b", {"a": "ok", "b": "disabled", "c": "disabled"}),
    ],
)
def test_plugins_are_allowed_and_denied_by_name(plugin, text, expected):
    points = [plugin(name, cls=f"{name}Model") for name in "abc"]
    assert states(load_plugins(points, environ={"IPU_PLUGINS": text})) == expected


def test_a_name_that_is_not_installed_is_said(plugin, caplog):
    load_plugins([plugin("a")], environ={"IPU_PLUGINS": "x"})
    assert "IPU_PLUGINS names `x`, and the installed plugins are ['a']" in caplog.text


def test_a_disabled_or_incompatible_plugin_is_not_imported(plugin):
    explodes = "raise SystemExit"
    points = [plugin("old", explodes, requires="ipu-core>=99"), plugin("off", explodes)]
    plugins = load_plugins(points, environ={"IPU_PLUGINS": "-off"})
    assert states(plugins) == {"off": "disabled", "old": "incompatible"}
    core = f"ipu-core {version('ipu-core')}"
    advice = "install a version of third-party for it, or ipu-core>=99"
    assert plugins[1].reason == f"needs ipu-core>=99, and {core} is installed: {advice}"


def registry_of(*plugins) -> Registry:
    return Registry(tuple(Plugin(name=name, version="1", state="ok", families=(family,)) for name, family in plugins))


def family(overrides: tuple[str, ...] = (), layout: tuple[str, ...] = ("layers.*",)) -> Family:
    return Family(model_type="t", layout=layout, models={"TModel": "m:P"}, overrides=overrides)


def test_two_plugins_that_claim_one_class_conflict_and_both_are_named():
    contested = registry_of(("one", family()), ("two", family()))
    assert contested.conflicts() == {"TModel": ("one", "two")}
    message = "`TModel` is claimed by 2 plugins, `one` and `two`: uninstall one, choose with IPU_PLUGINS=-two"
    with pytest.raises(PluginConflictError, match=message):
        contested.claim("TModel")


def test_two_layouts_of_one_family_conflict():
    with pytest.raises(PluginConflictError, match="the layout of t is claimed by 2 plugins"):
        registry_of(("one", family()), ("two", family(layout=("h.*",)))).family("t")


def test_a_plugin_that_declares_it_overrides_another_wins():
    settled = registry_of(("one", family()), ("two", family(overrides=("one",), layout=("h.*",))))
    assert settled.conflicts() == {}
    assert settled.claim("TModel").plugin == "two"
    assert settled.family("t").layout == ("h.*",)


def test_an_unknown_class_has_no_claim():
    assert registry_of(("one", family())).claim("Other") is None
    assert registry_of(("one", family())).family("other") is None


def test_the_selection_reads_spaces():
    assert Selection.parse(" a , -b ") == Selection(allowed=frozenset("a"), denied=frozenset("b"))


def test_the_table_says_what_each_plugin_declares():
    plugins = (
        Plugin(name="t", version="1.0", state="ok", families=(family(),)),
        Plugin(name="empty", version="1.0", state="ok"),
        Plugin(name="bad", version="2.0", state="broken", reason="ImportError('x')"),
    )
    assert describe(plugins) == (
        "t            1.0        ok\n"
        "  t\n"
        "    TModel  m:P\n"
        "empty        1.0        ok  declares nothing yet\n"
        "bad          2.0        broken  ImportError('x')"
    )
    assert "no plugin is installed" in describe(())


def test_the_command_lists_conflicts_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        "ipu_core.commands.plugins.installed", lambda: registry_of(("one", family()), ("two", family()))
    )
    assert main(["plugins"]) == 1
    assert "conflict: TModel is claimed by one and two" in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["conflicts"] == {"TModel": ["one", "two"]}


def test_the_command_succeeds_when_all_is_well(monkeypatch, capsys):
    monkeypatch.setattr("ipu_core.commands.plugins.installed", lambda: registry_of(("one", family())))
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == "plugin  version  state  declares\none     1        ok     1 classes of t\n"
    assert main(["plugins", "--classes"]) == 0
    assert registry.describe(registry_of(("one", family())).plugins) in capsys.readouterr().out


def test_the_command_shows_where_a_broken_plugin_raised(monkeypatch, capsys, plugin):
    broken = Registry(load_plugins([plugin("bad", "raise RuntimeError('x')")], environ={}))
    monkeypatch.setattr("ipu_core.commands.plugins.installed", lambda: broken)
    assert main(["plugins", "--traceback"]) == 1
    assert "raise RuntimeError('x')" in capsys.readouterr().out
