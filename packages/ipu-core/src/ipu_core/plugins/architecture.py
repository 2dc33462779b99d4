# SPDX-License-Identifier: Apache-2.0
"""`Architecture`: a model type that transformers does not know, as strings, so that declaring it imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UPSTREAM = "transformers"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model type that a package brings to transformers, or another name for one transformers has.

    ::

        MINE = Architecture(
            model_type="mine",
            config="my_package.mine:MyConfig",
            models={
                "AutoModel": "my_package.mine:MyModel",
                "AutoModelForMaskedLM": "my_package.mine:MyForMaskedLM",
            },
            tokenizer="transformers:BertTokenizer",
        )
        CODE_LLAMA = Architecture(model_type="code_llama", config="transformers:LlamaConfig")

    A plugin returns them from the hook `ipu_architectures`; `register_architectures` takes them from anybody.

    Attributes:
        model_type: the name in `config.json`, and what `AutoConfig.for_model` takes.
        config: "module:Class" of its configuration.
        models: "module:Class" of its models, by the name of the auto class that makes each. Empty for another name of
            a configuration that transformers has, whose models it has too.
        tokenizer: "module:Class" of its tokenizer; "" for none.

    Raises:
        TypeError: a value is of another kind.
        ValueError: a target is not "module:Class", or a key of `models` is no auto class.
    """

    model_type: str
    config: str
    models: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping):
            raise TypeError(
                f"`Architecture.models={self.models!r}` is a {type(self.models).__name__}: give a dict of auto classes "
                "and 'module:Class'"
            )
        for target in (self.config, *self.models.values(), *filter(None, [self.tokenizer])):
            _refuse_other_target(self.model_type, target)
        if (self.models or self.tokenizer) and self.config.partition(":")[0].partition(".")[0] == UPSTREAM:
            raise ValueError(
                f"`{self.config}` of `{self.model_type}` is a configuration of transformers, which has its models: "
                "leave `models` and `tokenizer` out"
            )
        for auto in self.models:
            if not auto.startswith("AutoModel"):
                raise ValueError(
                    f"`{auto}` in `Architecture.models` of `{self.model_type}` is no auto class of models: give one "
                    "such as 'AutoModelForMaskedLM'"
                )


def _refuse_other_target(model_type: str, target: str) -> None:
    if not isinstance(target, str):
        raise TypeError(f"{target!r} in `Architecture` of `{model_type}` is a {type(target).__name__}: give a str")
    module, _, name = target.partition(":")
    if not (module and name):
        raise ValueError(f"`{target}` in `Architecture` of `{model_type}` names no class: give 'module:Class'")
