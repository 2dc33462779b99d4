# SPDX-License-Identifier: Apache-2.0
"""`IPUConfig`, what a user writes down, and `ExecutionConfig`, the frozen view of it that one kind of run reads."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from optimum.configuration_utils import BaseConfig

from ..errors import IncompatibleIPUConfigError, nearest
from ..paths import read_json, refuse_absent_path
from .execution_config import ExecutionConfig
from .layers_per_ipu import AUTO, WILDCARD, encoder_decoder_cut
from .legacy import BOOKKEEPING, known_options
from .options import ATTRIBUTES, DEFAULT_MATMUL_PROPORTION, DISABLED, EVERY_N, KINDS, LOCAL, OPTIONS, attribute_option

logger = logging.getLogger(__name__)

IPU_CONFIG_NAME = "ipu_config.json"
HOME_OF_SPLITS = {"embedding": "the encoder's IPUs", "projection": "the decoder's IPUs"}


class IPUConfig(BaseConfig):
    """How a model runs as a pipeline: which layers sit where, and how a batch is cut.

    ::

        ipu_config = IPUConfig(layers_per_ipu=[1, 2, 2, 1], gradient_accumulation_steps=4)
        ipu_config.save_pretrained("checkpoint")           # writes ipu_config.json
        ipu_config.for_training().batch_size_factor        # 4
        ipu_config.for_inference().batch_size_factor       # 1

    Options and their meanings are in `ipu_core.config.options.OPTIONS`; those marked `managed` also exist as
    `inference_<name>`, which falls back to the training value. An attribute is checked whenever it is set; setting one
    leaves the others as they are, `replace` works the fall-backs out again. Any `ipu_config.json` written by
    optimum-graphcore is read unchanged.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range, or an unknown option (the nearest known one is named).
        IncompatibleIPUConfigError: options that contradict one another.
    """

    CONFIG_NAME = IPU_CONFIG_NAME
    FULL_CONFIGURATION_FILE = IPU_CONFIG_NAME
    model_type = ""

    def __init__(self, **options: Any) -> None:
        self._given: dict[str, Any] = {}
        super().__init__()
        for name, value in known_options(options).items():
            setattr(self, name, value)
        resolved = _resolve(self._given)
        for name, value in resolved.items():
            super().__setattr__(name, value)
        # What equals its fall-back follows it: a saved file, which has every option, loads as it was written down.
        for name in list(self._given):
            without = {other: value for other, value in self._given.items() if other != name}
            if _resolve(without)[name] == resolved[name]:
                self._given = without
        if self.replicated_tensor_sharding and self.replication_factor == 1:
            logger.warning("`replicated_tensor_sharding=True` has no effect with `replication_factor=1`")
        self._check()
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        option = attribute_option(name)
        if option is not None:
            value = self._given[name] = option.check(name, value)
        elif not name.startswith("_") and name not in BOOKKEEPING and "_is_made" in vars(self):
            raise AttributeError(
                f"`{name}` is not an option of IPUConfig{nearest(name, ATTRIBUTES) or ': ' + ', '.join(ATTRIBUTES)}"
            )
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IPUConfig) and self._options() == other._options()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IPUConfig({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"

    def __str__(self) -> str:
        return repr(self)

    def for_training(self) -> ExecutionConfig:
        """Return the frozen view that training reads."""
        return self._view(inference=False)

    def for_inference(self) -> ExecutionConfig:
        """Return the frozen view that inference reads."""
        return self._view(inference=True)

    def batch_size_factor(self, for_inference: bool = False) -> int:
        """Return the number of micro-batches in a combined batch."""
        return self._view(inference=for_inference).batch_size_factor

    def changed(self, options: Iterable[str], *, for_inference: bool = False) -> dict[str, Any]:
        """Return those of some options that were given another value than their default, by attribute name."""
        changed = {}
        for name in options:
            option = OPTIONS[name]
            if for_inference and option.training_only:
                continue
            attribute = f"inference_{name}" if for_inference and option.managed else name
            neutral = (option.default, 1 if option.name.endswith("serialization_factor") else None)
            if self._given.get(attribute, option.default) not in neutral:
                changed[attribute] = self._given[attribute]
        return changed

    def replace(self, **options: Any) -> Self:
        """Return a copy with other values for some options; the fall-backs are worked out again.

        >>> IPUConfig(layers_per_ipu=[2, 2]).replace(layers_per_ipu=[1, 1, 1, 1]).ipus_per_replica
        4
        """
        return type(self)(**{**self._given, **options})

    def update_from_string(self, update_str: str) -> None:
        """Set options from text such as ``"layers_per_ipu=[1 2 2 1],seed=0"``, each read as its own type.

        The fall-backs are worked out again, as if the options had been given to the constructor.

        Raises:
            ValueError: an unknown option, or a value that cannot be read as the option's type.
        """
        given = dict(self._given)
        for pair in _split_outside_brackets(update_str):
            name, separator, text = (part.strip() for part in pair.partition("="))
            option = attribute_option(name)
            if not separator or option is None:
                raise ValueError(f"`{pair}` is not `option=value` of IPUConfig{nearest(name, ATTRIBUTES)}")
            try:
                given[name] = None if text == "None" and option.optional else KINDS[option.kind][0](text)
            except ValueError as error:
                raise ValueError(f"`{name}={text}` cannot be read as {option.kind}: {error}") from error
        self.__dict__.update(IPUConfig(**given).__dict__)

    def to_dict(self) -> dict[str, Any]:
        """Return every option, and the versions that wrote it."""
        versions = {k: v for k, v in super().to_dict().items() if k in ("optimum_version", "transformers_version")}
        return {**copy.deepcopy(self._options()), **versions}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what a file keeps: every option, so that its meaning stays when a default changes.

        Those of a machine, `executable_cache_dir` and `devices`, are their defaults: whoever loads it has another one.
        """
        return {**self.to_dict(), **{name: OPTIONS[name.removeprefix("inference_")].default for name in LOCAL}}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a file, but for options of a machine; `from_pretrained` takes those as arguments.

        Raises:
            TypeError: no name and no path.
            OSError: a path that leads nowhere, or a directory without the file. A hub is not asked for either.
            ValueError: a file that is no JSON.
        """
        if not isinstance(pretrained_model_name_or_path, (str, os.PathLike)):
            raise TypeError(
                f"`pretrained_model_name_or_path={pretrained_model_name_or_path!r}` is a "
                f"{type(pretrained_model_name_or_path).__name__}: give a directory, or a name on the hub"
            )
        _refuse_broken_file(Path(pretrained_model_name_or_path), pretrained_model_name_or_path)
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        for name in LOCAL:
            value, default = found.pop(name, None), OPTIONS[name.removeprefix("inference_")].default
            if value not in (None, "", DISABLED, default) and name not in kwargs:
                logger.warning(
                    "`%s=%r` of `%s` is not used, for it is of another machine: pass `%s=` to `from_pretrained`",
                    *(name, value, pretrained_model_name_or_path, name),
                )
        return found, kwargs

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def _check(self) -> None:
        self._check_output_return_period()
        self._check_packed()
        for prefix in ("", "inference_"):
            num_ipus = getattr(self, f"{prefix}ipus_per_replica")
            layers = getattr(self, f"{prefix}layers_per_ipu")
            if layers != AUTO and WILDCARD not in layers:
                self._check_length(f"{prefix}layers_per_ipu", layers, prefix, num_ipus)
            proportion = getattr(self, f"{prefix}matmul_proportion")
            if isinstance(proportion, list):
                self._check_length(f"{prefix}matmul_proportion", proportion, prefix, num_ipus)
            devices = getattr(self, f"{prefix}devices")
            if devices is not None:
                self._check_length(f"{prefix}devices", devices, prefix, num_ipus)
            for layer in ("embedding", "projection"):
                factor = f"{prefix}{layer}_serialization_factor"
                splits = f"{prefix}serialized_{layer}_splits_per_ipu"
                if getattr(self, splits) is None:
                    continue
                if getattr(self, factor) is not None:
                    raise IncompatibleIPUConfigError(
                        f"Only one of `{factor}={getattr(self, factor)}` and `{splits}={getattr(self, splits)}` "
                        f"can be used: set one of them to None"
                    )
                self._check_length(splits, getattr(self, splits), prefix, num_ipus)

    def _check_output_return_period(self) -> None:
        period, iterations = self.output_return_period, self.device_iterations
        if self.output_mode != EVERY_N and period is not None:
            raise IncompatibleIPUConfigError(
                f"`output_return_period={period}` has no effect with `output_mode={self.output_mode!r}`: leave it out, "
                f"or set `output_mode={EVERY_N!r}`"
            )
        if self.output_mode == EVERY_N and period is None:
            raise IncompatibleIPUConfigError(
                f"`output_mode={EVERY_N!r}` has no `output_return_period`: set it to a divisor of "
                f"`device_iterations={iterations}`"
            )
        if period is not None and iterations % period:
            divisors = [n for n in range(1, iterations + 1) if iterations % n == 0]
            raise IncompatibleIPUConfigError(
                f"`output_return_period={period}` does not divide `device_iterations={iterations}`: set it to one of "
                f"{divisors}, or change `device_iterations`"
            )

    def _check_packed(self) -> None:
        rows = {name: getattr(self, name) for name in ("packed_rows", "inference_packed_rows")}
        given = [f"`{name}={count}`" for name, count in rows.items() if count is not None]
        if bool(given) != (self.packed_length is not None):
            there = given[0] if given else f"`packed_length={self.packed_length}`"
            raise IncompatibleIPUConfigError(
                f"{there} is one side of a packed grid: give `packed_rows` and `packed_length` together, or neither"
            )

    @staticmethod
    def _check_length(name: str, values: list[Any], prefix: str, num_ipus: int) -> None:
        if len(values) != num_ipus:
            raise IncompatibleIPUConfigError(
                f"`{name}={values}` has {len(values)} values and `{prefix}ipus_per_replica={num_ipus}`: "
                f"give one value an IPU"
            )

    def _view(self, *, inference: bool) -> ExecutionConfig:
        self._check()

        def read(name: str) -> Any:
            return getattr(self, f"inference_{name}" if inference and OPTIONS[name].managed else name)

        num_ipus = read("ipus_per_replica")
        proportion = read("matmul_proportion")
        embedding_splits = read("serialized_embedding_splits_per_ipu")
        projection_splits = read("serialized_projection_splits_per_ipu")
        devices = read("devices")
        return ExecutionConfig(
            inference=inference,
            layers_per_ipu=AUTO if read("layers_per_ipu") == AUTO else tuple(read("layers_per_ipu")),
            ipus_per_replica=num_ipus,
            replication_factor=read("replication_factor"),
            gradient_accumulation_steps=1 if inference else self.gradient_accumulation_steps,
            device_iterations=read("device_iterations"),
            matmul_proportion=tuple(proportion) if isinstance(proportion, list) else (float(proportion),) * num_ipus,
            embedding_serialization_factor=read("embedding_serialization_factor") or 1,
            serialized_embedding_splits_per_ipu=tuple(embedding_splits) if embedding_splits else None,
            projection_serialization_factor=read("projection_serialization_factor") or 1,
            serialized_projection_splits_per_ipu=tuple(projection_splits) if projection_splits else None,
            max_masked_tokens=self.max_masked_tokens,
            packed_rows=read("packed_rows"),
            packed_length=None if read("packed_rows") is None else self.packed_length,
            recompute_checkpoint_every_layer=not inference and self.recompute_checkpoint_every_layer,
            schedule=self.schedule,
            stages_per_ipu=read("stages_per_ipu"),
            output_mode=_output_mode(self.output_mode, inference=inference),
            output_return_period=None if inference else self.output_return_period,
            seed=self.seed,
            compile=self.compile,
            record=self.record,
            executable_cache_dir=self.executable_cache_dir,
            devices=None if devices is None else tuple(devices),
            device_memory=self.device_memory,
            cost_source=self.cost_source,
            optimizer_state_offchip=not inference and self.optimizer_state_offchip,
            parameters_offchip=self.parameters_offchip,
            replicated_tensor_sharding=not inference and self.replicated_tensor_sharding,
        )


def _refuse_broken_file(path: Path, given: str | os.PathLike[str]) -> None:
    refuse_absent_path("", given, f"a directory that has an {IPU_CONFIG_NAME}, or a name on a hub")
    file = path / IPU_CONFIG_NAME if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        there = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"`{path}` has no {IPU_CONFIG_NAME}, it has {there}: give a directory that has one")
    if file.is_file():
        read_json(file)


def _resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every attribute its value: the given one, its fall-back, or the default."""
    values = {name: copy.copy(OPTIONS[name.removeprefix("inference_")].default) for name in ATTRIBUTES} | dict(given)
    layers = values["layers_per_ipu"]
    inference_layers = values["inference_layers_per_ipu"] = copy.copy(given.get("inference_layers_per_ipu") or layers)
    num_ipus = values["ipus_per_replica"] = given.get("ipus_per_replica") or _num_listed(layers)
    follows_layers = num_ipus == _num_listed(layers) or inference_layers not in ([WILDCARD], AUTO)
    num_inference_ipus = _num_listed(inference_layers) if follows_layers else num_ipus
    values["inference_ipus_per_replica"] = given.get("inference_ipus_per_replica") or num_inference_ipus
    if "inference_matmul_proportion" not in given:
        own = values["matmul_proportion"]
        fits = not isinstance(own, list) or len(own) == values["inference_ipus_per_replica"]
        values["inference_matmul_proportion"] = copy.copy(own) if fits else DEFAULT_MATMUL_PROPORTION
    if "inference_devices" not in given:
        values["inference_devices"] = copy.copy(values["devices"])
    if "inference_packed_rows" not in given:
        values["inference_packed_rows"] = values["packed_rows"]
    for prefix in ("", "inference_"):
        for kind in ("embedding", "projection"):
            if values[f"{prefix}serialized_{kind}_splits_per_ipu"] is None:
                values[f"{prefix}{kind}_serialization_factor"] = values[f"{prefix}{kind}_serialization_factor"] or 1
    return values


