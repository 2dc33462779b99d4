# SPDX-License-Identifier: Apache-2.0
"""The model that a command line describes, with random weights or none, its configuration and its batch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from ..config.ipu_config import IPUConfig
from ..errors import nearest
from ..model.mixin import PipelineMixin
from ..model.pipelined import to_pipelined
from ..paths import read_json
from ..plugins.family import Family, load
from ..plugins.registry import installed
from ..samples import sample_batch
from ..validation import learned_positions
from .arguments import read_config


def ipu_config_of(options: argparse.Namespace) -> IPUConfig:
    """Return the configuration of `--config`, with what other options say."""
    ipu_config = read_config(options.config) if options.config else IPUConfig()
    changes = {
        "layers_per_ipu": options.layers_per_ipu,
        "ipus_per_replica": options.ipus,
        "gradient_accumulation_steps": options.accumulation,
        "replication_factor": options.replicas,
        "schedule": options.schedule,
        "recompute_checkpoint_every_layer": options.recompute or None,
        "stages_per_ipu": options.stages_per_ipu,
        "inference_stages_per_ipu": options.stages_per_ipu,
        "parameters_offchip": options.parameters_offchip or None,
        "device_memory": options.ipu,
        "cost_source": "measured" if options.measure else None,
    }
    return ipu_config.replace(**{name: value for name, value in changes.items() if value is not None})


def combined_batch(
    options: argparse.Namespace, model: PipelineMixin, ipu_config: IPUConfig, *, rows: int
) -> dict[str, Any]:
    """Return a random batch for all micro-batches of a call.

    Raises:
        ValueError: its rows are longer than the model has positions for.
    """
    most = learned_positions(model)
    if most is not None and options.length > most:
        raise ValueError(
            f"`--length {options.length}`: `{model.plain_class().__name__}` has learned {most} positions: give "
            f"--length {most} or less, or a model with more"
        )
    combined = rows * ipu_config.batch_size_factor(options.inference)
    return sample_batch(model, batch_size=combined, length=options.length, labels=not options.inference)


def random_model(options: argparse.Namespace, *, device: str) -> PipelineMixin:
    """Make a pipelined model; on the meta device it has shapes and no weights.

    Raises:
        OSError: the directory of `--model` has no config.json.
        ValueError: no such family, class, or value of the configuration.
    """
    ipu_config = ipu_config_of(options)
    cls, config = _from_directory(options) if options.model is not None else _from_family(options, ipu_config)
    with torch.device(device):
        model = cls(config)
    pipelined: PipelineMixin = to_pipelined(model, ipu_config)
    return pipelined


def _from_directory(options: argparse.Namespace) -> tuple[type[Any], Any]:
    file = config_file(options.model)
    family = installed().family(read_json(file).get("model_type", ""))

    def configured(**values: Any) -> Any:
        return transformers.AutoConfig.from_pretrained(options.model, local_files_only=True, **values)

    config = _with_values(configured, configured(), dict(options.set))
    name = options.class_name or (config.architectures or [""])[0]
    if not name:
        raise ValueError(f"`{file}` names no class in `architectures`: give one with --class")
    return model_class(name, family), config


def config_file(folder: Path) -> Path:
    """Return the config.json of a checkpoint's directory.

    Raises:
        OSError: it has none.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"`--model {folder}` is not a directory with a config.json: give one that has it")
    return folder / "config.json"


def _from_family(options: argparse.Namespace, ipu_config: IPUConfig) -> tuple[type[Any], Any]:
    family = installed().family(options.family)
    if family is None:
        known = [f.model_type for plugin in installed().plugins for f in plugin.families]
        declared = f": declared are {', '.join(dict.fromkeys(known)) or 'none'}"
        raise ValueError(
            f"no plugin declares the family `{options.family}`{nearest(options.family, known) or declared} "
            "(see `ipu plugins`)"
        )

    def configured(**values: Any) -> Any:
        return transformers.AutoConfig.for_model(options.family, **values)

    layers = ipu_config.inference_layers_per_ipu if options.inference else ipu_config.layers_per_ipu
    # Where one list has all layers, their number is an option of the configuration.
    lists = [pattern for pattern in family.layout if ".*" in pattern]
    is_said = layers != "auto" and -1 not in layers and [pattern.count(".*") for pattern in lists] == [1]
    number = {"num_hidden_layers": sum(layers)} if is_said else {}
    config = _with_values(configured, configured(), dict(options.set), **number)
    return model_class(options.class_name or next(iter(family.models)), family), config


def _with_values(make: Any, plain: Any, values: Mapping[str, Any], **defaults: Any) -> Any:
    """Make a configuration with other values, each of which the plain one has to know.

    Raises:
        ValueError: it does not know one, or refuses its value.
    """
    for name in values:
        if not _has_option(plain, name):
            raise ValueError(
                f"`--set {name}={values[name]}`: `{type(plain).__name__}` has no option `{name}`"
                f"{nearest(name, _options(plain)) or ': it has ' + ', '.join(_options(plain))}"
            )
    try:
        return make(**{**defaults, **values})
    except ValueError:
        raise
    except Exception as error:  # of whoever checks the types of a configuration
        reason = " ".join(str(error).split())
        raise ValueError(f"`{type(plain).__name__}` takes no such value: {reason}: change what --set says") from error


def _options(config: Any) -> list[str]:
    return sorted({*config.to_dict(), *config.attribute_map} - {"transformers_version", "model_type"})


def _has_option(config: Any, name: str) -> bool:
    found = getattr(config, name, getattr(config, f"_{name}", len))  # as of `attn_implementation`
    return name in _options(config) or not callable(found)


def model_class(name: str, family: Family | None) -> type[Any]:
    """Return the class of transformers, or one of an architecture of a plugin's own.

    Raises:
        ValueError: there is none of this name.
    """
    cls: type[Any] | None = getattr(transformers, name, None)
    if cls is None and family is not None and name in family.models:
        cls = load(family.targets[name]).plain_class()
    if cls is None:
        known = family.models if family is not None else ()
        raise ValueError(
            f"transformers has no class `{name}`, and no plugin declares it{nearest(name, known)}: give another with "
            "--class"
        )
    return cls
