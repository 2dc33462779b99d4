# SPDX-License-Identifier: Apache-2.0
"""Where a pipeline's model, configuration and tokenizer come from: an object, a directory, or a name on a hub."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from .._transformers import class_with_head
from ..config.ipu_config import IPU_CONFIG_NAME, IPUConfig
from ..errors import TaskError
from ..model.mixin import PipelineMixin
from ..model.pipelined import to_pipelined
from ..paths import refuse_absent_path, refuse_broken_weights
from ..peft import adapted
from .tasks import Task, has_head, refuse_no_head, task_of

logger = logging.getLogger(__name__)
COMPONENTS = {
    "tokenizer": "AutoTokenizer",
    "feature_extractor": "AutoFeatureExtractor",
    "image_processor": "AutoImageProcessor",
    "processor": "AutoProcessor",
}
_HUB = ("revision", "token", "trust_remote_code", "local_files_only", "cache_dir")


def load_model(source: str, task: Task, options: Mapping[str, Any]) -> torch.nn.Module:
    """Load a checkpoint as the class that has the head of a task.

    Raises:
        TaskError: its architecture has no such class, or the checkpoint no weights of the head.
        FileNotFoundError: a path that leads nowhere; a hub is not asked for it.
        ValueError: a file of weights that was cut off.
    """
    refuse_absent_path("", source, "a directory with a checkpoint, or a name on a hub")
    if os.path.isdir(source):
        refuse_broken_weights(source)
    config = transformers.AutoConfig.from_pretrained(source, **_of_hub(options))
    autos = [getattr(transformers, head) for head in task.heads]
    fitting = [auto for auto in autos if class_with_head(auto, config) is not None]
    if not fitting:
        made = ", ".join(config.architectures or ()) or "no class it names"
        raise TaskError(
            f"`{source}` is a `{config.model_type}` model ({made}), and no class of that type has a head for "
            f"`{task.name}`: choose another task or model"
        )
    model, info = _matching(fitting, config).from_pretrained(source, output_loading_info=True, **options)
    if (missing := sorted(info["missing_keys"])) and not task.generic:
        raise TaskError(
            f"`{source}` ({', '.join(config.architectures or ())}) has no weights for a head for `{task.name}`, "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}: choose a checkpoint that was trained "
            "for the task, or pass a model object whose head may be random"
        )
    loaded: torch.nn.Module = model
    return loaded


def _matching(fitting: list[Any], config: Any) -> Any:
    """Return the auto class that makes what the checkpoint says it holds; the first one where none does."""
    for auto in fitting:
        made = class_with_head(auto, config)
        if made is not None and made.__name__ in (config.architectures or ()):
            return auto
    return fitting[0]


def _of_hub(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in _HUB if options.get(name) is not None}


def task_of_source(source: str, options: Mapping[str, Any]) -> Task:
    """Return the task of a checkpoint, from the class its configuration names.

    Raises:
        TaskError: it names no class of transformers.
    """
    config = transformers.AutoConfig.from_pretrained(source, **_of_hub(options))
    for name in config.architectures or ():
        if (cls := getattr(transformers, name, None)) is not None:
            return task_of(cls)
    raise TaskError(
        f"`{source}` says no class (`architectures` is {config.architectures}) and `task` is None: name the task"
    )


def ipu_config_of(given: Any, model: Any, source: str | None, options: Mapping[str, Any]) -> IPUConfig:
    """Return the configuration that was given; else the model's own, the one beside its checkpoint, or one IPU.

    Raises:
        TypeError: it is neither an `IPUConfig` nor options, nor where one is.
    """
    if isinstance(given, IPUConfig):
        return given
    if isinstance(given, Mapping):
        return IPUConfig(**given)
    if isinstance(given, (str, os.PathLike)):
        return IPUConfig.from_pretrained(given)
    if given is not None:
        raise TypeError(
            f"`ipu_config={given!r}` is a {type(given).__name__}: give an `IPUConfig`, a dictionary of its options, a "
            "directory that has an ipu_config.json, or None"
        )
    if isinstance(model, PipelineMixin) and model._ipu_config is not None:
        return model._ipu_config
    file = _file_beside(source, options)
    if file is None:
        logger.info("no %s is beside the checkpoint: one IPU", IPU_CONFIG_NAME)
        return IPUConfig()
    logger.info("the configuration is that of %s", file)
    return IPUConfig.from_pretrained(os.path.dirname(file))


def _file_beside(source: str | None, options: Mapping[str, Any]) -> str | None:
    if not source:
        return None
    if os.path.isdir(source):
        file = os.path.join(source, IPU_CONFIG_NAME)
        return file if os.path.isfile(file) else None
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    return cached_file(source, IPU_CONFIG_NAME, **_of_hub(options), **quiet)


def source_of(model: Any) -> str | None:
    """Return where a model object was loaded from, as far as that is a directory that is there."""
    name = getattr(model, "name_or_path", "") or ""
    return name if os.path.isdir(name) else None


def pipelined(model: Any, task: Task, ipu_config: IPUConfig) -> Any:
    """Return the model pipelined as `ipu_config` says; the object that was given stays as it is.

    Raises:
        TypeError: it is no model.
        TaskError: it has no head for the task.
        IncompatibleIPUConfigError: `ipu_config` is for another number of layers.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"`model` is a {type(model).__name__}: give a transformers model, a pipelined one, a directory or a "
            "name on a hub"
        )
    if not hasattr(model, "config"):
        raise TypeError(f"`{type(model).__name__}` is no transformers model: it has no `config`; give one that has")
    cls = type(model).plain_class() if isinstance(model, PipelineMixin) else type(model)
    if not (hasattr(model, "peft_config") and has_head(type(adapted(model)), task)):
        refuse_no_head(cls, task)
    made = to_pipelined(model, ipu_config)
    with made.parallelized(for_inference=True):
        return made  # what does not fit the model is refused now


