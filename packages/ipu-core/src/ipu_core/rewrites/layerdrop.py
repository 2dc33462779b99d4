# SPDX-License-Identifier: Apache-2.0
"""LayerDrop as a traced choice: every layer runs, and a random value picks its output or its input.

Upstream branches on a random value, which one static graph cannot. The value is drawn in the same place, so that the
same seed drops the same layers where a layer draws no random numbers of its own. A dropped layer has gradients of zero,
where upstream's has none, and `output_hidden_states` has what it computed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from .source_edits import Edit

REASON = "LayerDrop is a branch on a random value: every layer runs, and the value picks its output or its input"


def layerdrop(
    target: str,
    *,
    choice: str,
    call: str,
    digest: str,
    versions: str,
    probe: Mapping[str, Any],
    guard: str | None = None,
    after: str | None = None,
    rate: str = "self.layerdrop",
    state: str = "hidden_states",
) -> Edit:
    """Return the edit of one loop over layers.

    ::

        layerdrop(
            "transformers.models.bart.modeling_bart:BartDecoder.forward",
            choice="if self.training and self.layerdrop > 0.0: ...",
            call="hidden_states = decoder_layer(hidden_states, **kwargs)",
            digest="0123456789abcdef",
            versions=">=5.23,<5.25",
            probe={"decoder_layerdrop": 0.5},
        )

    Args:
        target: the method with the loop.
        choice: its statements that decide whether a layer is dropped.
        call: its statements that run a layer.
        digest: as for an `Edit`.
        versions: as for an `Edit`.
        probe: a configuration that drops layers.
        guard: the condition `call` is under.
        after: statements that follow and have nothing left to do.
        rate: the expression of the share of layers that are dropped.
        state: the name of what a layer takes and gives.
    """
    chosen = (
        f"layer_input = {state}\nis_dropped = torch.rand([]) < {rate} if self.training and {rate} > 0.0 else None\n"
    )
    picked = (
        f"if is_dropped is not None:\n    {state} = torch.where(is_dropped.to({state}.device), layer_input, {state})\n"
    )
    call = textwrap.dedent(call).strip("\n") + "\n"
    guarded = f"if {guard}:\n{textwrap.indent(call, '    ')}" if guard else call
    return Edit(
        target=target,
        changes=((choice, chosen), (guarded, call + picked), *([(after, "")] if after else [])),
        digest=digest,
        reason=REASON,
        versions=versions,
        probe=probe,
    )
