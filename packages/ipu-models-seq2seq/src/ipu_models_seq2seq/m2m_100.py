# SPDX-License-Identifier: Apache-2.0
"""Pipelined M2M-100: every class transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import M2M100ForConditionalGeneration, M2M100Model


class PipelinedM2M100Model(PipelineMixin, M2M100Model):
    """M2M-100 without a head."""


class PipelinedM2M100ForConditionalGeneration(PipelineMixin, M2M100ForConditionalGeneration):
    """M2M-100 that translates."""
