# SPDX-License-Identifier: Apache-2.0
"""`Correspondence`: which tensors of a published checkpoint become which of a model, declared as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers.core_model_loading import ConversionOps

from .patterns import num_stars

Names = tuple[str, ...]


class Rule:
    """One line of a correspondence.

    ::

        Rule("h.*.ln_1.bias", "blocks.*.attention_norm.bias")
        Rule("h.*.attn.c_attn.bias", ("blocks.*.query.bias", "blocks.*.key.bias", "blocks.*.value.bias"), Chunk())

    Args:
        theirs: pattern of a name in the checkpoint, or several, see `patterns`.
        ours: pattern of a name in the model, or several.
        operations: what makes one of the other, in this order; each is a `ConversionOps` of transformers with a
            `reverse_op`.

    Raises:
        ValueError: the sides differ in their numbers ``*``, or nothing joins or divides several tensors.
    """

    def __init__(self, theirs: str | Names, ours: str | Names, *operations: ConversionOps) -> None:
        self.theirs = (theirs,) if isinstance(theirs, str) else tuple(theirs)
        self.ours = (ours,) if isinstance(ours, str) else tuple(ours)
        self.operations = operations
        self._refuse_other_forms()

    def inverse(self) -> Rule:
        """Return the rule from the model to the checkpoint."""
        return Rule(self.ours, self.theirs, *(operation.reverse_op for operation in reversed(self.operations)))

    def __repr__(self) -> str:
        return f"Rule({', '.join(map(repr, (self.theirs, self.ours, *self.operations)))})"

    def _refuse_other_forms(self) -> None:
        stars = {num_stars(pattern) for pattern in (*self.theirs, *self.ours)}
        if len(stars) != 1:
            raise ValueError(f"{self!r} has patterns with {sorted(stars)} numbers `*`: give each the same")
        if min(len(self.theirs), len(self.ours)) != 1:
            raise ValueError(
                f"{self!r} is of {len(self.theirs)} tensors and {len(self.ours)}: one side of a rule is one tensor: "
                "make several rules"
            )
        if len(self.theirs) + len(self.ours) > 2 and not self.operations:
            raise ValueError(f"{self!r} says nothing of how several tensors become one: give it `Chunk()`, say")


@dataclass(frozen=True, kw_only=True)
class Correspondence:
    """Which tensors of a published checkpoint become which of a model, and how.

    `print` shows it as a table.

    Attributes:
        rules: every tensor of either side is in one of them, once.
        ignored: patterns of names in the checkpoint that are no weights, such as masks; they may be missing.
        copies: patterns of names in the checkpoint that repeat another one, such as a tied head; they may be missing,
            and are compared where they are there.
        split: patterns of names of which each of several `consolidated.*.pth` has a part, and the dimension these are
            parts along: 0 of a layer that is parallel in its columns, 1 in its rows. Others are whole in each file.
    """

    rules: tuple[Rule, ...]
    ignored: Names = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, int] = field(default_factory=dict)

    def inverse(self) -> Correspondence:
        """Return the correspondence from the model to the published format."""
        return Correspondence(rules=tuple(rule.inverse() for rule in self.rules))

    def __str__(self) -> str:
        rows = [(", ".join(rule.theirs), ", ".join(rule.ours), _steps(rule), self._dims(rule)) for rule in self.rules]
        rows += [(name, "-", "", "") for name in self.ignored]
        rows += [(name, "-", f"= {original}", "") for name, original in self.copies.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
        return "\n".join("  ".join(map(str.ljust, row, (*widths, 0))).rstrip() for row in rows)

    def _dims(self, rule: Rule) -> str:
        """Return the dimension that parts of a rule's tensors are along, for people."""
        found = dict.fromkeys(str(self.split[name]) for name in rule.theirs if name in self.split)
        return f"parts along {', '.join(found)}" if found else ""


def _steps(rule: Rule) -> str:
    return ", ".join(map(repr, rule.operations))
