# SPDX-License-Identifier: Apache-2.0
"""The pages of the reference that are made of the packages: options, commands, errors, models, interfaces."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ipu_core import errors
from ipu_core.config.options import CHOICES, OPTIONS, Option
from ipu_core.engines.registry import engines
from ipu_core.plugins.registry import installed
from ipu_core.report.models import models_table

ROOT = Path(__file__).parent.parent
# The modules whose `__all__` is an interface, by the page that has it.
INTERFACES = {
    "core": ["ipu_core"],
    "points": ["ipu_core.points"],
    "checkpoints": ["ipu_core.checkpoints"],
    "testing": ["ipu_core.testing"],
    "trainer": ["ipu_trainer", "ipu_trainer.recipes"],
    "diffusers": ["ipu_diffusers"],
}


@functools.cache
def pages() -> dict[str, str]:
    """Return every page of the reference that is made, by its path in the site."""
    made = {"options": options_page(), "commands": commands_page(), "errors": errors_page(), "models": models_page()}
    made |= {f"api/{name}": interface_page(*modules) for name, modules in INTERFACES.items()}
    return {f"reference/{name}.md": text for name, text in made.items()}


def options_page() -> str:
    """Return the page of the options of `IPUConfig`, a row an option."""
    rows = [
        f"| <a id='{name}'></a>`{name}` | {_cell(option.meaning)} | {_default(option)} | {_accepts(option)} | "
        f"{option.unit} | {_read_in(option)} | {_engines(option)} |"
        for name, option in OPTIONS.items()
    ]
    return "\n".join([_OPTIONS, *rows, ""])


_OPTIONS = """# Options of IPUConfig

Each option is an argument of `IPUConfig`, an entry of `ipu_config.json` and an attribute that is checked when it is
set. One that is read in *each* kind of run has a second value for inference, `inference_<name>`, which falls back to
the first; one that is read in *both* has one. An engine that an option does not name gives it no effect;
`ipu doctor --config FILE` says so of one configuration.

| option | meaning | default | takes | unit | read in | engines |
|---|---|---|---|---|---|---|"""


def _default(option: Option) -> str:
    return f"`{option.default!r}`"


def _accepts(option: Option) -> str:
    choices = CHOICES.get(option.kind)
    kind = _cell(option.kind) + (f": {', '.join(f'`{choice}`' for choice in choices)}" if choices else "")
    least = f", from {option.minimum:g}" if option.minimum is not None else ""
    most = f" to {option.maximum:g}" if option.maximum is not None else ""
    return f"{kind}{least}{most}{', or None' if option.optional else ''}"


def _read_in(option: Option) -> str:
    if option.training_only:
        return "training"
    return "each" if option.managed else "both"


def _engines(option: Option) -> str:
    names = [e.name for e in engines().values() if e.is_usable and option.name not in e.inert]
    return ", ".join(names) or "hardware alone"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands_page() -> str:
    """Return the page of the commands, each in the words of its own help."""
    overview = _help()
    names = re.findall(r"^    ([a-z][a-z-]*)(?: |$)", overview, re.MULTILINE)
    if not {"plan", "plugins", "doctor"} <= set(names):
        raise ValueError(f"`ipu --help` lists {names}: this page no longer knows how commands are listed in it")
    parts = [f"## ipu {name}\n\n```text\n{_help(name)}```\n" for name in dict.fromkeys(names)]
    return "\n".join([f"# The command ipu\n\n```text\n{overview}```\n", *parts])


def _help(*command: str) -> str:
    """Return the help of a command, of one width and without colours."""
    ipu = [sys.executable, "-m", "ipu_core.cli", *command, "--help"]
    plain = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "PYTHON_COLORS": "0"}
    done = subprocess.run(ipu, capture_output=True, text=True, env=plain, check=False)
    if done.returncode:
        raise ValueError(f"`ipu {' '.join(command)} --help` ends with {done.returncode}: {done.stderr}")
    return done.stdout


def errors_page() -> str:
    """Return the page of the errors: the tree, then each with the messages it is raised with."""
    tree = inspect.getdoc(errors).split("::\n\n")[1].rpartition("\n\nA message says")[0]  # type: ignore[union-attr]
    causes = raised_messages()
    parts = [_error(cls, causes.get(cls.__name__, [])) for cls in _error_classes()]
    return "\n".join([_ERRORS, f"```text\n{tree}\n```\n", *parts])


_ERRORS = """# Errors, and their causes

