# SPDX-License-Identifier: Apache-2.0
"""Every class this package declares does what a user relies on: equality with the plain model, and all the kit asks."""

import pytest
from ipu_core.testing import conformance, exhaustive
from ipu_models_vision.plugin import FAMILIES

ALWAYS = ("light", "declared", "exact", "reversible", "generates")
test_families = pytest.mark.turns(5)(conformance(*FAMILIES, checks=ALWAYS))
test_inference = pytest.mark.turns(5)(conformance(*FAMILIES, checks=["infers"]))
test_every_split = exhaustive(*FAMILIES)
