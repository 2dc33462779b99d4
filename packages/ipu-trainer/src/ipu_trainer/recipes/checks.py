# SPDX-License-Identifier: Apache-2.0
"""Reads what a file says into a `Recipe`, and finds all that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.config.options import ATTRIBUTES
from ipu_core.errors import nearest, shown

from ..arguments import IPUTrainingArguments
from ..errors import RecipeError
from .architectures import configuration, model_types, parameters, problems_of, refuse_other_forwards
from .documents import Document
from .problems import Path, Problems
from .schema import (
    BLOCKS,
    BPE,
    FREE_BLOCKS,
    Data,
    Fusion,
    Input,
    ModelConfig,
    Output,
    Recipe,
)
from .sequence_default import SEQUENCE_DEFAULT

TOP = ("inputs", "outputs", "fusion", "data", *FREE_BLOCKS)
# Where ours differ from `IPUTrainingArguments`: nothing is reported to a service, and a run writes one model.
TRAINING_DEFAULTS = {"output_dir": "out", "report_to": "none", "save_strategy": "no", "dataloader_pin_memory": False}
_NAMES: dict[type, str] = {
    **{int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
}


def read_recipe(document: Document, problems: Problems) -> Recipe | None:
    """Return the recipe that a document is, without values that are wrong; `problems` takes all that is.

    None where there is no input or output, or one without what it needs.
    """
    values = document.values
    _refuse_unknown(values, TOP, (), problems, more=[key for key in BLOCKS if key not in ("fusion", "data")])
    inputs = [_input(entry, ("inputs", n), problems) for n, entry in _entries(values, "inputs", problems)]
    outputs = [_output(entry, ("outputs", n), problems) for n, entry in _entries(values, "outputs", problems)]
    fusion = _block(Fusion, values.get("fusion"), ("fusion",), problems)
    data = _block(Data, values.get("data"), ("data",), problems)
    free = {key: _mapping(values.get(key), (key,), problems) for key in FREE_BLOCKS}
    _check_options(free["ipu_config"], problems)
    _check_training(free["training"], problems)
    if None in (*inputs, *outputs) or not inputs or not outputs:
        return None
    recipe = Recipe(inputs=tuple(inputs), outputs=tuple(outputs), fusion=fusion, data=data, **free)
    _check_names(recipe, problems)
    _check_data(recipe.data, problems)
    for number, given in enumerate(recipe.inputs):
        _check_tokens(given, ("inputs", number), problems)
        _check_model(given.model_config, ("inputs", number, "model_config"), problems)
    return recipe


def _entries(values: Mapping[str, Any], name: str, problems: Problems) -> Iterable[tuple[int, Any]]:
    entries = values.get(name)
    if not isinstance(entries, list) or not entries:
        block = {"inputs": "input_info", "outputs": "output_info"}[name]
        problems.add((name,), f"there are no `{name}`: give `{block}`, or a list of them in `{name}`")
        return []
    return enumerate(entries)


def _input(entry: Any, path: Path, problems: Problems) -> Any:
    return _of_blocks(Input, entry, path, ("input_info", "input_type_info", "model_config"), problems)


def _output(entry: Any, path: Path, problems: Problems) -> Any:
    return _of_blocks(Output, entry, path, ("output_info", "output_type_info"), problems)


def _of_blocks(cls: type[Any], entry: Any, path: Path, names: tuple[str, ...], problems: Problems) -> Any:
    entry = _mapping(entry, path, problems)
    _refuse_unknown(entry, names, path, problems)
    blocks = {name: _block(BLOCKS[name], entry.get(name), (*path, name), problems) for name in names}
    return None if None in blocks.values() else cls(**blocks)


def _mapping(value: Any, path: Path, problems: Problems) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    problems.add(path, f"`{path[-1]}` is {shown(value)}, and is a mapping of keys and values")
    return {}


def _block(cls: type[Any], value: Any, path: Path, problems: Problems) -> Any:
    """Return a block of the schema, None where a key that it needs is missing."""
    given = _mapping(value, path, problems)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    _refuse_unknown(given, fields, path, problems)
    hints = typing.get_type_hints(cls)
    kept = {}
    for name, each in given.items():
        if name in fields and not (wrong := _wrong_value(fields[name], hints[name], each)):
            kept[name] = None if each == "none" and name in ("pool", "position") else each
        elif name in fields:
            problems.add((*path, name), f"`{name}: {_yaml(each)}` {wrong}")
    missing = [n for n, f in fields.items() if _is_needed(f) and n not in given]
    for name in missing:
        problems.add(path, f"`{path[-1]}` has no `{name}`: {fields[name].metadata['meaning']}")
    return None if any(_is_needed(fields[n]) and n not in kept for n in fields) else cls(**kept)


def _is_needed(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _wrong_value(field: Any, hint: Any, value: Any) -> str:
    """Return why a key cannot have a value, "" where it can."""
    said = field.metadata
    if said["refused"]:
        return f"has no effect: {said['refused']}"
    if isinstance(value, str) and value in said["reasons"]:
        return f"is not offered: {said['reasons'][value]}"
    if not fits(value, hint):
        return f"is {_kind(value)}: give {described(hint, said['choices'])}"
    is_none = value == "none" and type(None) in typing.get_args(hint)
    if isinstance(value, str) and said["choices"] and value not in said["choices"] and not is_none:
        return f"is not one of {', '.join(said['choices'])}{nearest(value, said['choices'])}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if said["minimum"] is not None and not value >= said["minimum"]:
            return f"is less than {said['minimum']}: give that or more"
        if said["maximum"] is not None and value > said["maximum"]:
            return f"is more than {said['maximum']}: give that or less"
    return ""


def fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value is of a type; types that files cannot say are taken for right."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(fits(each, arguments[0]) for each in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and (not arguments or all(fits(each, arguments[1]) for each in value.values()))
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def described(hint: Any, choices: Iterable[str] = ()) -> str:
    """Return what a type is called in messages."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [described(argument, choices) for argument in arguments]
        return " or ".join(dict.fromkeys(kinds))
    if hint is str and choices:
        return f"one of {', '.join(choices)}"
    if typing.get_origin(hint) is list:
        return f"a list, each {described(arguments[0])}"
    return "a mapping" if typing.get_origin(hint) is dict else _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "a list", dict: "a mapping", **_NAMES}
    return names.get(type(value), f"a {type(value).__name__}")


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return shown(value)


