# SPDX-License-Identifier: Apache-2.0
"""The options of `IPUConfig`, as one table: the only place of their names, defaults, checks and meanings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import nearest
from ..schedule import SCHEDULES, ZERO_BUBBLE
from .device_memory import DEVICES
from .layers_per_ipu import AUTO

EVERY_N = "every_n"
OUTPUT_MODES = ("all", "sum", "final", EVERY_N, "default")
ESTIMATED, MEASURED = COST_SOURCES = ("estimated", "measured")
DEFAULT_MATMUL_PROPORTION = 0.2
CACHE_DIRECTORY = "executable_cache_dir"
DISABLED = "disabled"  # what files of optimum-graphcore say of a cache directory that is none


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of `IPUConfig`: its name, its default, what it accepts, and which modes read it.

    A `managed` option has a value of its own for inference, `inference_<name>`; inference reads no `training_only` one.
    One that is `local` is about the machine at hand: files neither keep it nor bring it. A number has a `unit`.
    """

    name: str
    default: Any
    kind: str
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    managed: bool = False
    training_only: bool = False
    local: bool = False
    unit: str = ""
    meaning: str

    def check(self, name: str, value: Any) -> Any:
        """Return `value` as it is stored, or raise `TypeError` or `ValueError` naming the option and the value."""
        if value is None and self.optional:
            return None
        _, accepts = KINDS[self.kind]
        if not accepts(value):
            optional = " or None" if self.optional else ""
            raise TypeError(f"`{name}={value!r}` is a {type(value).__name__}: `{name}` must be {self.kind}{optional}")
        for element in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(element, str):
                continue
            if self.minimum is not None and not element >= self.minimum:  # nor is NaN
                raise ValueError(f"`{name}` must be >= {self.minimum}, and `{name}={value!r}` has {element!r}")
            if self.maximum is not None and element > self.maximum:
                raise ValueError(f"`{name}` must be <= {self.maximum}, and `{name}={value!r}` has {element!r}")
        choices = CHOICES.get(self.kind)
        if choices and isinstance(value, str) and value not in choices:
            raise ValueError(f"`{name}={value!r}` is not one of {choices}{nearest(value, choices)}")
        if self.name.endswith("splits_per_ipu"):
            _check_splits(name, value)
        if self.name == CACHE_DIRECTORY and value == DISABLED:
            return self.default
        return list(value) if isinstance(value, tuple) else value


def _check_splits(name: str, splits: list[int]) -> None:
    used = [i for i, n in enumerate(splits) if n]
    if not used:
        raise ValueError(f"`{name}={splits}` places no split: give at least one")
    if used[-1] - used[0] + 1 != len(used):
        raise ValueError(f"`{name}={splits}` leaves a gap: the IPUs that hold splits must follow one another")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(check(v) for v in value)


def _bool_from_text(text: str) -> bool:
    if text.lower() in ("true", "1", "y", "yes"):
        return True
    if text.lower() in ("false", "0", "n", "no"):
        return False
    raise ValueError(f"`{text}` is not a boolean: write true or false")


def _list_from_text(text: str) -> Any:
    return json.loads(",".join(text.replace(",", " ").split()))


def _layers_from_text(text: str) -> Any:
    return AUTO if text == AUTO else _list_from_text(text)


def _proportion_from_text(text: str) -> Any:
    return _list_from_text(text) if text.startswith("[") else float(text)


def _names_from_text(text: str) -> list[str]:
    return [name.strip("'\"") for name in text.strip("[]").replace(",", " ").split()]


def _device_from_text(text: str) -> Any:
    return int(text) if text.isdigit() else text


