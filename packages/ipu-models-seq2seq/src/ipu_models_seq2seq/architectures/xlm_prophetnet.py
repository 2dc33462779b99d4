# SPDX-License-Identifier: Apache-2.0
"""XLM-ProphetNet: ProphetNet under the name that its multilingual checkpoints have.

Parameters are named as in transformers up to 4.57, whose checkpoints load.

Source: Qi et al., "ProphetNet: Predicting Future N-gram for Sequence-to-Sequence Pre-training", arXiv 2001.04063.
"""

from __future__ import annotations

from transformers.models.prophetnet import configuration_prophetnet, modeling_prophetnet


class XLMProphetNetConfig(configuration_prophetnet.ProphetNetConfig):
    """The configuration of an XLM-ProphetNet; all of it is as in `ProphetNetConfig`.

    ::

        config = XLMProphetNetConfig(num_encoder_layers=6, num_decoder_layers=6)
    """

    model_type = "xlm-prophetnet"


class XLMProphetNetPreTrainedModel(modeling_prophetnet.ProphetNetPreTrainedModel):
    """What all XLM-ProphetNet models have in common."""

    config: XLMProphetNetConfig
    config_class = XLMProphetNetConfig


class XLMProphetNetEncoder(XLMProphetNetPreTrainedModel, modeling_prophetnet.ProphetNetEncoder):
    """The encoder."""


class XLMProphetNetDecoder(XLMProphetNetPreTrainedModel, modeling_prophetnet.ProphetNetDecoder):
    """The decoder."""


class XLMProphetNetModel(XLMProphetNetPreTrainedModel, modeling_prophetnet.ProphetNetModel):
    """Encoder and decoder."""


class XLMProphetNetForConditionalGeneration(
    XLMProphetNetPreTrainedModel, modeling_prophetnet.ProphetNetForConditionalGeneration
):
    """XLM-ProphetNet that writes what belongs to a text."""


class XLMProphetNetForCausalLM(XLMProphetNetPreTrainedModel, modeling_prophetnet.ProphetNetForCausalLM):
    """The decoder as a language model."""