def _refuse_unknown(
    given: Mapping[str, Any], known: Iterable[str], path: Path, problems: Problems, *, more: Iterable[str] = ()
) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            near = nearest(name, [*known, *more]) or f"; the keys are {', '.join(known)}"
            problems.add((*path, name), f"`{name}` is no key{f' of `{path[-1]}`' if path else ''}{near}")


def _check_options(given: Mapping[str, Any], problems: Problems) -> None:
    wrong = False
    for name, value in given.items():
        if name not in ATTRIBUTES:
            problems.add(("ipu_config", name), f"`{name}` is no option of IPUConfig{nearest(name, ATTRIBUTES)}")
            wrong = True
            continue
        try:
            IPUConfig(**{name: value})
        except (TypeError, ValueError) as error:
            problems.add(("ipu_config", name), str(error))
            wrong = True
    if not wrong:
        try:
            IPUConfig(**given)
        except (TypeError, ValueError) as error:
            problems.add(("ipu_config",), str(error))


def _check_training(given: Mapping[str, Any], problems: Problems) -> None:
    fields = {field.name: field for field in dataclasses.fields(IPUTrainingArguments) if field.init}
    hints = typing.get_type_hints(IPUTrainingArguments)
    wrong = False
    for name, value in given.items():
        if name not in fields:
            problems.add(("training", name), f"`{name}` is no argument of IPUTrainingArguments{nearest(name, fields)}")
        elif not fits(value, hints[name]):
            wanted = described(hints[name])
            problems.add(("training", name), f"`{name}: {_yaml(value)}` is {_kind(value)}: give {wanted}")
        else:
            continue
        wrong = True
    if not wrong:
        try:
            training_arguments(given)
        except (TypeError, ValueError) as error:
            named = [name for name in given if name in str(error)][:1]
            problems.add(("training", *named), str(error))


def training_arguments(given: Mapping[str, Any]) -> IPUTrainingArguments:
    """Return the training arguments of a recipe."""
    return IPUTrainingArguments(**{**TRAINING_DEFAULTS, **given})


def _check_names(recipe: Recipe, problems: Problems) -> None:
    seen: set[str] = set()
    for number, given in enumerate(recipe.inputs):
        path = ("inputs", number, "input_info", "input_name")
        if given.name in seen:
            problems.add(path, f"`{given.name}` is the name of two inputs: give each its own")
        if "." in given.name or not given.name or hasattr(torch.nn.ModuleDict(), given.name):
            problems.add(path, f"`input_name: {given.name}` cannot name a module of torch: give another, without dots")
        seen.add(given.name)
    targets = [
        (("outputs", number, "output_type_info"), column)
        for number, output in enumerate(recipe.outputs)
        for column in (*output.output_type_info.target_cat_columns, *output.output_type_info.target_con_columns)
    ]
    for where, column in targets:
        if [other for _, other in targets].count(column) > 1:
            problems.add(where, f"the target `{column}` is there twice: leave it in one of the lists")
    for number, output in enumerate(recipe.outputs):
        info = output.output_type_info
        if not info.target_cat_columns and not info.target_con_columns and not problems.has(("outputs", number)):
            message = "there is nothing to predict: give `target_cat_columns` or `target_con_columns`"
            problems.add(("outputs", number), message)
    for name in set(recipe.data.columns) - seen:
        problems.add(("data", "columns", name), f"`{name}` is the name of no input{nearest(name, seen)}")


