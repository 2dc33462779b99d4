# SPDX-License-Identifier: Apache-2.0
"""Small models of the tests' own, and one thread a test process."""

from __future__ import annotations

import pytest
import torch
from ipu_core.plugins import registry


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def no_plugins(monkeypatch):
    """Be where no plugin is installed."""
    empty = registry.Registry(())
    monkeypatch.setattr("ipu_core.plugins.registry.installed", lambda: empty)


@pytest.fixture
def pool(monkeypatch):
    """Have a pool of IPUs of the test's own."""
    from ipu_core.migration.poptorch import devices

    made = devices.Pool(64)
    monkeypatch.setattr("ipu_core.migration.poptorch.device_side.POOL", made)
    return made
