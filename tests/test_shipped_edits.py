# SPDX-License-Identifier: Apache-2.0
"""Every edit our packages declare matches the installed transformers, and its code runs."""

import pytest
from ipu_core.plugins.registry import installed
from ipu_core.rewrites.edit_review import APPLIES, review


@pytest.mark.turns(1)
def test_every_declared_edit_applies_and_runs():
    reviews = list(review(installed().plugins))
    assert reviews
    assert not [(r.edit.target, r.outcome, r.note) for r in reviews if r.outcome != APPLIES]
