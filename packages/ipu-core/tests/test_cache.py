# SPDX-License-Identifier: Apache-2.0
"""The executable cache: whole entries or none, and nothing that is damaged or somebody else's."""

import json
import os

import pytest
from ipu_core.compile.disk_cache import CHECKSUMS, NO_CACHE, ExecutableCache

LOGGER = "ipu_core.compile.disk_cache"


class Value:
    """Counts how often it is written."""

    def __init__(self, text="content"):
        self.text, self.written = text, 0

    def write(self, folder):
        self.written += 1
        (folder / "value.txt").write_text(self.text)

    def of(self, cache, key="key"):
        return cache.entry(key, load=lambda folder: (folder / "value.txt").read_text(), write=self.write)


@pytest.fixture
def cache(tmp_path):
    return ExecutableCache(tmp_path / "cache")


def test_an_entry_is_written_once(cache, tmp_path):
    value = Value()
    assert [value.of(cache), value.of(cache), value.of(ExecutableCache(tmp_path / "cache"))] == ["content"] * 3
    assert value.written == 1
    assert value.of(cache, "another") == "content"
    assert value.written == 2


def test_without_a_directory_nothing_is_kept():
    value = Value()
    assert [value.of(NO_CACHE), value.of(ExecutableCache(""))] == ["content"] * 2
    assert value.written == 2
    assert not NO_CACHE.is_on


def spoil_content(entry):
    (entry / "value.txt").write_text("other")


def spoil_by_cutting(entry):
    (entry / "value.txt").write_text("")


def spoil_by_removing(entry):
    (entry / "value.txt").unlink()


def spoil_by_adding(entry):
    (entry / "more.txt").write_text("x")


def spoil_checksums(entry):
    (entry / CHECKSUMS).write_text("{")


def spoil_by_losing_checksums(entry):
    (entry / CHECKSUMS).unlink()


def spoil_with_a_link(entry):
    other = entry.parent / "elsewhere.txt"
    other.write_text("content")
    (entry / "value.txt").unlink()
    (entry / "value.txt").symlink_to(other)


def spoil_by_opening(entry):
    (entry / "value.txt").chmod(0o666)


def spoil_by_opening_the_folder(entry):
    entry.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_content,
        spoil_by_cutting,
        spoil_by_removing,
        spoil_by_adding,
        spoil_checksums,
        spoil_by_losing_checksums,
        spoil_with_a_link,
        spoil_by_opening,
        spoil_by_opening_the_folder,
    ],
)
def test_a_damaged_or_open_entry_is_ignored_with_a_warning_and_made_anew(cache, tmp_path, caplog, spoil):
    value = Value()
    value.of(cache)
    spoil(tmp_path / "cache" / "key")
    assert value.of(cache) == "content"
    assert value.written == 2
    assert "the entry key of the executable cache is ignored, and made anew: " in caplog.text
    caplog.clear()
    assert value.of(cache) == "content"
    assert (value.written, caplog.text) == (2, "")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no users by number")
def test_an_entry_of_another_user_is_ignored(cache, monkeypatch, caplog):
    value = Value()
    value.of(cache)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert value.of(cache) == "content"
    assert value.written == 2
    assert f"belongs to user {os.geteuid()}, and this is user {os.geteuid() + 1}" in caplog.text


def test_a_directory_that_cannot_be_made_is_named_and_nothing_is_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = ExecutableCache(tmp_path / "file" / "cache")
    assert "cannot be written, nothing is kept" in caplog.text
    assert Value().of(cache) == "content"
    assert not cache.is_on


def test_a_directory_others_may_write_to_is_not_used(tmp_path, caplog):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert not ExecutableCache(tmp_path / "open").is_on
    assert "is not used: others may write to `open` (mode 777): `chmod go-w` it" in caplog.text


def test_an_interrupted_write_leaves_nothing(cache, tmp_path):
    def interrupted(folder):
        (folder / "value.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.entry("key", load=lambda folder: None, write=interrupted)
    assert list((tmp_path / "cache").iterdir()) == []
    assert Value().of(cache) == "content"


def test_two_processes_may_write_one_entry(cache, tmp_path):
    value = Value("mine")

    def write(folder):
        Value("theirs").of(ExecutableCache(tmp_path / "cache"))
        value.write(folder)

    found = cache.entry("key", load=lambda folder: (folder / "value.txt").read_text(), write=write)
    assert found == "mine"
    assert Value().of(cache) in ("mine", "theirs")
    written = json.loads((tmp_path / "cache" / "key" / CHECKSUMS).read_text())
    assert (written["key"], set(written["files"])) == ("key", {"value.txt"})


def test_an_entry_under_another_key_is_made_anew(cache, tmp_path):
    Value("one").of(cache)
    root = tmp_path / "cache"
    (root / "key").rename(root / "other")
    found = cache.entry("other", load=lambda f: (f / "value.txt").read_text(), write=Value("two").write)
    assert found == "two"
    found = cache.entry("other", load=lambda f: (f / "value.txt").read_text(), write=Value("three").write)
    assert found == "two"  # and is whole from then on


@pytest.mark.parametrize("kind", ["dangling", "file", "deep", "unloadable"])
def test_whatever_lies_in_the_place_of_an_entry_is_replaced(kind, cache, tmp_path, caplog):
    root = tmp_path / "cache"
    if kind == "dangling":
        (root / "key").symlink_to(root / "nowhere")
    elif kind == "file":
        (root / "key").write_text("x")
    else:
        Value("spoilt").of(cache)
    if kind == "deep":
        (root / "key" / CHECKSUMS).write_text("[" * 100_000)

    def load(folder):
        text = (folder / "value.txt").read_text()
        if text == "spoilt":
            raise KeyError(text)
        return text

    for _ in range(2):
        assert cache.entry("key", load=load, write=Value("whole").write) == "whole"
    assert caplog.text.count("is ignored, and made anew") == 1


def test_a_cache_that_fills_up_does_not_stop_a_run(cache, tmp_path, caplog):
    def write(folder):
        if folder.is_relative_to(tmp_path):
            raise OSError(28, "No space left on device")
        (folder / "value.txt").write_text("content")

    for _ in range(2):
        assert cache.entry("key", load=lambda folder: (folder / "value.txt").read_text(), write=write) == "content"
    assert caplog.text.count("cannot be written any more, nothing is kept") == 1
    assert list((tmp_path / "cache").iterdir()) == []
    assert Value().of(ExecutableCache(tmp_path / "cache")) == "content"
