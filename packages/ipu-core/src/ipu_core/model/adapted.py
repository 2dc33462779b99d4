# SPDX-License-Identifier: Apache-2.0
"""Pipelined views of PEFT models: the transformers model in the middle is pipelined, and what is around it follows."""

from __future__ import annotations

import os
from types import MethodType
from typing import Any, Self

import torch

from ..config.ipu_config import IPU_CONFIG_NAME, IPUConfig
from ..peft import adapted, adapted_path, refuse_other_kinds
from .pipelined import Origin, PipelineMixin, pipelined_class, to_pipelined, view


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
        """Give a view of the PEFT class over the same modules and tensors, without any rewrite."""
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
    """Give an object of class `cls` over a PEFT model, and views of what is around `inner`, which is in the middle."""
    made = within = view(model, cls)
    *way, last = adapted_path(model).split(".")
    for name in way:
        outer, within = within, view(within._modules[name], type(within._modules[name]))
        outer._modules[name] = within
    within._modules[last] = inner
    # PEFT keeps methods of the model in the middle, which would be those of another view of it.
    for name, value in vars(made).items():
        if isinstance(value, MethodType) and value.__self__ is adapted(model):
            vars(made)[name] = MethodType(value.__func__, inner)
    return made
