# SPDX-License-Identifier: Apache-2.0
"""The table of supported models: a row a family, a column a head, from what the plugins declare."""

from __future__ import annotations

from collections.abc import Sequence

from ..plugins.family import Family
from ..plugins.manager import Plugin

# Some classes are named otherwise than the rest of their kind.
_SAME = {"LMHeadModel": "CausalLM", "ModelWithLMHead": "CausalLM", "MTModel": "ConditionalGeneration"}
YES, NO = "●", ""


def models_table(plugins: Sequence[Plugin]) -> str:
    """Write the families and heads of plugins as Markdown, a table for each plugin that declares any."""
    return "\n\n".join(_table(plugin) for plugin in plugins if plugin.families)


def _table(plugin: Plugin) -> str:
    heads = {family.model_type: _heads(family) for family in plugin.families}
    columns = sorted({head for found in heads.values() for head in found}, key=_order(plugin.families).__getitem__)
    rows = [[f"**{plugin.name}**", *columns], ["---", *(":-:" for _ in columns)]]
    for family in plugin.families:
        rows.append([f"`{family.model_type}`", *(YES if c in heads[family.model_type] else NO for c in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _order(families: Sequence[Family]) -> dict[str, int]:
    """Return each head its column: that of the family with the most heads first, what it lacks after them."""
    by_size = sorted(families, key=lambda family: -len(family.models))
    found = dict.fromkeys(head for family in by_size for head in _heads(family))
    return {head: i for i, head in enumerate(found)}


def _heads(family: Family) -> list[str]:
    base = min((name for name in family.models if name.endswith("Model")), key=len, default="")
    names = [name.removeprefix(base.removesuffix("Model")) for name in family.models]
    return [_SAME.get(name, name.removeprefix("For")) for name in names]