NAMES = "a list of str"
OUTPUT_MODE = "an output mode"
SCHEDULE = "a schedule"
COST_SOURCE = "a source of costs"
DEVICE = "a device or a number of bytes"
CHOICES = {OUTPUT_MODE: OUTPUT_MODES, SCHEDULE: (*SCHEDULES, ZERO_BUBBLE), DEVICE: DEVICES, COST_SOURCE: COST_SOURCES}
# kind -> (how `update_from_string` reads it, what an attribute accepts)
KINDS: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool]]] = {
    "an int": (int, _is_int),
    "a bool": (_bool_from_text, lambda value: isinstance(value, bool)),
    "a str": (str, lambda value: isinstance(value, str)),
    "a list of int": (_list_from_text, _is_list_of(_is_int)),
    "a float or a list of float": (
        _proportion_from_text,
        lambda value: _is_number(value) or _is_list_of(_is_number)(value),
    ),
    'a list of int or "auto"': (_layers_from_text, lambda value: value == AUTO or _is_list_of(_is_int)(value)),
    NAMES: (_names_from_text, _is_list_of(lambda value: isinstance(value, str))),
    DEVICE: (_device_from_text, lambda value: isinstance(value, str) or _is_int(value)),
    OUTPUT_MODE: (str, lambda value: isinstance(value, str)),
    SCHEDULE: (str, lambda value: isinstance(value, str)),
    COST_SOURCE: (str, lambda value: isinstance(value, str)),
}

