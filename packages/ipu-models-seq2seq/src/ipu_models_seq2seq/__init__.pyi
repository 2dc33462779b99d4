# SPDX-License-Identifier: Apache-2.0
"""Written by `ipu stub ipu_models_seq2seq`."""

from ipu_core import PipelineMixin
from ipu_models_seq2seq.architectures.xlm_prophetnet import (
    XLMProphetNetForCausalLM,
    XLMProphetNetForConditionalGeneration,
    XLMProphetNetModel,
)
from transformers import (
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
    LEDForConditionalGeneration,
    LEDForQuestionAnswering,
    LEDModel,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    M2M100ForConditionalGeneration,
    M2M100Model,
    MarianForCausalLM,
    MarianModel,
    MarianMTModel,
    MBartForCausalLM,
    MBartForConditionalGeneration,
    MBartForQuestionAnswering,
    MBartForSequenceClassification,
    MBartModel,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    MT5ForQuestionAnswering,
    MT5ForSequenceClassification,
    MT5ForTokenClassification,
    MT5Model,
    NllbMoeForConditionalGeneration,
    NllbMoeModel,
    PegasusForCausalLM,
    PegasusForConditionalGeneration,
    PegasusModel,
    ProphetNetDecoder,
    ProphetNetEncoder,
    ProphetNetForCausalLM,
    ProphetNetForConditionalGeneration,
    ProphetNetModel,
    SwitchTransformersEncoderModel,
    SwitchTransformersForConditionalGeneration,
    SwitchTransformersModel,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    T5Model,
)

class PipelinedBartForCausalLM(PipelineMixin, BartForCausalLM):
    """`BartForCausalLM` of the family `bart`, pipelined."""

class PipelinedBartForConditionalGeneration(PipelineMixin, BartForConditionalGeneration):
    """`BartForConditionalGeneration` of the family `bart`, pipelined."""

class PipelinedBartForQuestionAnswering(PipelineMixin, BartForQuestionAnswering):
    """`BartForQuestionAnswering` of the family `bart`, pipelined."""

class PipelinedBartForSequenceClassification(PipelineMixin, BartForSequenceClassification):
    """`BartForSequenceClassification` of the family `bart`, pipelined."""

class PipelinedBartModel(PipelineMixin, BartModel):
    """`BartModel` of the family `bart`, pipelined."""

class PipelinedGPT2DoubleHeadsModel(PipelineMixin, GPT2DoubleHeadsModel):
    """`GPT2DoubleHeadsModel` of the family `gpt2`, pipelined."""

class PipelinedGPT2ForQuestionAnswering(PipelineMixin, GPT2ForQuestionAnswering):
    """`GPT2ForQuestionAnswering` of the family `gpt2`, pipelined."""

class PipelinedGPT2ForSequenceClassification(PipelineMixin, GPT2ForSequenceClassification):
    """`GPT2ForSequenceClassification` of the family `gpt2`, pipelined."""

class PipelinedGPT2ForTokenClassification(PipelineMixin, GPT2ForTokenClassification):
    """`GPT2ForTokenClassification` of the family `gpt2`, pipelined."""

class PipelinedGPT2LMHeadModel(PipelineMixin, GPT2LMHeadModel):
    """`GPT2LMHeadModel` of the family `gpt2`, pipelined."""

class PipelinedGPT2Model(PipelineMixin, GPT2Model):
    """`GPT2Model` of the family `gpt2`, pipelined."""

class PipelinedGPTNeoXForCausalLM(PipelineMixin, GPTNeoXForCausalLM):
    """`GPTNeoXForCausalLM` of the family `gpt_neox`, pipelined."""

class PipelinedGPTNeoXForQuestionAnswering(PipelineMixin, GPTNeoXForQuestionAnswering):
    """`GPTNeoXForQuestionAnswering` of the family `gpt_neox`, pipelined."""

class PipelinedGPTNeoXForSequenceClassification(PipelineMixin, GPTNeoXForSequenceClassification):
    """`GPTNeoXForSequenceClassification` of the family `gpt_neox`, pipelined."""

class PipelinedGPTNeoXForTokenClassification(PipelineMixin, GPTNeoXForTokenClassification):
    """`GPTNeoXForTokenClassification` of the family `gpt_neox`, pipelined."""

class PipelinedGPTNeoXModel(PipelineMixin, GPTNeoXModel):
    """`GPTNeoXModel` of the family `gpt_neox`, pipelined."""