A message says what is wrong with the numbers, what is there, and what to change. Below each error are the messages
that it is raised with; what stands in braces is filled in. `except IPUError` catches every one of them, and
`except ValueError` those that a user can put right. Those of ipu-trainer and ipu-diffusers are in their interfaces.
What the commands and the examples print of bad input is in [a table](../bad_input.md).
"""


def _error_classes() -> Iterator[type[errors.IPUError]]:
    def below(cls: type[errors.IPUError]) -> Iterator[type[errors.IPUError]]:
        yield cls
        for each in cls.__subclasses__():
            if each.__module__ == errors.__name__:
                yield from below(each)

    return below(errors.IPUError)


def _error(cls: type[errors.IPUError], messages: list[str]) -> str:
    lines = [f"## {cls.__name__}\n", f"{inspect.getdoc(cls)}\n"]
    if messages:
        listed = "".join(f"    - `` {message} ``\n" for message in messages)
        lines.append(f'??? note "{len(messages)} cause{"s" if len(messages) > 1 else ""}"\n\n{listed}')
    return "\n".join(lines)


def raised_messages() -> dict[str, list[str]]:
    """Return the messages of `raise Error(...)` in the packages, by the name of the error; values stand in braces."""
    found: dict[str, list[str]] = {}
    for source in sorted((ROOT / "packages").glob("*/src/**/*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[message, *_])):
                    text = _template(message)
                    if text and text not in found.setdefault(name, []):
                        found[name].append(text)
    return found


def _template(node: ast.expr) -> str:
    """Return a message as it is written, or nothing where it is not written where it is raised."""
    match node:
        case ast.Constant(value=str(text)):
            return " ".join(text.split())
        case ast.JoinedStr(values=values):
            parts = [part.value if isinstance(part, ast.Constant) else _placeholder(part) for part in values]
            return " ".join("".join(map(str, parts)).split()).replace("``", "`")
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _template(left) + _template(right)
    return ""


def _placeholder(part: ast.expr) -> str:
    inner = part.value if isinstance(part, ast.FormattedValue) else part
    return f"{{{inner.id}}}" if isinstance(inner, ast.Name) else "{...}"


def models_page() -> str:
    """Return the page of the classes that the families of the packages declare."""
    ours = [plugin for plugin in installed().plugins if plugin.name in ("bert", "seq2seq", "speech", "vision")]
    return f"{_MODELS}\n{models_table(ours)}\n"


_MODELS = """# Supported models

Every class of these families has a pipelined one, such as `ipu_models_bert.PipelinedBertForMaskedLM`; where a cell is
empty transformers has no such class. Each is compared with the plain model on every split, in float32 and float64:
outputs, loss, every gradient. `ipu plugins --table` prints the table of what is installed.

A model that is not in the table works too: its layers are discovered. `nox -s catalogue -- --all` compares 86
architectures of transformers with their plain models, inference and training on 1, 2 and 4 IPUs
([layers](../design/layers.md)), and the tokens of those that generate. Where a forward looks at the values of tensors,
a family changes a few of its lines, checked against upstream: `ipu edits` lists each change and whether it still
applies ([edits](../design/edits.md)).
"""


def interface_page(*modules: str) -> str:
    """Return the page of what modules export, each from its docstring."""
    parts = [f"# {' and '.join(modules)}\n"]
    for module in modules:
        parts += [f"::: {module}.{name}\n" for name in _exported(module)]
    return "\n".join(parts)


def _exported(module: str) -> list[str]:
    """Return the `__all__` of a package, without importing it."""
    (source,) = (ROOT / "packages").glob(f"*/src/{module.replace('.', '/')}/__init__.py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                return list(ast.literal_eval(names))
    raise ValueError(f"{source} has no `__all__`")
