# SPDX-License-Identifier: Apache-2.0
"""Pipelined HuBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
)


class PipelinedHubertModel(PipelineMixin, HubertModel):
    """HuBERT without a head."""


class PipelinedHubertForCTC(PipelineMixin, HubertForCTC):
    """HuBERT that transcribes speech, by connectionist temporal classification."""


class PipelinedHubertForSequenceClassification(PipelineMixin, HubertForSequenceClassification):
    """HuBERT that classifies sequences, or regresses."""
