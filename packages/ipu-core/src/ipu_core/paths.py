# SPDX-License-Identifier: Apache-2.0
"""Files and folders that users name: what is meant as a path and is not there, or is broken, is refused by name.

A hub is never asked for something that looks like a path: its answer would be about a network.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

# So near to a name that it may be meant.
_MISSPELT = 0.7


def looks_like_path(text: str | os.PathLike[str]) -> bool:
    """Return whether somebody means a file or folder of this machine, rather than a name on a hub.

    A name on a hub is `name` or `owner/name`. What begins as a path does, has more parts, or is in a folder that is
    there, is a path.

    >>> looks_like_path("./bert"), looks_like_path("google/bert")
    (True, False)
    """
    if not isinstance(text, str):
        return True
    parent = os.path.dirname(text.rstrip(os.sep))
    is_spelt_so = text.startswith((".", "~", os.sep)) or text.endswith(os.sep) or text.count(os.sep) > 1
    return is_spelt_so or os.path.exists(text) or (bool(parent) and os.path.isdir(parent))


def refuse_absent_path(name: str, value: str | os.PathLike[str], instead: str) -> None:
    """Refuse a path that leads nowhere; `name` is the argument it came in, `instead` what to give.

    Raises:
        FileNotFoundError: with what is there.
    """
    if looks_like_path(value) and not os.path.exists(value):
        raise FileNotFoundError(
            f"`{f'{name} {value}'.strip()}` is not there{nearest_path(Path(value))}; give {instead}"
        )


def nearest_path(path: Path) -> str:
    """Return what is near to a path that leads nowhere: a name beside it, or which folder of it is missing."""
    folder = path.parent
    if not folder.is_dir():
        missing = next(each for each in reversed([folder, *folder.parents]) if not each.is_dir())
        return f": there is no folder `{missing}`"
    near = difflib.get_close_matches(path.name, [other.name for other in folder.iterdir()], n=1, cutoff=_MISSPELT)
    return f", did you mean `{folder / near[0]}`?" if near else ""


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is broken, with the line and column, or is no text.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{path}` is no JSON: line {error.lineno}, column {error.colno}: {error.msg}: mend it, or write it anew"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is no text (byte {error.start}): JSON files are UTF-8") from error


def refuse_broken_weights(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder in which a safetensors file does not have all that its header says; only headers are read.

    Raises:
        ValueError: naming the file, and how long it is and should be.
    """
    for file in sorted(Path(folder).glob("*.safetensors")):
        size = file.stat().st_size
        needed = _safetensors_size(file)
        if needed != size:
            raise ValueError(
                f"`{file}` has {size:,} bytes, and its header says {needed:,}: it was cut off, or is of something "
                "else; copy or fetch it again"
            )


def _safetensors_size(file: Path) -> int:
    """Return how many bytes a safetensors file says it has: its header's length, the header, the tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            return 8 + length
        header = _header(file, opened.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def _header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{file}` is no safetensors file: its header is no JSON; copy or fetch it again") from error
    return header
