# SPDX-License-Identifier: Apache-2.0
"""Written by `ipu stub ipu_models_bert`."""

from ipu_core import PipelineMixin
from ipu_models_bert.groupbert import (
    GroupBertForMaskedLM,
    GroupBertForMultipleChoice,
    GroupBertForPreTraining,
    GroupBertForQuestionAnswering,
    GroupBertForSequenceClassification,
    GroupBertForTokenClassification,
    GroupBertModel,
)
from transformers import (
    AlbertForMaskedLM,
    AlbertForMultipleChoice,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    DebertaForMaskedLM,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    DebertaModel,
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
    IBertForMaskedLM,
    IBertForMultipleChoice,
    IBertForQuestionAnswering,
    IBertForSequenceClassification,
    IBertForTokenClassification,
    IBertModel,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
    NystromformerForMaskedLM,
    NystromformerForMultipleChoice,
    NystromformerForQuestionAnswering,
    NystromformerForSequenceClassification,
    NystromformerForTokenClassification,
    NystromformerModel,
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerModel,
    ReformerModelWithLMHead,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

class PipelinedAlbertForMaskedLM(PipelineMixin, AlbertForMaskedLM):
    """`AlbertForMaskedLM` of the family `albert`, pipelined."""

class PipelinedAlbertForMultipleChoice(PipelineMixin, AlbertForMultipleChoice):
    """`AlbertForMultipleChoice` of the family `albert`, pipelined."""

class PipelinedAlbertForPreTraining(PipelineMixin, AlbertForPreTraining):
    """`AlbertForPreTraining` of the family `albert`, pipelined."""

class PipelinedAlbertForQuestionAnswering(PipelineMixin, AlbertForQuestionAnswering):
    """`AlbertForQuestionAnswering` of the family `albert`, pipelined."""

class PipelinedAlbertForSequenceClassification(PipelineMixin, AlbertForSequenceClassification):
    """`AlbertForSequenceClassification` of the family `albert`, pipelined."""

class PipelinedAlbertForTokenClassification(PipelineMixin, AlbertForTokenClassification):
    """`AlbertForTokenClassification` of the family `albert`, pipelined."""

class PipelinedAlbertModel(PipelineMixin, AlbertModel):
    """`AlbertModel` of the family `albert`, pipelined."""

class PipelinedBertForMaskedLM(PipelineMixin, BertForMaskedLM):
    """`BertForMaskedLM` of the family `bert`, pipelined."""

class PipelinedBertForMultipleChoice(PipelineMixin, BertForMultipleChoice):
    """`BertForMultipleChoice` of the family `bert`, pipelined."""

class PipelinedBertForNextSentencePrediction(PipelineMixin, BertForNextSentencePrediction):
    """`BertForNextSentencePrediction` of the family `bert`, pipelined."""

class PipelinedBertForPreTraining(PipelineMixin, BertForPreTraining):
    """`BertForPreTraining` of the family `bert`, pipelined."""

class PipelinedBertForQuestionAnswering(PipelineMixin, BertForQuestionAnswering):
    """`BertForQuestionAnswering` of the family `bert`, pipelined."""

class PipelinedBertForSequenceClassification(PipelineMixin, BertForSequenceClassification):
    """`BertForSequenceClassification` of the family `bert`, pipelined."""

class PipelinedBertForTokenClassification(PipelineMixin, BertForTokenClassification):
    """`BertForTokenClassification` of the family `bert`, pipelined."""

class PipelinedBertLMHeadModel(PipelineMixin, BertLMHeadModel):
    """`BertLMHeadModel` of the family `bert`, pipelined."""

class PipelinedBertModel(PipelineMixin, BertModel):
    """`BertModel` of the family `bert`, pipelined."""

class PipelinedDebertaForMaskedLM(PipelineMixin, DebertaForMaskedLM):
    """`DebertaForMaskedLM` of the family `deberta`, pipelined."""

class PipelinedDebertaForQuestionAnswering(PipelineMixin, DebertaForQuestionAnswering):
    """`DebertaForQuestionAnswering` of the family `deberta`, pipelined."""

class PipelinedDebertaForSequenceClassification(PipelineMixin, DebertaForSequenceClassification):
    """`DebertaForSequenceClassification` of the family `deberta`, pipelined."""

class PipelinedDebertaForTokenClassification(PipelineMixin, DebertaForTokenClassification):
    """`DebertaForTokenClassification` of the family `deberta`, pipelined."""

class PipelinedDebertaModel(PipelineMixin, DebertaModel):
    """`DebertaModel` of the family `deberta`, pipelined."""

class PipelinedDebertaV2ForMaskedLM(PipelineMixin, DebertaV2ForMaskedLM):
    """`DebertaV2ForMaskedLM` of the family `deberta-v2`, pipelined."""

class PipelinedDebertaV2ForMultipleChoice(PipelineMixin, DebertaV2ForMultipleChoice):
    """`DebertaV2ForMultipleChoice` of the family `deberta-v2`, pipelined."""

class PipelinedDebertaV2ForQuestionAnswering(PipelineMixin, DebertaV2ForQuestionAnswering):
    """`DebertaV2ForQuestionAnswering` of the family `deberta-v2`, pipelined."""

class PipelinedDebertaV2ForSequenceClassification(PipelineMixin, DebertaV2ForSequenceClassification):
    """`DebertaV2ForSequenceClassification` of the family `deberta-v2`, pipelined."""

class PipelinedDebertaV2ForTokenClassification(PipelineMixin, DebertaV2ForTokenClassification):
    """`DebertaV2ForTokenClassification` of the family `deberta-v2`, pipelined."""

class PipelinedDebertaV2Model(PipelineMixin, DebertaV2Model):
    """`DebertaV2Model` of the family `deberta-v2`, pipelined."""

class PipelinedDistilBertForMaskedLM(PipelineMixin, DistilBertForMaskedLM):
    """`DistilBertForMaskedLM` of the family `distilbert`, pipelined."""

class PipelinedDistilBertForMultipleChoice(PipelineMixin, DistilBertForMultipleChoice):
    """`DistilBertForMultipleChoice` of the family `distilbert`, pipelined."""

class PipelinedDistilBertForQuestionAnswering(PipelineMixin, DistilBertForQuestionAnswering):
    """`DistilBertForQuestionAnswering` of the family `distilbert`, pipelined."""

class PipelinedDistilBertForSequenceClassification(PipelineMixin, DistilBertForSequenceClassification):
    """`DistilBertForSequenceClassification` of the family `distilbert`, pipelined."""

class PipelinedDistilBertForTokenClassification(PipelineMixin, DistilBertForTokenClassification):
    """`DistilBertForTokenClassification` of the family `distilbert`, pipelined."""

class PipelinedDistilBertModel(PipelineMixin, DistilBertModel):
    """`DistilBertModel` of the family `distilbert`, pipelined."""

class PipelinedElectraForCausalLM(PipelineMixin, ElectraForCausalLM):
    """`ElectraForCausalLM` of the family `electra`, pipelined."""

class PipelinedElectraForMaskedLM(PipelineMixin, ElectraForMaskedLM):
    """`ElectraForMaskedLM` of the family `electra`, pipelined."""

class PipelinedElectraForMultipleChoice(PipelineMixin, ElectraForMultipleChoice):
    """`ElectraForMultipleChoice` of the family `electra`, pipelined."""

class PipelinedElectraForPreTraining(PipelineMixin, ElectraForPreTraining):
    """`ElectraForPreTraining` of the family `electra`, pipelined."""

class PipelinedElectraForQuestionAnswering(PipelineMixin, ElectraForQuestionAnswering):
    """`ElectraForQuestionAnswering` of the family `electra`, pipelined."""

class PipelinedElectraForSequenceClassification(PipelineMixin, ElectraForSequenceClassification):
    """`ElectraForSequenceClassification` of the family `electra`, pipelined."""

class PipelinedElectraForTokenClassification(PipelineMixin, ElectraForTokenClassification):
    """`ElectraForTokenClassification` of the family `electra`, pipelined."""

class PipelinedElectraModel(PipelineMixin, ElectraModel):
    """`ElectraModel` of the family `electra`, pipelined."""

class PipelinedGroupBertForMaskedLM(PipelineMixin, GroupBertForMaskedLM):
    """`GroupBertForMaskedLM` of the family `groupbert`, pipelined."""

class PipelinedGroupBertForMultipleChoice(PipelineMixin, GroupBertForMultipleChoice):
    """`GroupBertForMultipleChoice` of the family `groupbert`, pipelined."""

class PipelinedGroupBertForPreTraining(PipelineMixin, GroupBertForPreTraining):
    """`GroupBertForPreTraining` of the family `groupbert`, pipelined."""

class PipelinedGroupBertForQuestionAnswering(PipelineMixin, GroupBertForQuestionAnswering):
    """`GroupBertForQuestionAnswering` of the family `groupbert`, pipelined."""

class PipelinedGroupBertForSequenceClassification(PipelineMixin, GroupBertForSequenceClassification):
    """`GroupBertForSequenceClassification` of the family `groupbert`, pipelined."""

class PipelinedGroupBertForTokenClassification(PipelineMixin, GroupBertForTokenClassification):
    """`GroupBertForTokenClassification` of the family `groupbert`, pipelined."""

class PipelinedGroupBertModel(PipelineMixin, GroupBertModel):
    """`GroupBertModel` of the family `groupbert`, pipelined."""

class PipelinedIBertForMaskedLM(PipelineMixin, IBertForMaskedLM):
    """`IBertForMaskedLM` of the family `ibert`, pipelined."""

class PipelinedIBertForMultipleChoice(PipelineMixin, IBertForMultipleChoice):
    """`IBertForMultipleChoice` of the family `ibert`, pipelined."""

class PipelinedIBertForQuestionAnswering(PipelineMixin, IBertForQuestionAnswering):
    """`IBertForQuestionAnswering` of the family `ibert`, pipelined."""

class PipelinedIBertForSequenceClassification(PipelineMixin, IBertForSequenceClassification):
    """`IBertForSequenceClassification` of the family `ibert`, pipelined."""

class PipelinedIBertForTokenClassification(PipelineMixin, IBertForTokenClassification):
    """`IBertForTokenClassification` of the family `ibert`, pipelined."""

class PipelinedIBertModel(PipelineMixin, IBertModel):
    """`IBertModel` of the family `ibert`, pipelined."""

class PipelinedLongformerForMaskedLM(PipelineMixin, LongformerForMaskedLM):
    """`LongformerForMaskedLM` of the family `longformer`, pipelined."""

class PipelinedLongformerForMultipleChoice(PipelineMixin, LongformerForMultipleChoice):
    """`LongformerForMultipleChoice` of the family `longformer`, pipelined."""

class PipelinedLongformerForQuestionAnswering(PipelineMixin, LongformerForQuestionAnswering):
    """`LongformerForQuestionAnswering` of the family `longformer`, pipelined."""

class PipelinedLongformerForSequenceClassification(PipelineMixin, LongformerForSequenceClassification):
    """`LongformerForSequenceClassification` of the family `longformer`, pipelined."""

class PipelinedLongformerForTokenClassification(PipelineMixin, LongformerForTokenClassification):
    """`LongformerForTokenClassification` of the family `longformer`, pipelined."""

class PipelinedLongformerModel(PipelineMixin, LongformerModel):
    """`LongformerModel` of the family `longformer`, pipelined."""

class PipelinedMPNetForMaskedLM(PipelineMixin, MPNetForMaskedLM):
    """`MPNetForMaskedLM` of the family `mpnet`, pipelined."""

class PipelinedMPNetForMultipleChoice(PipelineMixin, MPNetForMultipleChoice):
    """`MPNetForMultipleChoice` of the family `mpnet`, pipelined."""

class PipelinedMPNetForQuestionAnswering(PipelineMixin, MPNetForQuestionAnswering):
    """`MPNetForQuestionAnswering` of the family `mpnet`, pipelined."""

class PipelinedMPNetForSequenceClassification(PipelineMixin, MPNetForSequenceClassification):
    """`MPNetForSequenceClassification` of the family `mpnet`, pipelined."""

class PipelinedMPNetForTokenClassification(PipelineMixin, MPNetForTokenClassification):
    """`MPNetForTokenClassification` of the family `mpnet`, pipelined."""

class PipelinedMPNetModel(PipelineMixin, MPNetModel):
    """`MPNetModel` of the family `mpnet`, pipelined."""

class PipelinedNystromformerForMaskedLM(PipelineMixin, NystromformerForMaskedLM):
    """`NystromformerForMaskedLM` of the family `nystromformer`, pipelined."""

class PipelinedNystromformerForMultipleChoice(PipelineMixin, NystromformerForMultipleChoice):
    """`NystromformerForMultipleChoice` of the family `nystromformer`, pipelined."""

class PipelinedNystromformerForQuestionAnswering(PipelineMixin, NystromformerForQuestionAnswering):
    """`NystromformerForQuestionAnswering` of the family `nystromformer`, pipelined."""

class PipelinedNystromformerForSequenceClassification(PipelineMixin, NystromformerForSequenceClassification):
    """`NystromformerForSequenceClassification` of the family `nystromformer`, pipelined."""

class PipelinedNystromformerForTokenClassification(PipelineMixin, NystromformerForTokenClassification):
    """`NystromformerForTokenClassification` of the family `nystromformer`, pipelined."""

class PipelinedNystromformerModel(PipelineMixin, NystromformerModel):
    """`NystromformerModel` of the family `nystromformer`, pipelined."""

class PipelinedReformerForMaskedLM(PipelineMixin, ReformerForMaskedLM):
    """`ReformerForMaskedLM` of the family `reformer`, pipelined."""

class PipelinedReformerForQuestionAnswering(PipelineMixin, ReformerForQuestionAnswering):
    """`ReformerForQuestionAnswering` of the family `reformer`, pipelined."""

class PipelinedReformerForSequenceClassification(PipelineMixin, ReformerForSequenceClassification):
    """`ReformerForSequenceClassification` of the family `reformer`, pipelined."""

class PipelinedReformerModel(PipelineMixin, ReformerModel):
    """`ReformerModel` of the family `reformer`, pipelined."""

class PipelinedReformerModelWithLMHead(PipelineMixin, ReformerModelWithLMHead):
    """`ReformerModelWithLMHead` of the family `reformer`, pipelined."""

class PipelinedRobertaForCausalLM(PipelineMixin, RobertaForCausalLM):
    """`RobertaForCausalLM` of the family `roberta`, pipelined."""

class PipelinedRobertaForMaskedLM(PipelineMixin, RobertaForMaskedLM):
    """`RobertaForMaskedLM` of the family `roberta`, pipelined."""

class PipelinedRobertaForMultipleChoice(PipelineMixin, RobertaForMultipleChoice):
    """`RobertaForMultipleChoice` of the family `roberta`, pipelined."""

class PipelinedRobertaForQuestionAnswering(PipelineMixin, RobertaForQuestionAnswering):
    """`RobertaForQuestionAnswering` of the family `roberta`, pipelined."""

class PipelinedRobertaForSequenceClassification(PipelineMixin, RobertaForSequenceClassification):
    """`RobertaForSequenceClassification` of the family `roberta`, pipelined."""

class PipelinedRobertaForTokenClassification(PipelineMixin, RobertaForTokenClassification):
    """`RobertaForTokenClassification` of the family `roberta`, pipelined."""

class PipelinedRobertaModel(PipelineMixin, RobertaModel):
    """`RobertaModel` of the family `roberta`, pipelined."""
