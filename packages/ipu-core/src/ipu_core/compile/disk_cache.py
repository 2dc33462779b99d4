# SPDX-License-Identifier: Apache-2.0
"""`ExecutableCache`: captured graphs and compiled code in a directory, for the next process.

An entry is a folder under its key, written beside its place and moved there whole, with the SHA-256 of its files.
What is damaged, or belongs to somebody else, is ignored with a warning. Compiled code is native code: whoever may write
to the directory may run code as whoever reads it, so a directory that others may write to is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
CHECKSUMS = "sha256.json"


class ExecutableCache:
    """Entries by key in a directory, made when it is missing; without a directory, nothing is kept.

    ::

        cache = ExecutableCache("~/.cache/ipu")
        code = cache.entry(key, load=Executable, write=lambda folder: write_executable(..., folder))

    A directory that cannot be used does not stop a run: the cache says so in a warning, and keeps nothing.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._root = _usable(Path(directory).expanduser()) if directory else None

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._root is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is no entry yet."""
        return self._root is None or not any(self._root.iterdir())

    def has(self, key: str) -> bool:
        """Return whether there is an entry; it may turn out to be damaged."""
        return self._root is not None and (self._root / key).exists()

    def entry(self, key: str, *, load: Callable[[Path], T], write: Callable[[Path], None]) -> T:
        """Load the entry `key`, after writing it where it is not there yet.

        Args:
            key: letters and digits.
            load: gives the value of a folder; nothing of it is read later.
            write: fills an empty folder.

        Raises:
            OSError: there is no directory, or no room in it any more, and none for temporary files either.
        """
        if self._root is None:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
                return load(Path(scratch))
        folder = self._root / key
        if os.path.lexists(folder):
            problem = _problem(folder)
            if problem is None:
                try:
                    return load(folder)
                except Exception as error:  # whatever a file that somebody changed makes of it
                    problem = f"it cannot be loaded: {type(error).__name__}: {error}"
            logger.warning("the entry %s of the executable cache is ignored, and made anew: %s", key, problem)
        try:
            with self._new(folder) as new:
                write(new)
                return load(new)
        except OSError as error:
            logger.warning(
                "the executable cache `%s` cannot be written any more, nothing is kept: %s", self._root, error
            )
            self._root = None
            return self.entry(key, load=load, write=write)

    @contextlib.contextmanager
    def _new(self, folder: Path) -> Iterator[Path]:
        """Return an empty folder; move it to its place afterwards."""
        assert self._root is not None
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._root) as scratch:
            new = Path(scratch) / "entry"
            new.mkdir(mode=0o700)
            yield new
            files = {f.name: _digest(f) for f in sorted(new.iterdir())}
            (new / CHECKSUMS).write_text(json.dumps({"key": folder.name, "files": files}))
            try:
                if folder.is_symlink():
                    folder.unlink()
                elif folder.exists():
                    folder.rename(Path(scratch) / "old")
                new.rename(folder)
            except OSError as error:
                # Another process may have put the same entry there meanwhile.
                if not folder.exists():
                    logger.warning("the entry %s could not be kept in the executable cache: %s", folder.name, error)


NO_CACHE = ExecutableCache(None)


def _usable(root: Path) -> Path | None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".try-", dir=root):
            pass
    except OSError as error:
        logger.warning("`executable_cache_dir=%s` cannot be written, nothing is kept: %s", root, error)
        return None
    problem = _trust_problem(root)
    if problem is not None:
        logger.warning("`executable_cache_dir=%s` is not used: %s", root, problem)
        return None
    return root


def _problem(folder: Path) -> str | None:
    """Return why an entry cannot be used; None when it can."""
    try:
        if (problem := _trust_problem(folder)) is not None:
            return problem
        written = json.loads((folder / CHECKSUMS).read_text())
        files = {file for file in folder.iterdir() if file.name != CHECKSUMS}
        for path in (folder / CHECKSUMS, *files):
            if (problem := _trust_problem(path)) is not None:
                return problem
        found = {file.name: _digest(file) for file in files}
    except (OSError, ValueError, RecursionError) as error:
        return f"it cannot be read: {error}"
    if not isinstance(written, dict) or written.get("files") != found:
        return "its files are not those that were written"
    if written.get("key") != folder.name:
        return f"it was written as `{written.get('key')}`"
    return None


def _trust_problem(path: Path) -> str | None:
    """Return why a path may be somebody else's; None when it is ours alone."""
    status = path.lstat()
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return f"`{path.name}` belongs to user {status.st_uid}, and this is user {os.getuid()}"
    if stat.S_ISLNK(status.st_mode):
        return f"`{path.name}` is a link"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to `{path.name}` (mode {stat.S_IMODE(status.st_mode):o}): `chmod go-w` it"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