def components(
    task: Task, cls: type[Any], given: Mapping[str, Any], source: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what prepares inputs: what was given, else what is beside the checkpoint, where the task has a use for it.

    Raises:
        TaskError: the task needs one, and there is nowhere to load it from.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for name in COMPONENTS:
        flag = getattr(cls, f"_load_{name}", False)
        where = found.get(name, source)
        if isinstance(where, (str, os.PathLike)) and (name in found or flag is not False):
            found[name] = _component(name, os.fspath(where), options, is_needed=bool(flag) or name in found)
        elif flag and where is None and "processor" not in found:
            raise TaskError(
                f"`{task.name}` needs `{name}=`, and the model was not loaded from a directory that is there: pass "
                "one, or the directory or name of its checkpoint"
            )
    return {name: value for name, value in found.items() if value is not None}


def _component(name: str, source: str, options: Mapping[str, Any], *, is_needed: bool) -> Any:
    """Load a component; None where there is none, and the task can do without it."""
    if name == "tokenizer" and _lacks_tokenizer(source):  # upstream would make one without words of some types
        if is_needed:
            raise TaskError(f"`{source}` has no tokenizer: save one beside the checkpoint, or pass `tokenizer=`")
        return None
    more = _of_hub(options)
    if name == "image_processor" and not transformers.utils.is_torchvision_available():
        more["backend"] = "pil"
    try:
        return getattr(transformers, COMPONENTS[name]).from_pretrained(source, **more)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if is_needed:
            raise TaskError(
                f"`{source}` has no {name.replace('_', ' ')} that can be loaded ({error}): save one beside the "
                f"checkpoint, or pass `{name}=`"
            ) from error
        return None


def _lacks_tokenizer(source: str) -> bool:
    """Return whether a folder has no file of a tokenizer."""
    kinds = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json")
    return os.path.isdir(source) and not any(any(Path(source).glob(kind)) for kind in kinds)


def limit_of(model: Any, tokenizer: Any, *, always_truncates: bool) -> int | None:
    """Return how many tokens a model takes: its positions, or what its tokenizer says; None where nothing says so."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None) or 0
    named = getattr(tokenizer, "model_max_length", None) or 0
    limits = [positions] if positions > 0 else []
    if 0 < named < 10**6 and (limits or always_truncates):
        limits.append(named)
    return min(limits, default=None)


def takes(model: torch.nn.Module, name: str) -> bool:
    """Return whether a model's forward has an argument of this name."""
    return name in inspect.signature(model.forward).parameters