def _check_data(data: Data, problems: Problems) -> None:
    if data.eval_source is not None and data.eval_size is not None:
        problems.add(("data", "eval_size"), "`eval_size` holds out rows, and `eval_source` has others: give one")


def _check_tokens(given: Input, path: Path, problems: Problems) -> None:
    info, path = given.input_type_info, (*path, "input_type_info")
    own = given.model_config.pretrained_model and info.tokenizer is None and info.vocab_file is None

    def refuse(key: str, why: str) -> None:
        problems.add((*path, key), f"`{key}: {getattr(info, key)}` has no effect: {why}; leave it out")

    if problems.has((*path, "tokenizer")):
        return
    if info.tokenizer_language is not None and (info.tokenizer is None or info.tokenizer == BPE):
        refuse("tokenizer_language", "only `tokenizer: basic_english` has a language")
    if info.adaptive_tokenizer_max_vocab_size is not None and (info.tokenizer != BPE or info.vocab_file is not None):
        refuse("adaptive_tokenizer_max_vocab_size", "only `tokenizer: bpe` learns tokens, unless it has a `vocab_file`")
    if info.vocab_file is not None and not FilePath(info.vocab_file).is_file():
        problems.add((*path, "vocab_file"), f"`vocab_file: {info.vocab_file}` is not there")
    if own and info.split_on != " " and not info.split_on:
        refuse("split_on", "the checkpoint's own tokenizer reads words, not characters")


def _check_model(given: ModelConfig, path: Path, problems: Problems) -> None:
    def refuse(key: str, why: str) -> None:
        problems.add((*path, key), f"`{key}: {_yaml(getattr(given, key))}` {why}")

    if given.freeze_pretrained_model and not given.pretrained_model:
        refuse("freeze_pretrained_model", "has no effect with `pretrained_model: false`, whose weights are to learn")
    if problems.has((*path, "model_type")) or problems.has((*path, "model_init_config")):
        return
    if given.pretrained_model and given.model_type in model_types():
        refuse("model_type", "is a type, and `pretrained_model: true` takes a directory with a checkpoint")
        return
    positions = given.position is not None or given.model_type == SEQUENCE_DEFAULT
    if given.position_dropout is not None and not positions:
        refuse("position_dropout", "has no effect without `position`")
    is_type = given.model_type in model_types()
    if is_type:
        for name, message in problems_of(given.model_type, given.model_init_config).items():
            problems.add((*path, "model_init_config", name), message)
        if problems_of(given.model_type, given.model_init_config):
            return
    with problems.at((*path, "model_init_config" if is_type and given.model_init_config else "model_type")):
        config = configuration(given.model_type, model_values(given))
        refuse_other_forwards(config)
        refuse_no_model(config)


def refuse_no_model(config: Any) -> None:
    """Refuse a configuration that its architecture cannot be made of; no weights are.

    Raises:
        RecipeError: with what the architecture says.
    """
    try:
        with torch.device("meta"):
            transformers.AutoModel.from_config(config)
    except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, ZeroDivisionError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{config.model_type} cannot be made so: {text[:300]}") from error


def model_values(given: ModelConfig) -> dict[str, Any]:
    """Return the parameters of the architecture, `embedding_dim` among them where it is one.

    Raises:
        RecipeError: `embedding_dim` is given for an architecture with a width of its own.
    """
    if given.model_type == SEQUENCE_DEFAULT:
        if "hidden_size" in given.model_init_config:
            raise RecipeError(f"the width of {SEQUENCE_DEFAULT} is `embedding_dim`: leave `hidden_size` out")
        return {"hidden_size": given.embedding_dim or 64, **given.model_init_config}
    if given.embedding_dim is not None:
        known = parameters(given.model_type) if given.model_type in model_types() else {}
        widths = [name for name in ("embedding_size", "hidden_size", "d_model", "n_embd", "emb_dim") if name in known]
        raise RecipeError(
            f"`embedding_dim: {given.embedding_dim}` has no effect on {given.model_type}, whose width is its own: set "
            f"{' or '.join(f'`{name}`' for name in widths) or 'it'} in `model_init_config`"
        )
    return dict(given.model_init_config)