def _num_listed(layers_per_ipu: list[int] | str) -> int:
    return 1 if isinstance(layers_per_ipu, str) else len(layers_per_ipu)


def _output_mode(mode: str, *, inference: bool) -> str:
    if inference:
        return "all"
    return "final" if mode == "default" else mode


def _split_outside_brackets(text: str) -> list[str]:
    pairs, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            pairs.append("")
        else:
            pairs[-1] += character
    return [pair for pair in pairs if pair.strip()]


def split_encoder_decoder_ipu_config(
    ipu_config: IPUConfig, num_encoder_layers: int, num_decoder_layers: int, *, for_inference: bool = False
) -> tuple[IPUConfig, IPUConfig]:
    """Split a configuration into one for the encoder and one for the decoder, each on its own IPUs.

    >>> encoder, decoder = split_encoder_decoder_ipu_config(IPUConfig(layers_per_ipu=[3, 3, 6, 0]), 6, 6)
    >>> encoder.layers_per_ipu, decoder.layers_per_ipu
    ([3, 3], [6, 0])

    Splits of the embedding must lie on the encoder's IPUs, and those of the projection on the decoder's.

    Raises:
        IncompatibleIPUConfigError: one IPU only, or no cut that leaves the encoder a power of two of IPUs.
        TypeError: something else than a configuration and whole numbers.
        ValueError: a side without layers, or splits on the wrong side.
    """
    if not isinstance(ipu_config, IPUConfig):
        raise TypeError(f"`ipu_config={ipu_config!r}` is a {type(ipu_config).__name__}: give an `IPUConfig`")
    if not isinstance(for_inference, bool):
        raise TypeError(f"`for_inference={for_inference!r}` is a {type(for_inference).__name__}: give True or False")
    for name, count in (("num_encoder_layers", num_encoder_layers), ("num_decoder_layers", num_decoder_layers)):
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"`{name}={count!r}` is a {type(count).__name__}: give a whole number")
        if count < 1:
            raise ValueError(f"`{name}={count}`: give 1 or more")
    view = ipu_config.for_inference() if for_inference else ipu_config.for_training()
    prefix = "inference_" if for_inference else ""
    if view.ipus_per_replica < 2:
        raise IncompatibleIPUConfigError(
            f"`{prefix}ipus_per_replica={view.ipus_per_replica}`: an encoder and a decoder need at least 2 IPUs"
        )
    layers = view.expand_layers(num_encoder_layers + num_decoder_layers)
    cut = encoder_decoder_cut(layers, num_encoder_layers=num_encoder_layers, name=f"{prefix}layers_per_ipu")
    encoder: dict[str, Any] = {f"{prefix}serialized_projection_splits_per_ipu": None}
    decoder: dict[str, Any] = {f"{prefix}serialized_embedding_splits_per_ipu": None}
    for side, part in ((encoder, slice(0, cut)), (decoder, slice(cut, None))):
        side[f"{prefix}layers_per_ipu"] = list(layers[part])
        side[f"{prefix}ipus_per_replica"] = len(layers[part])
        side[f"{prefix}matmul_proportion"] = list(view.matmul_proportion[part])
        if view.devices is not None:
            side[f"{prefix}devices"] = list(view.devices[part])
    _give_splits(view, "embedding", encoder, decoder, slice(0, cut), slice(cut, None), prefix)
    _give_splits(view, "projection", decoder, encoder, slice(cut, None), slice(0, cut), prefix)
    return _side(ipu_config, encoder, prefix), _side(ipu_config, decoder, prefix)


def _give_splits(
    view: ExecutionConfig,
    layer: str,
    owner: dict[str, Any],
    other: dict[str, Any],
    own: slice,
    foreign: slice,
    prefix: str,
) -> None:
    name = f"serialized_{layer}_splits_per_ipu"
    splits = getattr(view, name)
    if splits is None:
        return
    if any(splits[foreign]):
        raise ValueError(f"`{prefix}{name}={list(splits)}` must lie on {HOME_OF_SPLITS[layer]}, {own.start}:{own.stop}")
    owner[f"{prefix}{name}"] = list(splits[own])
    other[f"{prefix}{layer}_serialization_factor"] = None


def _side(ipu_config: IPUConfig, changes: dict[str, Any], prefix: str) -> IPUConfig:
    # The other mode's options describe the undivided model: they must not veto this side's lengths.
    options = {name: value for name, value in ipu_config._options().items() if name not in changes}
    return type(ipu_config)(**{**options, **changes})
