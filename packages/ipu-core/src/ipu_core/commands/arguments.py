# SPDX-License-Identifier: Apache-2.0
"""What several commands take: which model, which configuration, which batch; and how each value is read."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleIPUConfigError
from ..paths import nearest_path

if TYPE_CHECKING:
    from ..config.ipu_config import IPUConfig

AUTO = "auto"
CONFIG_HELP = "an ipu_config.json, or a directory that has one"
UNITS = {
    f"{letter}{i}B": base**power
    for i, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("KMGT", start=1)
}
LAYERS_HELP = 'layers on each IPU, -1 a wildcard; or "auto"'


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no whole number of at least 1: give one such as 4")
    return int(text)


def layers(text: str) -> list[int] | str:
    """Read layers on each IPU: whole numbers, or "auto".

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        return text if text == AUTO else [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'`{text}` is no list of whole numbers: give layers on each IPU, such as 1,2,2,1, or "{AUTO}"'
        ) from error


def memory(text: str) -> int | str:
    """Read bytes, with a unit or without, such as 16GB; what begins with no digit is the name of a device.

    Raises:
        argparse.ArgumentTypeError: it begins with one, and is no such number.
    """
    if not text[:1].isdigit():
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of bytes: give one such as 16GB, 512MiB or 900000000")
    number, unit = match.groups()
    return int(float(number) * UNITS[unit]) if unit else int(float(number))


def key_value(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE, the value as JSON where it is some.

    Raises:
        argparse.ArgumentTypeError: there is no `=`.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"`{text}` is not KEY=VALUE: give one such as hidden_size=128")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def existing(text: str) -> Path:
    """Read the path of something that is there.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not Path(text).exists():
        near = nearest_path(Path(text))
        raise argparse.ArgumentTypeError(f"`{text}` is not there{near}; give a file or a directory that is")
    return Path(text)


def read_config(path: str | Path) -> IPUConfig:
    """Return the configuration of `--config`.

    Raises:
        ValueError: it has what is no option, or options that contradict each other.
    """
    from ..config.ipu_config import IPUConfig

    try:
        return IPUConfig.from_pretrained(path)
    except IncompatibleIPUConfigError as error:
        raise IncompatibleIPUConfigError(f"`--config {path}`: {error}") from error


def new_file(text: str) -> Path:
    """Read the path of a file that is to be written.

    Raises:
        argparse.ArgumentTypeError: its folder is not there, or it is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"`{text}` is a folder: give a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"`{text}` cannot be written{nearest_path(path)}; give a folder that is there")
    return path


def add_set(command: argparse.ArgumentParser, help: str) -> None:
    """Add `--set`, which may be given several times."""
    command.add_argument("--set", metavar="KEY=VALUE", type=key_value, action="append", default=[], help=help)


def add_places(command: argparse.ArgumentParser) -> None:
    """Add where layers sit: a configuration, or a list."""
    command.add_argument("--config", metavar="FILE", type=existing, help=CONFIG_HELP)
    command.add_argument("--layers-per-ipu", metavar="N,N,...", type=layers, help=LAYERS_HELP)


def add_source(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model."""
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--family", metavar="TYPE", help="a model type, such as bert, in its default size")
    source.add_argument("--model", metavar="DIR", type=existing, help="a directory with a transformers config.json")
    what = "transformers class; the first declared one by default"
    command.add_argument("--class", dest="class_name", metavar="NAME", help=what)
    add_set(command, "change a value of the model's configuration")


def add_schedule(command: argparse.ArgumentParser) -> None:
    """Add the order in which stages take micro-batches."""
    what = "sequential, gpipe, 1f1b, interleaved or zero_bubble"
    command.add_argument("--schedule", metavar="NAME", help=what)


def add_length(command: argparse.ArgumentParser) -> None:
    """Add the tokens of a row."""
    command.add_argument("--length", metavar="TOKENS", type=positive, default=128, help="tokens of a row (default 128)")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model, which configuration and which batch."""
    add_source(command)
    add = command.add_argument
    add_places(command)
    add("--ipus", metavar="N", type=positive, help="IPUs a replica, where --layers-per-ipu does not say")
    add("--accumulation", metavar="N", type=positive, help="gradient accumulation steps")
    add("--replicas", metavar="N", type=positive, help="replication factor")
    add_schedule(command)
    add("--recompute", action="store_true", help="keep activations between layers only, and compute the rest again")
    add("--stages-per-ipu", metavar="N", type=positive, help="stages each IPU's layers are cut into")
    add("--parameters-offchip", action="store_true", help="keep parameters on the host: two stages' at most on an IPU")
    add("--batch", metavar="ROWS", type=positive, default=1, help="rows of a micro-batch (default 1)")
    add_length(command)