_INT, _BOOL, _STR, _INTS, _PROPORTION, _LAYERS = list(KINDS)[:6]

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(
            name="layers_per_ipu",
            default=[-1],
            kind=_LAYERS,
            minimum=-1,
            managed=True,
            unit="layers an IPU",
            meaning='repeated layers on each IPU; -1 is a wildcard, "auto" balances the times',
        ),
        Option(
            name="ipus_per_replica",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            managed=True,
            unit="IPUs",
            meaning="length of one pipeline; by default one IPU an entry of `layers_per_ipu`",
        ),
        Option(
            name="replication_factor",
            default=1,
            kind=_INT,
            minimum=1,
            managed=True,
            unit="replicas",
            meaning="data-parallel copies of the pipeline",
        ),
        Option(
            name="gradient_accumulation_steps",
            default=1,
            kind=_INT,
            minimum=1,
            training_only=True,
            unit="micro-batches",
            meaning="micro-batches an optimiser update, in training",
        ),
        Option(
            name="device_iterations",
            default=1,
            kind=_INT,
            minimum=1,
            managed=True,
            unit="steps a call",
            meaning="steps (training: optimiser updates) a call",
        ),
        Option(
            name="matmul_proportion",
            default=DEFAULT_MATMUL_PROPORTION,
            kind=_PROPORTION,
            minimum=0,
            maximum=1,
            managed=True,
            unit="share of an IPU's memory",
            meaning="share of an IPU's memory for temporary data of matrix products",
        ),
        Option(
            name="embedding_serialization_factor",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            managed=True,
            unit="steps",
            meaning="steps an embedding lookup is done in",
        ),
        Option(
            name="serialized_embedding_splits_per_ipu",
            default=None,
            kind=_INTS,
            minimum=0,
            optional=True,
            managed=True,
            unit="shards an IPU",
            meaning="shards of the embedding table on each IPU",
        ),
        Option(
            name="projection_serialization_factor",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            managed=True,
            unit="steps",
            meaning="steps the output projection is done in",
        ),
        Option(
            name="serialized_projection_splits_per_ipu",
            default=None,
            kind=_INTS,
            minimum=0,
            optional=True,
            managed=True,
            unit="shards an IPU",
            meaning="shards of the output projection on each IPU",
        ),
        Option(
            name="max_masked_tokens",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            unit="tokens a row",
            meaning="the most tokens with a label in one row: a masked-language head computes at so many, logits too",
        ),
        Option(
            name="packed_rows",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            managed=True,
            unit="rows a micro-batch",
            meaning="rows the examples of a micro-batch are packed into, where its `packed_at` says",
        ),
        Option(
            name="packed_length",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            unit="tokens",
            meaning="tokens of a packed row",
        ),
        Option(
            name="devices",
            default=None,
            kind=NAMES,
            optional=True,
            managed=True,
            local=True,
            meaning='a torch device for each IPU, such as "cuda:0"; by default stages run where the model is',
        ),
        Option(
            name="device_memory",
            default=None,
            kind=DEVICE,
            minimum=1,
            optional=True,
            unit="bytes an IPU",
            meaning='memory to stay within: of one "gc200" or "bow", of the "host", or bytes an IPU; refused beyond',
        ),
        Option(
            name="cost_source",
            default=ESTIMATED,
            kind=COST_SOURCE,
            meaning="where the times of a plan come from: estimated by shapes, or measured by running every module",
        ),
        Option(
            name="optimizer_state_offchip",
            default=False,
            kind=_BOOL,
            training_only=True,
            meaning="keep the optimiser state in streaming memory; plans count it so",
        ),
        Option(
            name="parameters_offchip",
            default=False,
            kind=_BOOL,
            meaning="keep parameters on the host; a device has copies for the stage it runs, and for its next one",
        ),
        Option(
            name="replicated_tensor_sharding",
            default=False,
            kind=_BOOL,
            training_only=True,
            meaning="shard the optimiser state between replicas; plans count it so",
        ),
        Option(name="enable_half_partials", default=True, kind=_BOOL, meaning="float16 partial sums on hardware"),
        Option(
            name="recompute_checkpoint_every_layer",
            default=False,
            kind=_BOOL,
            training_only=True,
            meaning="keep only the activations between layers, and compute the rest again for the backward pass",
        ),
        Option(
            name="output_mode",
            default="final",
            kind=OUTPUT_MODE,
            training_only=True,
            meaning="what a training executor returns: every micro-batch, their sum, the last, or every n-th iteration",
        ),
        Option(
            name="output_return_period",
            default=None,
            kind=_INT,
            minimum=1,
            optional=True,
            training_only=True,
            unit="device iterations",
            meaning='with `output_mode="every_n"`, n: of the device iterations of a call, n, 2n, ... are returned',
        ),
        Option(
            name="schedule",
            default="sequential",
            kind=SCHEDULE,
            training_only=True,
            meaning="the order in which stages take micro-batches",
        ),
        Option(
            name="stages_per_ipu",
            default=1,
            kind=_INT,
            minimum=1,
            managed=True,
            unit="stages an IPU",
            meaning="parts each IPU's layers are cut into; the pipeline goes round the IPUs as many times",
        ),
        Option(
            name="seed",
            default=None,
            kind=_INT,
            optional=True,
            meaning="seeds torch's generators when an executor compiles; 0 is a seed like any other",
        ),
        Option(
            name="auto_loss_scaling",
            default=False,
            kind=_BOOL,
            training_only=True,
            meaning="scale a float16 loss automatically",
        ),
        Option(
            name="compile",
            default=False,
            kind=_BOOL,
            meaning="run stages as code compiled for this processor, or for CUDA devices, equal layers compiled once",
        ),
        Option(
            name="record",
            default=False,
            kind=_BOOL,
            local=True,
            meaning="record what a CUDA device does in an update or a decode step, and replay it; not seen on a card",
        ),
        Option(
            name=CACHE_DIRECTORY,
            default="",
            kind=_STR,
            local=True,
            meaning='directory of captured graphs and compiled code, which the next process uses; "" is none',
        ),
        Option(
            name="explicit_ir_inference",
            default=False,
            kind=_BOOL,
            meaning="PopTorch's explicit intermediate representation, in inference",
        ),
    )
}
MANAGED = tuple(name for name, option in OPTIONS.items() if option.managed)


def attribute_option(name: str) -> Option | None:
    """Return the option that attribute `name` of `IPUConfig` belongs to, if it is one."""
    option = OPTIONS.get(name.removeprefix("inference_"))
    if name.startswith("inference_") and option is not None and not option.managed:
        return None
    return option


ATTRIBUTES = tuple(n for name, o in OPTIONS.items() for n in ((name, f"inference_{name}") if o.managed else (name,)))

# What a file neither keeps nor brings: whoever loads one has another machine, and trusts other directories.
LOCAL = tuple(name for name in ATTRIBUTES if OPTIONS[name.removeprefix("inference_")].local)

# Options that only hardware reads.
HARDWARE_HINTS = (
    "enable_half_partials",
    "auto_loss_scaling",
    "explicit_ir_inference",
)
