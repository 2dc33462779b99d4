# SPDX-License-Identifier: Apache-2.0
"""`to_pipelined`: a model of a pipelined class, declared by a plugin or made here, PEFT's models too."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Hashable, Iterable
from types import MethodType
from typing import Any, Self, TypeVar

import torch

from .._torch import modules_of
from ..config.ipu_config import IPU_CONFIG_NAME, IPUConfig
from ..partition.layout import count_layers
from ..peft import adapted, adapted_path, has_adapters, refuse_other_kinds
from ..plugins.family import Family, load
from ..plugins.registry import Claim, claim_of
from ..rewrites import Rewrite
from ..upstream import warn_if_untested
from ..validation import refuse_other_types
from .mixin import Origin, PipelineMixin, view

logger = logging.getLogger(__name__)
ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def to_pipelined(
    model: ModuleT, ipu_config: IPUConfig, *, family: Family | None = None, rewrites: Iterable[Rewrite] = ()
) -> Any:
    """Return a pipelined model that shares every module and tensor of `model`; `model` itself is not touched.

    ::

        model = to_pipelined(BertForMaskedLM.from_pretrained("checkpoint"), IPUConfig(layers_per_ipu=[1, 2, 2, 1]))

    The class is the one a plugin declares for the model's class, or one made for it. The layout is the family's, or
    discovered when no plugin declares the architecture (the log says which).

    Args:
        model: a transformers model, or any module with a list of layers.
        ipu_config: how it runs as a pipeline.
        family: use this declaration rather than a plugin's.
        rewrites: more changes that `parallelize` makes, after those of the family; `loss_of(...)` is one.

    Raises:
        TypeError: the arguments are not a module, an `IPUConfig`, a `Family` and rewrites.
        PluginConflictError: two plugins claim the model's class.
        LayoutError: no plugin declares the model, it has no list of layers to cut at, and there are several IPUs.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: give a transformers model or another torch module")
    refuse_other_types({"family": family}, Family, instead="what a plugin declares, or None", optional=True)
    rewrites = _rewrites_of(rewrites)
    if isinstance(model, PipelineMixin):
        plain = model.to_transformers()
        family, rewrites = family or model._family, (*model._rewrites, *rewrites)
        made = to_pipelined(plain, ipu_config, family=family, rewrites=rewrites)
        made._origin = model._origin and Origin(model._origin.model)
        return made
    warn_if_untested()
    pipelined = pipelined_class(type(model)).from_transformers(model, ipu_config)
    pipelined._family = family or pipelined._family
    pipelined._rewrites = rewrites
    if pipelined.family is None:
        num_layers = count_layers(pipelined, None)
        for config in (ipu_config.for_training(), ipu_config.for_inference()):
            pipelined.refuse_no_layers(num_layers, config)
        count = "as many layers as run" if num_layers is None else f"{num_layers} layers"
        logger.info("no plugin declares %s: its layout is discovered, %s", type(model).__name__, count)
    return pipelined


def _rewrites_of(given: Any) -> tuple[Rewrite, ...]:
    """Return rewrites as a tuple, and refuse what is none."""
    rewrites = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(callable(rewrite) for rewrite in rewrites):
        raise TypeError(f"`rewrites={given!r}` is no collection of rewrites: give some, as `rewrites=[loss_of(...)]`")
    return rewrites


def pipelined_class(plain: Any) -> type[PipelineMixin]:
    """Return the pipelined class of a model class: the one a plugin declares, or one made for it."""
    claim = claim_of(plain)
    if claim is not None:
        declared = _load_class(claim)
        if declared.plain_class() is plain:
            return declared
    return made_class(plain)


@functools.cache
def made_class(plain: Hashable, *, module: str | None = None, doc: str | None = None) -> type[PipelineMixin]:
    """Make the pipelined class of a model class; of equal arguments it is the same class.

    Args:
        plain: the model class.
        module: the module that it can be imported from, where there is one; otherwise it has the plain class's.
        doc: its docstring.
    """
    assert isinstance(plain, type)
    mixin = AdaptedMixin if has_adapters(plain) else PipelineMixin
    body = {"__module__": module or plain.__module__, "__doc__": doc or f"`{plain.__name__}`, pipelined."}
    return type(f"Pipelined{plain.__name__}", (mixin, plain), body)


def _load_class(claim: Claim) -> type[PipelineMixin]:
    found = load(claim.target)
    if not (isinstance(found, type) and issubclass(found, PipelineMixin)):
        raise TypeError(f"plugin `{claim.plugin}` names `{claim.target}`, which is not a PipelineMixin class")
    return found


class AdaptedMixin(PipelineMixin):
    """Makes a PEFT class pipelined.

    ::

        model = to_pipelined(peft.get_peft_model(model, peft.LoraConfig(...)), ipu_config)

    Rewrites, edits and checks are those of the transformers model that the adapters are in, and reach its pipelined
    view alone. Adapters are the user's model's own: what training changes is in both.
    """

    @classmethod
    def from_transformers(cls, model: torch.nn.Module, ipu_config: IPUConfig) -> Self:
        """Make a pipelined model that shares every module and tensor of `model`.

        Raises:
            AdapterError: adapters of a kind that cannot be pipelined.
        """
        refuse_other_kinds(model)
        inner = adapted(model)
        if isinstance(inner, PipelineMixin):
            inner = inner.to_transformers()
        pipelined = _around(model, cls, pipelined_class(type(inner)).from_transformers(inner, ipu_config))
        pipelined.ipu_config = ipu_config
        pipelined._origin = Origin(model)
        return pipelined

    @property
    def origins(self) -> tuple[torch.nn.Module, ...]:
        """The models that `follow` looks at."""
        return (*super().origins, *adapted(self).origins)

    def follow(self) -> None:
        """Take over what was set on the user's model since, and on the one within."""
        super().follow()
        adapted(self).follow()

    def to_transformers(self) -> Any:
        """Return a view of the PEFT class over the same modules and tensors, without any rewrite."""
        with self.plain():
            return _around(self, self.plain_class(), adapted(self).to_transformers())

    @classmethod
    def from_pretrained(cls, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load adapters into `model` as PEFT does; `ipu_config.json` is read where their directory has one.

        Pass ``ipu_config=`` to use another.
        """
        ipu_config = kwargs.pop("ipu_config", None)
        if ipu_config is None and os.path.isfile(os.path.join(model_id, IPU_CONFIG_NAME)):
            ipu_config = IPUConfig.from_pretrained(model_id)
        return to_pipelined(cls.plain_class().from_pretrained(model, model_id, *args, **kwargs), ipu_config)


def _around(model: torch.nn.Module, cls: type[Any], inner: torch.nn.Module) -> Any:
    """Return a view of class `cls` over a PEFT model, with views of the modules around `inner`."""
    made = within = view(model, cls)
    *way, last = adapted_path(model).split(".")
    for name in way:
        outer, within = within, view(modules_of(within)[name], type(modules_of(within)[name]))
        modules_of(outer)[name] = within
    modules_of(within)[last] = inner
    # PEFT keeps methods of the model in the middle, which would be those of another view of it.
    for name, value in vars(made).items():
        if isinstance(value, MethodType) and value.__self__ is adapted(model):
            vars(made)[name] = MethodType(value.__func__, inner)
    return made
