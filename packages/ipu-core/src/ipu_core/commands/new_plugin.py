# SPDX-License-Identifier: Apache-2.0
"""`ipu new-plugin`: a package that brings a family to ipu-core, complete and with its tests.

The template is plain files with `$name` in them, `plugin_template/`: copier and cookiecutter would ask a user for
twenty packages, for a command that is run once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from ..plugins.hookspecs import GROUP
from ..upstream import CORE, upstreams
from .arguments import add_set

TEMPLATE = Path(__file__).parent / "plugin_template"
EXAMPLES = (
    "ipu new-plugin ipu-models-opt",
    "ipu new-plugin ipu-models-mine --model-type phi",
    "ipu new-plugin ipu-models-mine --own   # with an architecture that transformers does not have",
)
# A name that `pip` takes for a project.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_OWN_TINY = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "write a package that brings a family: declaration, tests, continuous integration"
    command = commands.add_parser("new-plugin", help=meaning, examples=EXAMPLES)
    command.add_argument("name", metavar="NAME", help="what the package is called, such as ipu-models-opt")
    command.add_argument("--model-type", metavar="T", help="a model type; by default the end of the name")
    command.add_argument("--own", action="store_true", help="write an architecture of the package's own too")
    add_set(command, "a value of the configuration of tiny models, where the usual ones do not fit")
    command.add_argument("--folder", metavar="DIR", type=Path, help="where it goes (default: a folder of its name)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the package, and print what to do next.

    Raises:
        ValueError: a name that is none or taken, or a type that is unknown or declared.
        OSError: a folder that is not empty.
    """
    names = names_of(options.name, options.model_type)
    folder = options.folder or Path(options.name)
    if options.own and options.set:
        raise ValueError("`--set` has no effect with `--own`: leave one of them out")
    refuse_full(folder)
    refuse_taken(names)
    facts = own_facts(names) if options.own else _upstream_facts(names, dict(options.set))
    write_package(folder, {**names, **facts, **_ranges()}, "own" if options.own else "upstream")
    print(
        f"wrote {folder}: the family is in src/{names['package']}/families/{names['module']}.py\n"
        f"next:  pip install -e '{folder}[tests]' && pytest {folder}"
    )
    return 0


def names_of(name: str, model_type: str | None) -> dict[str, str]:
    """Return what is called how, by the name of the package.

    Raises:
        ValueError: it is no name of a package, or gives no name of a module.
    """
    package = re.sub(r"[-.]+", "_", name.lower())
    if not _NAME.fullmatch(name) or not package.isidentifier() or keyword.iskeyword(package):
        raise ValueError(
            f"`{name}` is no name of a package that can be imported: give letters, digits and -, a letter first, such "
            "as ipu-models-opt"
        )
    plugin = package.removeprefix("ipu_").removeprefix("models_")
    model_type = model_type or plugin
    module = re.sub(r"\W", "_", model_type)
    if not module.isidentifier() or keyword.iskeyword(module):
        raise ValueError(f"`--model-type {model_type}` is no model type: give one such as opt")
    prefix = "".join(part.capitalize() for part in module.split("_"))
    return {
        "name": name,
        "package": package,
        "plugin": plugin,
        "model_type": model_type,
        "module": module,
        "constant": module.upper(),
        "prefix": prefix,
        "title": model_type,
    }


def refuse_full(folder: Path) -> None:
    """Refuse a folder in which something is already.

    Raises:
        OSError: it is a file, or not empty.
    """
    if folder.is_file():
        raise FileExistsError(f"`{folder}` is a file: give another folder with --folder")
    if folder.is_dir() and (there := sorted(path.name for path in folder.iterdir())):
        shown = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
        raise FileExistsError(f"`{folder}` is not empty, it has {shown}: give another folder with --folder")


def refuse_taken(names: dict[str, str]) -> None:
    """Refuse the names of what is installed.

    Raises:
        ValueError: a module, or a plugin, is called so.
    """
    if find_spec(names["package"]) is not None:
        raise ValueError(f"a package `{names['package']}` is installed already: choose another name")
    if names["plugin"] in {point.name for point in importlib.metadata.entry_points(group=GROUP)}:
        raise ValueError(f"a plugin `{names['plugin']}` is installed already (`ipu plugins`): choose another name")


def own_facts(names: dict[str, str]) -> dict[str, str]:
    """Return what the family of the template's own architecture declares."""
    prefix = names["prefix"]
    facts = {
        "layout": ("tokens", "positions", "layers.*", "norm"),
        "models": (f"{prefix}Model", f"{prefix}ForSequenceClassification"),
        "tiny": _OWN_TINY,
        "num_layers": 4,
    }
    plain_in = f'\n    plain_in="{names["package"]}.modeling",  # where the plain classes are'
    return {**written(**facts), "plain_in": plain_in}  # type: ignore[arg-type]


def _upstream_facts(names: dict[str, str], tiny: dict[str, Any]) -> dict[str, str]:
    """Return what the family of a type of transformers declares, found by looking at tiny models of it."""
    from .console import announced, import_torch

    import_torch()
    from .discovered import facts_of

    with announced(f"looking at `{names['model_type']}`"):
        return {**written(**facts_of(names["model_type"], tiny)), "plain_in": ""}


def written(
    *, layout: tuple[str, ...], models: tuple[str, ...], tiny: dict[str, Any], num_layers: int
) -> dict[str, str]:
    """Return facts of a family as the template has them."""
    halves = [num_layers - num_layers // 2, num_layers // 2]
    return {
        "layout": "\n".join(f'        "{path}",' for path in layout),
        "models": "\n".join(f'        "{name}",' for name in models),
        "tiny": "\n".join(f'        "{name}": {value!r},' for name, value in tiny.items()),
        "first_class": models[0],
        "example_layers": ",".join(map(str, halves)),
        "example_list": str(halves),
    }


def _ranges() -> dict[str, str]:
    """Return the versions that a new package requires: this one's, until the next minor one, and what it tests."""
    major, minor = importlib.metadata.version(CORE).split(".")[:2]
    tested = {f"{upstream.name}_range": upstream.tested_range for upstream in upstreams()}
    return {"core_range": f">={major}.{minor},<{major}.{int(minor) + 1}", **tested}


def write_package(folder: Path, values: dict[str, str], kind: str) -> None:
    """Write the files of the template, those that all packages have and those of a kind."""
    for root in (TEMPLATE / "common", TEMPLATE / kind):
        for source in sorted(path for path in root.rglob("*.txt") if path.is_file()):
            path = str(source.relative_to(root)).removesuffix(".txt")
            path = path.replace("PACKAGE", values["package"]).replace("MODULE", values["module"])
            target = folder / (".gitignore" if path == "gitignore" else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(source.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