class PipelinedLEDForConditionalGeneration(PipelineMixin, LEDForConditionalGeneration):
    """`LEDForConditionalGeneration` of the family `led`, pipelined."""

class PipelinedLEDForQuestionAnswering(PipelineMixin, LEDForQuestionAnswering):
    """`LEDForQuestionAnswering` of the family `led`, pipelined."""

class PipelinedLEDModel(PipelineMixin, LEDModel):
    """`LEDModel` of the family `led`, pipelined."""

class PipelinedLlamaForCausalLM(PipelineMixin, LlamaForCausalLM):
    """`LlamaForCausalLM` of the family `llama`, pipelined."""

class PipelinedLlamaForQuestionAnswering(PipelineMixin, LlamaForQuestionAnswering):
    """`LlamaForQuestionAnswering` of the family `llama`, pipelined."""

class PipelinedLlamaForSequenceClassification(PipelineMixin, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` of the family `llama`, pipelined."""

class PipelinedLlamaForTokenClassification(PipelineMixin, LlamaForTokenClassification):
    """`LlamaForTokenClassification` of the family `llama`, pipelined."""

class PipelinedLlamaModel(PipelineMixin, LlamaModel):
    """`LlamaModel` of the family `llama`, pipelined."""

class PipelinedM2M100ForConditionalGeneration(PipelineMixin, M2M100ForConditionalGeneration):
    """`M2M100ForConditionalGeneration` of the family `m2m_100`, pipelined."""

class PipelinedM2M100Model(PipelineMixin, M2M100Model):
    """`M2M100Model` of the family `m2m_100`, pipelined."""

class PipelinedMBartForCausalLM(PipelineMixin, MBartForCausalLM):
    """`MBartForCausalLM` of the family `mbart`, pipelined."""

class PipelinedMBartForConditionalGeneration(PipelineMixin, MBartForConditionalGeneration):
    """`MBartForConditionalGeneration` of the family `mbart`, pipelined."""

class PipelinedMBartForQuestionAnswering(PipelineMixin, MBartForQuestionAnswering):
    """`MBartForQuestionAnswering` of the family `mbart`, pipelined."""

class PipelinedMBartForSequenceClassification(PipelineMixin, MBartForSequenceClassification):
    """`MBartForSequenceClassification` of the family `mbart`, pipelined."""

class PipelinedMBartModel(PipelineMixin, MBartModel):
    """`MBartModel` of the family `mbart`, pipelined."""

class PipelinedMT5EncoderModel(PipelineMixin, MT5EncoderModel):
    """`MT5EncoderModel` of the family `mt5`, pipelined."""

class PipelinedMT5ForConditionalGeneration(PipelineMixin, MT5ForConditionalGeneration):
    """`MT5ForConditionalGeneration` of the family `mt5`, pipelined."""

class PipelinedMT5ForQuestionAnswering(PipelineMixin, MT5ForQuestionAnswering):
    """`MT5ForQuestionAnswering` of the family `mt5`, pipelined."""

class PipelinedMT5ForSequenceClassification(PipelineMixin, MT5ForSequenceClassification):
    """`MT5ForSequenceClassification` of the family `mt5`, pipelined."""

class PipelinedMT5ForTokenClassification(PipelineMixin, MT5ForTokenClassification):
    """`MT5ForTokenClassification` of the family `mt5`, pipelined."""

class PipelinedMT5Model(PipelineMixin, MT5Model):
    """`MT5Model` of the family `mt5`, pipelined."""

class PipelinedMarianForCausalLM(PipelineMixin, MarianForCausalLM):
    """`MarianForCausalLM` of the family `marian`, pipelined."""

class PipelinedMarianMTModel(PipelineMixin, MarianMTModel):
    """`MarianMTModel` of the family `marian`, pipelined."""

class PipelinedMarianModel(PipelineMixin, MarianModel):
    """`MarianModel` of the family `marian`, pipelined."""

class PipelinedMistralForCausalLM(PipelineMixin, MistralForCausalLM):
    """`MistralForCausalLM` of the family `mistral`, pipelined."""

class PipelinedMistralForQuestionAnswering(PipelineMixin, MistralForQuestionAnswering):
    """`MistralForQuestionAnswering` of the family `mistral`, pipelined."""

class PipelinedMistralForSequenceClassification(PipelineMixin, MistralForSequenceClassification):
    """`MistralForSequenceClassification` of the family `mistral`, pipelined."""

class PipelinedMistralForTokenClassification(PipelineMixin, MistralForTokenClassification):
    """`MistralForTokenClassification` of the family `mistral`, pipelined."""

class PipelinedMistralModel(PipelineMixin, MistralModel):
    """`MistralModel` of the family `mistral`, pipelined."""

class PipelinedNllbMoeForConditionalGeneration(PipelineMixin, NllbMoeForConditionalGeneration):
    """`NllbMoeForConditionalGeneration` of the family `nllb-moe`, pipelined."""

class PipelinedNllbMoeModel(PipelineMixin, NllbMoeModel):
    """`NllbMoeModel` of the family `nllb-moe`, pipelined."""

class PipelinedPegasusForCausalLM(PipelineMixin, PegasusForCausalLM):
    """`PegasusForCausalLM` of the family `pegasus`, pipelined."""

class PipelinedPegasusForConditionalGeneration(PipelineMixin, PegasusForConditionalGeneration):
    """`PegasusForConditionalGeneration` of the family `pegasus`, pipelined."""

class PipelinedPegasusModel(PipelineMixin, PegasusModel):
    """`PegasusModel` of the family `pegasus`, pipelined."""

class PipelinedProphetNetDecoder(PipelineMixin, ProphetNetDecoder):
    """`ProphetNetDecoder` of the family `prophetnet`, pipelined."""

class PipelinedProphetNetEncoder(PipelineMixin, ProphetNetEncoder):
    """`ProphetNetEncoder` of the family `prophetnet`, pipelined."""

class PipelinedProphetNetForCausalLM(PipelineMixin, ProphetNetForCausalLM):
    """`ProphetNetForCausalLM` of the family `prophetnet`, pipelined."""

class PipelinedProphetNetForConditionalGeneration(PipelineMixin, ProphetNetForConditionalGeneration):
    """`ProphetNetForConditionalGeneration` of the family `prophetnet`, pipelined."""

class PipelinedProphetNetModel(PipelineMixin, ProphetNetModel):
    """`ProphetNetModel` of the family `prophetnet`, pipelined."""

class PipelinedSwitchTransformersEncoderModel(PipelineMixin, SwitchTransformersEncoderModel):
    """`SwitchTransformersEncoderModel` of the family `switch_transformers`, pipelined."""

class PipelinedSwitchTransformersForConditionalGeneration(PipelineMixin, SwitchTransformersForConditionalGeneration):
    """`SwitchTransformersForConditionalGeneration` of the family `switch_transformers`, pipelined."""

class PipelinedSwitchTransformersModel(PipelineMixin, SwitchTransformersModel):
    """`SwitchTransformersModel` of the family `switch_transformers`, pipelined."""

class PipelinedT5EncoderModel(PipelineMixin, T5EncoderModel):
    """`T5EncoderModel` of the family `t5`, pipelined."""

class PipelinedT5ForConditionalGeneration(PipelineMixin, T5ForConditionalGeneration):
    """`T5ForConditionalGeneration` of the family `t5`, pipelined."""

class PipelinedT5ForQuestionAnswering(PipelineMixin, T5ForQuestionAnswering):
    """`T5ForQuestionAnswering` of the family `t5`, pipelined."""

class PipelinedT5ForSequenceClassification(PipelineMixin, T5ForSequenceClassification):
    """`T5ForSequenceClassification` of the family `t5`, pipelined."""

class PipelinedT5ForTokenClassification(PipelineMixin, T5ForTokenClassification):
    """`T5ForTokenClassification` of the family `t5`, pipelined."""

class PipelinedT5Model(PipelineMixin, T5Model):
    """`T5Model` of the family `t5`, pipelined."""

class PipelinedXLMProphetNetForCausalLM(PipelineMixin, XLMProphetNetForCausalLM):
    """`XLMProphetNetForCausalLM` of the family `xlm-prophetnet`, pipelined."""

class PipelinedXLMProphetNetForConditionalGeneration(PipelineMixin, XLMProphetNetForConditionalGeneration):
    """`XLMProphetNetForConditionalGeneration` of the family `xlm-prophetnet`, pipelined."""

class PipelinedXLMProphetNetModel(PipelineMixin, XLMProphetNetModel):
    """`XLMProphetNetModel` of the family `xlm-prophetnet`, pipelined."""
