# SPDX-License-Identifier: Apache-2.0
"""Which architectures a recipe can name, which parameters each has, and the configuration it asks for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from ipu_core._transformers import class_with_head
from ipu_core.errors import nearest
from ipu_core.plugins.registry import installed, registered

from ..errors import RecipeError
from . import sequence_default

_NOT_READ = "transformers {version} keeps it, and no longer reads it"
_OF_GENERATION = "it is a setting of generation, and nothing is generated here"
_OF_OUTPUTS = "the columns of the outputs say how many labels there are"
# Parameters that older releases read. Their default changes nothing; another value would be ignored by upstream.
UNREAD: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "position_embedding_type": (
        "absolute",
        (
            *("albert", "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "git", "ibert"),
            *("layoutlm", "markuplm", "megatron-bert", "mra", "roberta", "roberta-prelayernorm", "roc_bert"),
            *("xlm-roberta", "xlm-roberta-xl", "yoso"),
        ),
        _NOT_READ,
    ),
    "hidden_activation": (None, ("gemma",), _NOT_READ),
    "untie_r": (True, ("xlnet",), _NOT_READ),
    "verbose": (0, ("mpt",), _NOT_READ),
    "use_cache": (True, ("splinter",), _NOT_READ),
    "forced_eos_token_id": (2, ("mvp",), _OF_GENERATION),
    "num_labels": (3, ("bart",), _OF_OUTPUTS),
}
# Parameters that upstream folds into `rope_parameters`, which the model reads.
FOLDED = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base")
# Parameters that a model reads off its configuration, whose class does not name them.
UNNAMED: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        **{"share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"},
        **{"conv_kernel_size": 0, "conv_groups": 1, "conv_act": "tanh"},
    }
}
# What every configuration has, and what is about saving, outputs and heads that recipes do not have.
_BASE = frozenset(inspect.signature(transformers.PreTrainedConfig.__init__).parameters)
_KEPT = frozenset(("chunk_size_feed_forward",))


def model_types() -> list[str]:
    """Return every model type there is: those of transformers, of plugins, and one of ours."""
    families = [family.model_type for plugin in installed().plugins for family in plugin.families]
    return sorted({*transformers.CONFIG_MAPPING.keys(), *families, sequence_default.SEQUENCE_DEFAULT})


def config_class(model_type: str) -> Any:
    """Return the configuration class of a model type, None where there is none."""
    registered(model_type)
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    return transformers.CONFIG_MAPPING[model_type]  # a lazy mapping, whose `get` finds nothing


def parameters(model_type: str) -> dict[str, Any]:
    """Return the parameters that a model type takes in `model_init_config`, with their defaults."""
    cls = config_class(model_type)
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "self"
    }
    own = {name: default for name, default in found.items() if name not in _BASE or name in _KEPT}
    own |= UNNAMED.get(model_type, {})
    if "rope_parameters" in own:
        own |= {name: None for name in FOLDED if name not in own}
    unread = {name: default for name, (default, types, _) in UNREAD.items() if model_type in types and name not in own}
    return {**own, **{alias: own.get(name) for alias, name in cls.attribute_map.items()}, **unread}


def problems_of(model_type: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with parameters of a model type, by their names."""
    known = parameters(model_type)
    wrong = {}
    for name, value in values.items():
        default, types, why = UNREAD.get(name, (None, (), ""))
        if model_type in types and value != default:
            reason = why.format(version=transformers.__version__)
            wrong[name] = f"`{name}: {value}` would have no effect on {model_type}: {reason}; leave it out"
        elif name not in known:
            near = nearest(name, known) or f"; it has {', '.join(known)}"
            wrong[name] = f"`{name}` is no parameter of {model_type}{near}"
    return wrong


def read_by_model(model_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that have no effect, whose values are the defaults."""
    return {name: v for name, v in values.items() if model_type not in UNREAD.get(name, (None, (), ""))[1]}


def configuration(name: str, values: Mapping[str, Any]) -> Any:
    """Return the configuration of a model type, or of a checkpoint's directory, with some values changed.

    Nothing is downloaded: the name of a checkpoint on a hub is one that is there already.

    Raises:
        RecipeError: there is no such type or checkpoint, or a parameter it does not take.
    """
    if name in model_types():
        if config_class(name) is None:
            raise RecipeError(f"transformers {transformers.__version__} has no architecture `{name}`")
        model_type, base = name, None
    else:
        base = _of_checkpoint(name)
        model_type = base.model_type
    wrong = problems_of(model_type, values)
    if wrong:
        raise RecipeError("; ".join(wrong.values()))
    given = read_by_model(model_type, values)
    try:
        if base is None:
            return transformers.AutoConfig.for_model(model_type, **given)
        return type(base).from_dict(base.to_dict(), **given)
    except Exception as error:  # configurations check themselves, with errors of several libraries
        raise RecipeError(f"{model_type} cannot be configured so: {_line(error)}") from error


def _of_checkpoint(name: str) -> Any:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise RecipeError(f"`{name}` is a directory without a config.json: give one with a checkpoint")
    try:
        if Path(name).is_dir():
            registered(json.loads((Path(name) / "config.json").read_bytes()).get("model_type"))
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        near = nearest(name, model_types())
        raise RecipeError(
            f"`{name}` is no model type{near or ''} and no checkpoint that is here: give a type (`ipu train --explain "
            f"types` lists them), or a directory; nothing is downloaded ({_line(error)[:150]})"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def refuse_other_forwards(config: Any) -> None:
    """Refuse an architecture that does not read vectors of tokens.

    Raises:
        RecipeError: it reads images or sounds, say, or has no base model.
    """
    cls = class_with_head(transformers.AutoModel, config)
    if cls is None:
        raise RecipeError(f"transformers has no base model of `{config.model_type}`: give another type")
    if "inputs_embeds" not in inspect.signature(cls.forward).parameters:
        raise RecipeError(
            f"`{config.model_type}` ({cls.__name__}) does not read texts: its forward has no `inputs_embeds`"
        )
