# SPDX-License-Identifier: Apache-2.0
"""`PipelineMixin`: what a transformers model that knows its layout and its `IPUConfig` can do.

A pipelined model is a *view* of the user's model: another object of another class over the same modules and the same
tensors. The user's model is not touched; what is set on it afterwards is taken over before anything is captured or
saved. The view back to the plain class is made the same way.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import PreTrainedModel

from .._torch import TABLES
from .._transformers import record_outputs
from ..capture.capture import CAPTURING
from ..capture.guards import OF_TORCH
from ..checkpoints.lazy import refuse_unread
from ..config.execution_config import ExecutionConfig
from ..config.ipu_config import IPU_CONFIG_NAME, IPUConfig
from ..config.layers_per_ipu import layer_ipus
from ..errors import LayoutError
from ..partition.layout import count_layers, explain_no_list
from ..peft import adapted
from ..plugins.family import Family, load
from ..plugins.registry import edits_within, family_of
from ..rewrites import Rewrite
from ..rewrites.from_config import serialized_vocabulary
from ..rewrites.masked_lm_head import masked_token_head, refuse_more_labels
from ..rewrites.sequence_packing import packed_examples, refuse_misplaced
from ..rewrites.source_edits import edited, edits_of
from ..validation import refuse_other_types
from .card import layers_on_ipus, write_card

logger = logging.getLogger(__name__)

if TYPE_CHECKING:

    class _MixinBase(PreTrainedModel):
        """What the class a `PipelineMixin` is mixed into offers."""
else:
    _MixinBase = object


class PipelineMixin(_MixinBase):
    """Makes a model class pipelined; list it before the transformers class it is mixed into.

    ::

        class PipelinedBertForMaskedLM(PipelineMixin, BertForMaskedLM):
            pass

        model = PipelinedBertForMaskedLM.from_pretrained_transformers("checkpoint", ipu_config)
        with model.parallelized():
            ...
    """

    _ipu_config: IPUConfig | None = None
    _family: Family | None = None
    _rewrites: tuple[Rewrite, ...] = ()
    _changes: contextlib.ExitStack | None = None
    _parallelized_as: ExecutionConfig | None = None
    _generator: Any = None
    _origin: Origin | None = None

    @classmethod
    def from_transformers(cls, model: torch.nn.Module, ipu_config: IPUConfig) -> Self:
        """Make a pipelined model that shares every module and tensor of `model`."""
        pipelined = view(model, cls)
        pipelined.ipu_config = ipu_config
        pipelined._family = family_of(model)
        pipelined._origin = Origin(model)
        return pipelined

    @classmethod
    def from_pretrained_transformers(
        cls, model_name_or_path: str | os.PathLike[str], ipu_config: IPUConfig, *args: Any, **kwargs: Any
    ) -> Self:
        """Load a transformers checkpoint as a pipelined model; the arguments are those of `from_pretrained`."""
        return cls.from_transformers(cls.plain_class().from_pretrained(model_name_or_path, *args, **kwargs), ipu_config)

    @classmethod
    def plain_class(cls) -> type[Any]:
        """Return the class this one is mixed into."""
        # Not the first that is no pipelined one: while a graph is captured, torch puts classes of its own before it.
        return cls.__mro__[cls.__mro__.index(PipelineMixin) + 1]

    @property
    def ipu_config(self) -> IPUConfig:
        """How the model runs as a pipeline.

        Raises:
            AttributeError: none was set.
            TypeError: it is set to something that is not an `IPUConfig`.
        """
        if self._ipu_config is None:
            raise AttributeError  # torch asks `__getattr__`, which has the message
        return self._ipu_config

    @ipu_config.setter
    def ipu_config(self, value: IPUConfig) -> None:
        if not isinstance(value, IPUConfig):
            raise TypeError(f"`ipu_config` is a {type(value).__name__}: give an IPUConfig")
        self._ipu_config = value

    def __getattr__(self, name: str) -> Any:
        if name == "ipu_config":
            raise AttributeError(
                f"`{type(self).__name__}` has no `ipu_config` yet: set `model.ipu_config = IPUConfig(...)`"
            )
        return super().__getattr__(name)

    @property
    def family(self) -> Family | None:
        """What a plugin declares about this architecture; None when its layout is discovered."""
        return self._family if self._family is not None else family_of(self)

    @property
    def layout_patterns(self) -> tuple[str, ...] | None:
        """The declared layout, None when it is to be discovered."""
        return self.family.layout if self.family else None

    def check_batch(
        self, batch: Mapping[str, Any], *, for_inference: bool = False, config: ExecutionConfig | None = None
    ) -> None:
        """Check a batch what its family and its options do, such as that labels are in range, before it is run.

        Executors ask it of every batch, and give the `config` they run with.

        Raises:
            ValueError: what upstream's forward would raise, which a captured graph cannot: it has no values to look at.
        """
        config = config or self._execution_config(for_inference=for_inference)
        targets = self.family.checks if self.family else ()
        for check in (refuse_misplaced, refuse_more_labels, *map(load, targets)):
            check(adapted(self), config, batch)

    @staticmethod
    def own_attributes() -> frozenset[str]:
        """Return the names of what a pipelined model has and its plain one does not; no forward reads them."""
        return frozenset(vars(PipelineMixin))

    @property
    def origins(self) -> tuple[torch.nn.Module, ...]:
        """The models that `follow` looks at."""
        return (self._origin.model,) if self._origin is not None else ()

    @property
    def own_rewrites(self) -> tuple[Rewrite, ...]:
        """The rewrites of this model beside those of its family and its configuration."""
        return self._rewrites

    def rewritten(self, *rewrites: Rewrite) -> Self:
        """Return another view of the same modules and tensors, which `parallelize` changes in more ways."""
        # By name: that module is made of this one.
        made: Self = load("ipu_core.model.pipelined:to_pipelined")(self, self.ipu_config, rewrites=rewrites)
        return made

    def follow(self) -> None:
        """Take over what was set on the user's model since: a head, a hook, a mode, any other attribute.

        What is captured, saved or made a plain model follows by itself.
        """
        if self._origin is not None:
            self._origin.follow(self)

    @property
    def changes(self) -> object:
        """What takes back the changes that are in place, another object for others; None where there are none."""
        return self._changes

    @property
    def is_parallelized(self) -> bool:
        """Whether the changes of `parallelize` are in place."""
        return self._changes is not None

    def parallelize(self, *, for_inference: bool = False) -> Self:
        """Check the configuration against the model, and make the changes its family and the configuration ask for.

        Executors do this by themselves while they compile. `deparallelize` takes every change back.

        Raises:
            IncompatibleIPUConfigError: `layers_per_ipu` does not add up to the model's layers, or the model cannot be
                serialized as it says.
            EditError: a source edit of the family does not fit the installed upstream.
        """
        self.deparallelize()
        self.follow()
        config = self._execution_config(for_inference=for_inference)
        num_layers = count_layers(self, self.layout_patterns)
        self.refuse_no_layers(num_layers, config)
        # Where only the graph tells how many there are, a run that captures it checks them.
        layers = None if num_layers is None else config.expand_layers(num_layers)
        with CAPTURING, contextlib.ExitStack() as changes:
            targets = self.family.rewrites if self.family else ()
            own = (serialized_vocabulary, packed_examples, masked_token_head)
            for rewrite in (*own, *map(load, targets)):
                changes.enter_context(rewrite(adapted(self), config))
            changes.enter_context(edited(self, edits_of(self.family.edits if self.family else edits_within(self))))
            for rewrite in self._rewrites:  # around what is the model by then
                changes.enter_context(rewrite(adapted(self), config))
            self._changes = changes.pop_all()
        self._parallelized_as = config
        if layers is not None:
            logger.info("%s: layers on IPUs %s", type(self).__name__, list(layer_ipus(layers)))
        return self

    def deparallelize(self) -> Self:
        """Take back what `parallelize` changed; harmless when nothing is."""
        changes, self._changes = self._changes, None
        self._parallelized_as = None
        if changes is not None:
            with CAPTURING:
                changes.close()
        return self

    @contextlib.contextmanager
    def parallelized(self, *, for_inference: bool = False) -> Iterator[Self]:
        """Be parallelized inside the block, and afterwards as before."""
        before = self._parallelized_as
        if before is not None and before == self._execution_config(for_inference=for_inference):
            yield self
            return
        with CAPTURING:
            self.parallelize(for_inference=for_inference)
            try:
                yield self
            finally:
                self.deparallelize()
                if before is not None:
                    self.parallelize(for_inference=before.inference)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as upstream's `generate` does, in steps of static shapes.

        The first call fixes the batch, the number of beams and the longest sequence; make a `generation_model` to
        choose them, or to have several.

        Raises:
            TypeError: a model without a language-model head.
            CacheError, GenerationModeError: as `Generator.generate`.
        """
        can_generate = getattr(self, "can_generate", None)
        if can_generate is None or not can_generate():
            raise TypeError(f"`{type(self).__name__}` has no language-model head: it cannot generate")
        if self._generator is None:
            # By name: generation is made of executors, which are made of models.
            self._generator = load("ipu_core.generation.generator:generation_model")(self)
        return self._generator.generate(*args, **kwargs)

    def to_transformers(self) -> Any:
        """Return a view of the plain transformers class over the same modules and tensors, without any rewrite."""
        with self.plain():
            return view(self, self.plain_class())

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a plain transformers checkpoint, `ipu_config.json` and a model card; `kwargs` are upstream's.

        The card, `README.md`, says how the model was cut and how to load it; one that somebody wrote stays.

        Raises:
            TypeError: `save_directory` is no path, or the model is none of transformers.
            CheckpointError: this process has a part of the model, see `ipu_core.checkpoints.read_lazily`.
        """
        refuse_other_types({"save_directory": save_directory}, (str, os.PathLike), instead="a directory")
        if not hasattr(self.plain_class(), "save_pretrained"):
            raise TypeError(
                f"`{self.plain_class().__name__}` is no transformers model, and has no `save_pretrained`: save its "
                "`state_dict()`, or a published format with `ipu_core.checkpoints.save_checkpoint`"
            )
        refuse_unread(self, "write it with `executor.save_pretrained(folder)`, on all ranks")
        with self.plain():
            self.to_transformers().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True) and self._ipu_config is not None:
            self._ipu_config.save_pretrained(save_directory)
            if not hasattr(self, "peft_config"):  # PEFT writes a card of its own
                places = layers_on_ipus(self._ipu_config.for_training(), count_layers(self, self.layout_patterns))
                write_card(save_directory, self.plain_class(), self._ipu_config, places=places)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does; `ipu_config.json` is read where a local checkpoint has one.

        Pass ``ipu_config=`` to use another.
        """
        ipu_config = kwargs.pop("ipu_config", None)
        if ipu_config is None and os.path.isfile(os.path.join(str(pretrained_model_name_or_path), IPU_CONFIG_NAME)):
            ipu_config = IPUConfig.from_pretrained(pretrained_model_name_or_path)
        loaded = cls.plain_class().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        pipelined = view(model, cls)
        if ipu_config is not None:
            pipelined.ipu_config = ipu_config
        return (pipelined, *info) if info else pipelined

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Be deparallelized inside the block, and afterwards as before."""
        if self._changes is None:
            self.follow()
            yield
            return
        before = self._parallelized_as
        with CAPTURING:
            self.deparallelize()
            self.follow()
            try:
                yield
            finally:
                if before is not None:
                    self.parallelize(for_inference=before.inference)

    def refuse_no_layers(self, num_layers: int | None, config: ExecutionConfig) -> None:
        """Refuse several IPUs where there is nothing to cut at.

        Raises:
            LayoutError: the model has no layers.
        """
        if num_layers == 0 and config.ipus_per_replica > 1:
            name, number = config.attribute("ipus_per_replica"), config.ipus_per_replica
            raise LayoutError(f"{explain_no_list(self.to_transformers())}; or run it on one IPU (`{name}={number}`)")

    def _execution_config(self, *, for_inference: bool) -> ExecutionConfig:
        return self.ipu_config.for_inference() if for_inference else self.ipu_config.for_training()


_CONTAINERS = (dict, OrderedDict, set)


def view(model: torch.nn.Module, cls: type[Any]) -> Any:
    """Return an object of class `cls` over the modules, parameters and buffers of `model`."""
    made: Any = cls.__new__(cls)  # type: ignore[call-overload]
    state = {name: value for name, value in vars(model).items() if name not in vars(PipelineMixin)}
    # Containers are copied so that registering something on the view leaves the model as it is. Those of a class of
    # their own, such as a frozen configuration, nobody registers anything in.
    made.__dict__.update({k: v.copy() if type(v) in _CONTAINERS else v for k, v in state.items()})
    if isinstance(made, PreTrainedModel):
        # The constructor did this for the original class; it makes `output_hidden_states` work.
        record_outputs(made)
    return made


class Origin:
    """The model that a view was made of, and how it was when the view last followed it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._seen: dict[str, dict[str, Any]] = self._now()

    def follow(self, made: torch.nn.Module) -> None:
        """Make the changes to a view that were made to the model: attributes, and entries of torch's tables."""
        now = self._now()
        for table, entries in now.items():
            before, own = self._seen.get(table, {}), vars(made)[table] if table else vars(made)
            for name in [n for n in {**entries, **before} if entries.get(n, _MISSING) is not before.get(n, _MISSING)]:
                if name in entries:
                    own[name] = entries[name]
                else:
                    own.pop(name, None)
        self._seen = now

    def __reduce__(self) -> tuple[Any, ...]:
        """Be nothing in a copy: it has tensors of its own, and follows nobody."""
        return type(None), ()

    def _now(self) -> dict[str, dict[str, Any]]:
        state = vars(self.model)
        tables = {name: dict(value) for name, value in state.items() if name in TABLES}
        others = {n: v for n, v in state.items() if n not in OF_TORCH and n not in vars(PipelineMixin)}
        return {**tables, "": others}


_MISSING = object()
