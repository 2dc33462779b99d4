# SPDX-License-Identifier: Apache-2.0
"""Every class this package declares does what a user relies on: equality with the plain model, and all the kit asks."""

import pytest
from ipu_core.testing import conformance, exhaustive
from ipu_models_seq2seq.plugin import FAMILIES

ALWAYS = ("light", "declared", "exact", "reversible", "generates")
# LED's softmax is in float32 upstream.
SINGLE_PRECISION = ("led",)

test_families = pytest.mark.turns(5)(conformance(*FAMILIES, single_precision=SINGLE_PRECISION, checks=ALWAYS))
test_inference = pytest.mark.turns(5)(conformance(*FAMILIES, checks=["infers"]))
test_every_split = exhaustive(*FAMILIES, single_precision=SINGLE_PRECISION)
