# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints for architectures of one's own, by a declared correspondence of tensors.

::

    from ipu_core.checkpoints import Correspondence, Rule, load_checkpoint

    correspondence = Correspondence(
        rules=(
            Rule("wte.weight", "embedding.weight"),
            Rule("h.*.mlp.c_fc.weight", "blocks.*.feed_forward.inner.weight", Transpose()),
        )
    )
    load_checkpoint(model, "folder", correspondence)
"""

from .checkpoint import Checkpoint
from .conversion import TensorSpec
from .correspondence import Correspondence, Rule
from .files import open_checkpoint
from .lazy import read_lazily
from .loading import load_checkpoint
from .matching import Match, checked_matches
from .operations import Divide, Join, PermuteRotary
from .saving import published_tensors, save_checkpoint

__all__ = [
    "Checkpoint",
    "Correspondence",
    "Divide",
    "Join",
    "Match",
    "PermuteRotary",
    "Rule",
    "TensorSpec",
    "checked_matches",
    "load_checkpoint",
    "open_checkpoint",
    "published_tensors",
    "read_lazily",
    "save_checkpoint",
]
