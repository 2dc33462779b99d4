# SPDX-License-Identifier: Apache-2.0
"""Every class this package declares does what a user relies on: equality with the plain model, and all the kit asks."""

from ipu_core.testing import conformance
from ipu_models_bert.plugin import FAMILIES

# Longformer's softmax is in float32 upstream, and so is the loss of ELECTRA's discriminator.
test_families = conformance(*FAMILIES, single_precision=("longformer", "ElectraForPreTraining"))
