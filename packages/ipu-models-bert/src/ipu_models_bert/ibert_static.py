# SPDX-License-Identifier: Apache-2.0
"""What makes training I-BERT a static graph, in floating point: a source edit of how it collects ranges.

Quantized training has autograd functions of its own, and is refused.
"""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

IBERT = "transformers.models.ibert.quant_modules"

EDITS = (
    Edit(
        target=f"{IBERT}:QuantAct.forward",
        changes=(
            ("x_act.data", "x_act.detach()", 2),
            (
                """
                assert x_max.isnan().sum() == 0 and x_min.isnan().sum() == 0, (
                    "NaN detected when computing min/max of the activation"
                )
                if self.x_min.min() > -1.1e-5 and self.x_max.max() < 1.1e-5:
                    self.x_min = self.x_min + x_min
                    self.x_max = self.x_max + x_max
                elif self.act_range_momentum == -1:
                    self.x_min = torch.min(self.x_min, x_min)
                    self.x_max = torch.max(self.x_max, x_max)
                else:
                    self.x_min = self.x_min * self.act_range_momentum + x_min * (1 - self.act_range_momentum)
                    self.x_max = self.x_max * self.act_range_momentum + x_max * (1 - self.act_range_momentum)
                """,
                """
                is_first = (self.x_min.min() > -1.1e-5) & (self.x_max.max() < 1.1e-5)
                momentum = self.act_range_momentum
                later_min, later_max = (
                    (torch.min(self.x_min, x_min), torch.max(self.x_max, x_max))
                    if momentum == -1
                    else (
                        self.x_min * momentum + x_min * (1 - momentum),
                        self.x_max * momentum + x_max * (1 - momentum),
                    )
                )
                first_min, first_max = self.x_min + x_min, self.x_max + x_max
                self.x_min.copy_(torch.where(is_first, first_min, later_min))
                self.x_max.copy_(torch.where(is_first, first_max, later_max))
                """,
            ),
        ),
        digest="064c4c9cbf3153e4",
        reason="whether a range is the first is read off its values: both are computed, and one is picked",
        versions=">=5.23,<5.25",
    ),
)
