# SPDX-License-Identifier: Apache-2.0
"""The model card of a pipelined model's checkpoint: how it was cut, with which versions, and how to load it again."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.execution_config import ExecutionConfig
from ..config.ipu_config import IPUConfig
from ..partition.plan import Plan
from ..upstream import CORE, NAMES

CARD_NAME = "README.md"
# What is in a card that may be written anew.
MARK = "<!-- written by ipu-core: without this line it stays as it is -->"

_CARD = """\
---
library_name: transformers
tags:
- ipu-core
---
{mark}

# {name}

{sections}"""
_SECTIONS = """\
## The pipeline

`{config}`

```
{places}
```

Written by {versions}.

## Load it again

The checkpoint is a plain one of transformers, with `ipu_config.json` beside it.

```python
from ipu_core import IPUConfig, inference_model, to_pipelined
from ipu_core.samples import sample_batch
from {module} import {name}

folder = "."  # where this file is
plain = {name}.from_pretrained(folder).eval()
batch = sample_batch(plain, batch_size={rows}, length=16, labels=False)  # or rows of your own
print(plain(**batch))

executor = inference_model(to_pipelined(plain, IPUConfig.from_pretrained(folder)))
print(executor(**batch))
```
"""


def sections_of(plain: type[Any], ipu_config: IPUConfig, *, places: str) -> str:
    """Return what a card says of a pipeline: configuration, where layers sit, versions, and code that loads it.

    Args:
        plain: the transformers class.
        ipu_config: how it ran.
        places: a plan, or `layers_on_ipus`, as text.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (CORE, *NAMES))
    module = plain.__module__
    return _SECTIONS.format(
        config=ipu_config,
        places=places,
        versions=versions,
        name=plain.__name__,
        module="transformers" if module.startswith("transformers.") else module,
        rows=ipu_config.batch_size_factor(for_inference=True),
    )


def layers_on_ipus(config: ExecutionConfig, num_layers: int | None) -> str:
    """Return which layers sit on which IPU, a line an IPU; what is known without running the model.

    Args:
        config: of training or of inference.
        num_layers: of the model; None where only a run can tell.
    """
    if config.layers_per_ipu == "auto" or num_layers is None:
        return f"layers_per_ipu={_listed(config.layers_per_ipu)} on {config.ipus_per_replica} IPUs"
    lines, first = [], 0
    for ipu, number in enumerate(config.expand_layers(num_layers)):
        last = first + number - 1
        shown = "no layer" if not number else f"layer {first}" if number == 1 else f"layers {first}-{last}"
        lines.append(f"IPU {ipu}: {shown}")
        first += number
    return "\n".join(lines)


def _listed(layers: str | Sequence[int]) -> str:
    return layers if isinstance(layers, str) else str(list(layers))


def write_card(folder: str | os.PathLike[str], plain: type[Any], ipu_config: IPUConfig, *, places: Plan | str) -> None:
    """Write the card of a checkpoint, unless there is one that somebody else wrote."""
    path = Path(folder) / CARD_NAME
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    sections = sections_of(plain, ipu_config, places=str(places))
    path.write_text(_CARD.format(mark=MARK, name=plain.__name__, sections=sections), encoding="utf-8")
