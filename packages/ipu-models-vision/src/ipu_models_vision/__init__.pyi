# SPDX-License-Identifier: Apache-2.0
"""Written by `ipu stub ipu_models_vision`."""

from ipu_core import PipelineMixin
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ConvNextBackbone,
    ConvNextForImageClassification,
    ConvNextModel,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

class PipelinedCLIPForImageClassification(PipelineMixin, CLIPForImageClassification):
    """`CLIPForImageClassification` of the family `clip`, pipelined."""

class PipelinedCLIPModel(PipelineMixin, CLIPModel):
    """`CLIPModel` of the family `clip`, pipelined."""

class PipelinedCLIPTextModel(PipelineMixin, CLIPTextModel):
    """`CLIPTextModel` of the family `clip_text_model`, pipelined."""

class PipelinedCLIPTextModelWithProjection(PipelineMixin, CLIPTextModelWithProjection):
    """`CLIPTextModelWithProjection` of the family `clip_text_model`, pipelined."""

class PipelinedCLIPVisionModel(PipelineMixin, CLIPVisionModel):
    """`CLIPVisionModel` of the family `clip_vision_model`, pipelined."""

class PipelinedCLIPVisionModelWithProjection(PipelineMixin, CLIPVisionModelWithProjection):
    """`CLIPVisionModelWithProjection` of the family `clip_vision_model`, pipelined."""

class PipelinedConvNextBackbone(PipelineMixin, ConvNextBackbone):
    """`ConvNextBackbone` of the family `convnext`, pipelined."""

class PipelinedConvNextForImageClassification(PipelineMixin, ConvNextForImageClassification):
    """`ConvNextForImageClassification` of the family `convnext`, pipelined."""

class PipelinedConvNextModel(PipelineMixin, ConvNextModel):
    """`ConvNextModel` of the family `convnext`, pipelined."""

class PipelinedLxmertForPreTraining(PipelineMixin, LxmertForPreTraining):
    """`LxmertForPreTraining` of the family `lxmert`, pipelined."""

class PipelinedLxmertForQuestionAnswering(PipelineMixin, LxmertForQuestionAnswering):
    """`LxmertForQuestionAnswering` of the family `lxmert`, pipelined."""

class PipelinedLxmertModel(PipelineMixin, LxmertModel):
    """`LxmertModel` of the family `lxmert`, pipelined."""

class PipelinedViTForImageClassification(PipelineMixin, ViTForImageClassification):
    """`ViTForImageClassification` of the family `vit`, pipelined."""

class PipelinedViTForMaskedImageModeling(PipelineMixin, ViTForMaskedImageModeling):
    """`ViTForMaskedImageModeling` of the family `vit`, pipelined."""

class PipelinedViTModel(PipelineMixin, ViTModel):
    """`ViTModel` of the family `vit`, pipelined."""
