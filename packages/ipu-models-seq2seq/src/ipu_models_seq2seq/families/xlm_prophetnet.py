# SPDX-License-Identifier: Apache-2.0
"""XLM-ProphetNet, the architecture in `architectures`: the classes of ProphetNet that an auto class makes."""

from __future__ import annotations

import dataclasses

from .prophetnet import PROPHETNET

XLM_PROPHETNET = dataclasses.replace(
    PROPHETNET,
    model_type="xlm-prophetnet",
    plain_in="ipu_models_seq2seq.architectures.xlm_prophetnet",
    models=("XLMProphetNetModel", "XLMProphetNetForConditionalGeneration", "XLMProphetNetForCausalLM"),
)
