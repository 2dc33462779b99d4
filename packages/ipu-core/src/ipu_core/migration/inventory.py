# SPDX-License-Identifier: Apache-2.0
"""Every public name of `optimum.graphcore` as data: where it is imported from, what it is today, and what changed.

The table of docs/migration.md is written from here (`table`), and so are the modules that scripts import (`MODULES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

ROOT = "optimum.graphcore"
_HERE = "ipu_core.migration.graphcore"


@dataclass(frozen=True, kw_only=True)
class OldName:
    """A name of `optimum.graphcore`.

    `home` is the module below it, "" for itself. `target` is what the name is today, as "module:name"; None where it is
    refused, and `change` says why and what to use. A façade's target has what it stands for in `today`.
    """

    home: str
    name: str
    target: str | None
    change: str = ""
    today: str = ""
    is_model: bool = False

    @property
    def path(self) -> str:
        """The name as it is imported."""
        return ".".join(filter(None, (ROOT, self.home, self.name)))

    @property
    def new(self) -> str:
        """What to write today."""
        return self.today or (self.target or "").replace(":", ".")


def _served(home: str, target: str, *names: str, change: str = "", today: str = "") -> Iterator[OldName]:
    for name in names:
        yield OldName(home=home, name=name, target=f"{target}:{name}", change=change, today=today.format(name=name))


def _refused(home: str, why: str, *names: str) -> Iterator[OldName]:
    for name in names:
        yield OldName(home=home, name=name, target=None, change=why)


def _models(package: str, family: str, plain: str) -> Iterator[OldName]:
    for name in plain.split():
        yield OldName(
            home=f"models.{family}", name=f"Pipelined{name}", target=f"{package}:Pipelined{name}", is_model=True
        )


BERT, SEQ2SEQ, SPEECH, VISION = (f"ipu_models_{kind}" for kind in ("bert", "seq2seq", "speech", "vision"))
_HEADS = ("MaskedLM", "SequenceClassification", "MultipleChoice", "TokenClassification", "QuestionAnswering")


def _heads(family: str, *heads: str) -> str:
    return " ".join(f"{family}For{head}" for head in heads or _HEADS)


MODELS = (
    *_models(SEQ2SEQ, "bart", "BartForConditionalGeneration BartForSequenceClassification"),
    *_models(BERT, "bert", f"BertModel BertForPreTraining {_heads('Bert')}"),
    *_models(VISION, "convnext", "ConvNextForImageClassification"),
    *_models(BERT, "deberta", _heads("Deberta", "MaskedLM", *_HEADS[1::2], "QuestionAnswering")),
    *_models(BERT, "distilbert", _heads("DistilBert")),
    *_models(SEQ2SEQ, "gpt2", "GPT2LMHeadModel GPT2ForSequenceClassification GPT2ForTokenClassification"),
    *_models(BERT, "groupbert", f"GroupBertForPreTraining {_heads('GroupBert')}"),
    *_models(SPEECH, "hubert", "HubertForSequenceClassification"),
    OldName(
        home="models.hubert",
        name="PipelinedHubertCTC",
        target=f"{SPEECH}:PipelinedHubertForCTC",
        change="named as transformers names it",
        is_model=True,
    ),
    *_models(VISION, "lxmert", "LxmertForQuestionAnswering"),
    *_models(BERT, "mpnet", "MPNetModel MPNetForMaskedLM"),
    *_models(SEQ2SEQ, "mt5", "MT5ForConditionalGeneration"),
    *_models(BERT, "roberta", _heads("Roberta")),
    *_models(SEQ2SEQ, "t5", "T5ForConditionalGeneration T5EncoderModel"),
    *_models(VISION, "vit", "ViTForImageClassification"),
    *_models(SPEECH, "wav2vec2", "Wav2Vec2ForPreTraining Wav2Vec2ForCTC"),
    *_models(SPEECH, "whisper", "WhisperForConditionalGeneration"),
)
_NOT_AT_TOP = ("deberta", "groupbert", "whisper")
_NOT_EXPORTED = ("PipelinedHubertCTC", "PipelinedWav2Vec2ForCTC")

_REWRITTEN = "upstream's own modules run, with source edits where a graph needs them: there is nothing to replace"
_GENERATES = "sequences are generated on static caches of the engine's: use `generate`, or `ipu_core.generation_model`"
_ON_DEVICE = "`generation_model(model, tokens_per_call=...)` runs several steps between two looks of the host"
_PROCESSORS = "transformers' own logits processors run, on the host"
_OF_FAMILY = "layers are shared out by `layers_per_ipu`, without a mixin of the family"
_TRAINER = f"{_HERE}.trainer"
_ARGUMENTS = f"{_HERE}.training_args"
_MODELING = f"{_HERE}.modeling_utils"
_LAYERS = f"{_HERE}.layers"


def _mixin(family: str, name: str) -> OldName:
    target = f"{_MODELING}:PipelineMixin"
    return OldName(home=f"models.{family}", name=name, target=target, change=_OF_FAMILY, today="ipu_core.PipelineMixin")


OTHERS = (
    OldName(
        home="", name="__version__", target=f"{_HERE}.versions:VERSION", change="the release whose names are served"
    ),
    OldName(home="version", name="__version__", target=f"{_HERE}.versions:VERSION", today="ipu_core's own version"),
    *_served(
        "ipu_configuration",
        f"{_HERE}.ipu_configuration",
        "IPUConfig",
        change="a misspelt option is refused; `mode`, `train()`, `eval()` and `to_options()` are the façade's alone: "
        "`for_training()` and `for_inference()` are the two views",
        today="ipu_core.IPUConfig",
    ),
    *_served("ipu_configuration", f"{_HERE}.ipu_configuration", "ALLOWED_N_IPU", today="no restriction"),
    *_served("ipu_configuration", "ipu_core.errors", "IncompatibleIPUConfigError"),
    *_served("ipu_configuration", "ipu_core.config.ipu_config", "IPU_CONFIG_NAME"),
    *_served("modeling_utils", "ipu_core.errors", "IncompatibleIPUConfigError"),
    *_served(
        "modeling_utils",
        _MODELING,
        "to_pipelined",
        change="shares the model's tensors, where it was a copy; no model has to be registered, `force` has no effect",
        today="ipu_core.to_pipelined",
    ),
    *_served(
        "modeling_utils",
        _MODELING,
        "PipelineMixin",
        change="a class of your own is run as it is: `parallelize` makes its changes, `layers_per_ipu` its stages",
        today="ipu_core.PipelineMixin",
    ),
    *_served("modeling_utils", _MODELING, "register", today="ipu_core.Family", change="a plugin declares a family"),
    *_served(
        "modeling_utils",
        _MODELING,
        "get_layer_ipu",
        today="ipu_core.plan",
        change="the plan says which IPU has which module",
    ),
    *_served(
        "modeling_utils",
        _MODELING,
        "split_encoder_decoder_ipu_config",
        today="ipu_core.split_encoder_decoder_ipu_config",
        change="`for_inference=` in the place of the mode",
    ),
    *_served("modeling_utils", _MODELING, "_expand_layers_per_ipu_wildcard", today="ExecutionConfig.expand_layers"),
    *_served(
        "modeling_utils",
        _MODELING,
        "recomputation_checkpoint",
        today="IPUConfig(recompute_checkpoint_every_layer=True)",
    ),
    *_served(
        "modeling_utils",
        _MODELING,
        "outline_attribute",
        today="nothing",
        change="no effect here: equal layers share compiled code by themselves",
    ),
    *_served(
        "modeling_utils",
        _LAYERS,
        *("SerializedEmbedding", "SerializedLinear", "SplitProjection"),
        today="options of IPUConfig: `embedding_serialization_factor`, `serialized_*_splits_per_ipu`, ...",
        change="the configuration serializes, without another module in the model",
    ),
    *_served(
        "modeling_utils",
        _LAYERS,
        *("SharedEmbedding", "OnehotGather"),
        today="nothing",
        change="tied weights and gathers are captured as upstream has them",
    ),
    *_served("trainer", _TRAINER, "IPUTrainer", today="ipu_trainer.IPUTrainer", change="see the arguments above"),
    *_served(
        "trainer",
        _TRAINER,
        "IPUTrainerState",
        today="transformers.TrainerState",
        change="`start_time` is the façade's alone",
    ),
    *_served("trainer_callback", _TRAINER, "IPUTrainerState", today="transformers.TrainerState"),
    *_served(
        "trainer_seq2seq",
        _TRAINER,
        "IPUSeq2SeqTrainer",
        today="ipu_trainer.IPUSeq2SeqTrainer",
        change="`predict_with_generate=False` works",
    ),
    *_served(
        "training_args",
        _ARGUMENTS,
        "IPUTrainingArguments",
        today="ipu_trainer.IPUTrainingArguments",
        change="see the arguments above",
    ),
    *_served("training_args", f"{_HERE}.ipu_configuration", "ALLOWED_N_IPU", today="no restriction"),
    *_served(
        "training_args_seq2seq",
        _ARGUMENTS,
        "IPUSeq2SeqTrainingArguments",
        today="ipu_trainer.IPUSeq2SeqTrainingArguments",
        change="see the arguments above",
    ),
    *_served("modelcard", "ipu_trainer", "IPUTrainingSummary"),
    *_served(
        "data.data_collator",
        f"{_HERE}.data",
        "pad_on_batch_axis",
        today="nothing",
        change="an incomplete batch is evaluated as it is",
    ),
    *_served(
        "data.data_collator",
        f"{_HERE}.data",
        "DataCollatorForLanguageModelingWithMaxTokensMasked",
        today="transformers.DataCollatorForLanguageModeling and IPUConfig(max_masked_tokens=...)",
        change="a row with more labels is refused, not cut",
    ),
    *_served(
        "pipelines",
        f"{_HERE}.pipelines",
        "pipeline",
        today="ipu_core.pipeline",
        change="no padding or length to choose: batches run in a few compiled shapes; long texts are refused, or "
        "cut with `truncation=True`; `fp16` is said by the model",
    ),
    *_served("pipelines", f"{_HERE}.pipelines", "list_tasks", today="ipu_core.pipelines.tasks.TASKS"),
    *_served(
        "pipelines",
        f"{_HERE}.pipelines",
        *("IPUFillMaskPipeline", "IPUTokenClassificationPipeline", "IPUZeroShotClassificationPipeline"),
        *("IPUText2TextGenerationPipeline", "IPUSummarizationPipeline", "IPUTranslationPipeline"),
        today="ipu_core.pipeline",
        change="`pipeline(task)` makes one",
    ),
    *_served("pipelines", f"{_HERE}.pipelines", "IPUAutomaticSpeechRecognitionPipeline", today="ipu_core.pipeline"),
    *_refused(
        "pipelines",
        "`pipeline(task, model, ipu_config)` compiles for itself; for an executor alone use "
        "`ipu_core.inference_model(to_pipelined(model, ipu_config))`",
        *("get_poplar_executor", "check_model_type", "SUPPORTED_TASKS"),
    ),
    *_served(
        "diffusers",
        f"{_HERE}.diffusers",
        *("IPUStableDiffusionPipeline", "IPUStableDiffusionImg2ImgPipeline", "IPUStableDiffusionInpaintPipeline"),
        change='`unet_ipu_config="auto"` and the like in the place of `n_ipu`',
        today="ipu_diffusers.{name}",
    ),
    *_served("diffusers", "ipu_diffusers", "get_default_ipu_configs"),
    *_served(
        "diffusers",
        f"{_HERE}.diffusers",
        "INFERENCE_ENGINES_TO_MODEL_NAMES",
        today="names of the hub",
    ),
    *_refused(
        "diffusers",
        "diffusers' own models run: give `<component>_ipu_config=` to the pipeline",
        *("IPUStableDiffusionPipelineMixin", "IPUUNet2DConditionModel", "IPUCLIPTextModel", "IPUAutoencoderKL"),
        *("IPUStableDiffusionSafetyChecker", "IPUSlicedAttnProcessor", "UNetCastingWrapper"),
    ),
    *_served("utils", f"{_HERE}.versions", "check_min_version", today="nothing", change="by old release"),
    *_served(
        "models.groupbert",
        f"{BERT}.groupbert",
        *("GroupBertConfig", "GroupBertModel", "GroupBertForPreTraining", "GroupBertForMaskedLM"),
        *("GroupBertForSequenceClassification", "GroupBertForMultipleChoice"),
        *("GroupBertForTokenClassification", "GroupBertForQuestionAnswering"),
    ),
    OldName(
        home="models.whisper",
        name="WhisperProcessorTorch",
        target="transformers:WhisperProcessor",
        change="upstream's computes with torch now",
    ),
    OldName(
        home="models.whisper",
        name="WhisperFeatureExtractorTorch",
        target="transformers:WhisperFeatureExtractor",
        change="upstream's computes with torch now",
    ),
    _mixin("bert", "BertPipelineMixin"),
    *_refused("models.bert", _REWRITTEN, "BertFusedSelfAttention"),
    _mixin("groupbert", "BertPipelineMixin"),
    *_refused("models.groupbert", _REWRITTEN, "GroupBertFusedSelfAttention"),
    _mixin("roberta", "RobertaPipelineMixin"),
    _mixin("gpt2", "GPT2PipelineMixin"),
    *_refused("models.gpt2", _REWRITTEN, "OptimizedGPT2Attention"),
    _mixin("distilbert", "DistilBertPipelineMixin"),
    *_refused("models.distilbert", _REWRITTEN, "IPUMultiHeadSelfAttention"),
    _mixin("deberta", "DebertaPipelineMixin"),
    *_refused("models.deberta", _REWRITTEN, "IPUDisentangledSelfAttention", "FastGatherLastDim", "XSoftmax"),
    *_refused("models.convnext", _REWRITTEN, "OptimizedConvNextLayer"),
    *_refused("models.bart", _REWRITTEN, "IPUBartAttention", "IPUBartLearnedPositionalEmbedding"),
    *_refused(
        "models.t5", _REWRITTEN, "UpCastWrapper", "CustomGELU", "CustomT5Block", "CustomT5Stack", "IPUT5Attention"
    ),
    *_refused("models.mt5", _REWRITTEN, "UpCastWrapper", "CustomGELU", "CustomMT5Block", "CustomMT5Stack"),
    *_refused("models.hubert", _REWRITTEN, "IPUHubertEncoder", "IPUHubertEncoderStableLayerNorm"),
    *_refused(
        "models.wav2vec2",
        _REWRITTEN,
        *("IPUWav2Vec2Model", "IPUWav2Vec2Encoder", "IPUWav2Vec2EncoderStableLayerNorm", "IPUWav2Vec2Adapter"),
        "IPUWav2Vec2GumbelVectorQuantizer",
    ),
    *_refused(
        "models.wav2vec2",
        "`ipu_models_speech.collators.PretrainingCollator` draws masks, negatives and the temperature",
        "_sample_negative_indices",
    ),
    *_refused("models.whisper", _REWRITTEN, "IPUWhisperAttention", "IPUWhisperPositionalEmbedding"),
    *_served(
        "generation",
        _MODELING,
        "IPUGenerationMixin",
        today="ipu_core.PipelineMixin",
        change="every pipelined model of transformers generates",
    ),
    *_refused("generation", _GENERATES, "IPUAttentionMixin", "supports_kv_cache", "DecoderWrapper"),
    *_refused("generation", _ON_DEVICE, "OnDeviceGenerationModel", "OnDeviceGreedySearch", "OnDeviceBeamSearch"),
    *_refused("generation", _ON_DEVICE, "OnDeviceGenerationModelOutput"),
    *_refused(
        "generation",
        _PROCESSORS,
        *("IPUForcedBOSTokenLogitsProcessor", "IPUForcedEOSTokenLogitsProcessor", "IPUForceTokensLogitsProcessor"),
        *("IPUMinLengthLogitsProcessor", "IPUNoRepeatNGramLogitsProcessor", "IPUSuppressTokensLogitsProcessor"),
        *("IPUSuppressTokensAtBeginLogitsProcessor", "IPUWhisperTimeStampLogitsProcessor"),
    ),
    *_refused("quantization", "`generation_model(model, weights='int4')` quantizes", "GroupQuantLinear"),
)


def _at_top() -> Iterator[OldName]:
    exported = (
        *("IPUConfig", "IPUTrainer", "IPUTrainerState", "IPUSeq2SeqTrainer", "IPUTrainingArguments"),
        *("IPUSeq2SeqTrainingArguments", "IPUFillMaskPipeline", "IPUTokenClassificationPipeline", "pipeline"),
    )
    first = {old.name: old for old in reversed(OTHERS)}
    yield from (replace(first[name], home="") for name in exported)
    for old in MODELS:
        if old.home.partition(".")[2] not in _NOT_AT_TOP and old.name not in _NOT_EXPORTED:
            yield replace(old, home="")


NAMES: tuple[OldName, ...] = (*_at_top(), *MODELS, *OTHERS)

# Modules whose names others had too, under longer paths.
_ALSO_AT = {
    "data.data_collator": ("data",),
    "generation": ("generation.utils", "generation_utils", "generation.attention_mixin", "generation.logits_process"),
}


def _homes(home: str) -> tuple[str, ...]:
    also = _ALSO_AT.get(home, ())
    if home.startswith("models."):
        also = (*also, f"{home}.modeling_{home.partition('.')[2]}")
    return (home, *also)


def _modules(names: Iterable[OldName]) -> dict[str, dict[str, OldName]]:
    modules: dict[str, dict[str, OldName]] = {}
    for old in names:
        for home in _homes(old.home):
            parts = [ROOT, *home.split(".")] if home else [ROOT]
            for end in range(2, len(parts) + 1):
                modules.setdefault(".".join(parts[:end]), {})
            modules.setdefault(".".join(parts), {})[old.name] = old
    return modules


MODULES = _modules(NAMES)


def table() -> str:
    """Return the old names as a Markdown table: old, new, what changed."""
    rows = ["| old | new | what changed |", "|---|---|---|"]
    for old in NAMES:
        new = f"`{old.new}`" if old.target is not None else "refused"
        rows.append(f"| `{old.path.removeprefix('optimum.')}` | {new} | {old.change} |")
    return "\n".join(rows)
