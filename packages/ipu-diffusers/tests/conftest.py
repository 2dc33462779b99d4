# SPDX-License-Identifier: Apache-2.0
"""Pipelines of tiny random models, made once."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
from ipu_diffusers.tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(diffusers.DiffusionPipeline, "_progress_bar_config", {"disable": True}, raising=False)


@pytest.fixture(scope="session")
def plain():
    """Make a plain pipeline of a class once a session."""
    made: dict[str, Any] = {}

    def pipeline(name: str = "StableDiffusionPipeline") -> Any:
        if name not in made:
            made[name] = tiny_pipeline(getattr(diffusers, name))
        return made[name]

    return pipeline
