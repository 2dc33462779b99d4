# SPDX-License-Identifier: Apache-2.0
"""Every class this package declares does what a user relies on: equality with the plain model, and all the kit asks."""

from ipu_core.testing import conformance
from ipu_models_bert.plugin import FAMILIES

test_families = conformance(*FAMILIES)
