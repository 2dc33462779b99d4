# SPDX-License-Identifier: Apache-2.0
"""Pipelined LXMERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
)


class PipelinedLxmertModel(PipelineMixin, LxmertModel):
    """LXMERT without a head."""


class PipelinedLxmertForPreTraining(PipelineMixin, LxmertForPreTraining):
    """LXMERT with the heads it is pre-trained with."""


class PipelinedLxmertForQuestionAnswering(PipelineMixin, LxmertForQuestionAnswering):
    """LXMERT that answers questions about images."""
