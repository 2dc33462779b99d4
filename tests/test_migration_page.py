# SPDX-License-Identifier: Apache-2.0
"""docs/migration.md has every public name of optimum-graphcore, and each is there or refused as it says."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from ipu_core.migration import install
from ipu_core.migration.inventory import MODULES, NAMES, table

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"
# What the release 0.6.1 exported at the top; `PipelinedX` for each of the second.
EXPORTED = (
    *("IPUConfig", "IPUTrainer", "IPUTrainerState", "IPUSeq2SeqTrainer", "IPUTrainingArguments"),
    *(
        "IPUSeq2SeqTrainingArguments",
        "IPUFillMaskPipeline",
        "IPUTokenClassificationPipeline",
        "pipeline",
        "__version__",
    ),
)
HEADS = {
    "Bart": ["ForConditionalGeneration", "ForSequenceClassification"],
    "Bert": [
        *("ForMaskedLM", "ForMultipleChoice", "ForPreTraining", "ForQuestionAnswering"),
        *("ForSequenceClassification", "ForTokenClassification"),
    ],
    "ConvNext": ["ForImageClassification"],
    "DistilBert": [
        *("ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering"),
        *("ForSequenceClassification", "ForTokenClassification"),
    ],
    "GPT2": ["ForSequenceClassification", "ForTokenClassification", "LMHeadModel"],
    "Hubert": ["ForSequenceClassification"],
    "Lxmert": ["ForQuestionAnswering"],
    "MT5": ["ForConditionalGeneration"],
    "Roberta": [
        *("ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering"),
        *("ForSequenceClassification", "ForTokenClassification"),
    ],
    "T5": ["ForConditionalGeneration"],
    "ViT": ["ForImageClassification"],
    "Wav2Vec2": ["ForPreTraining"],
}
# Names below the top that examples, notebooks and classes of users' own import.
ELSEWHERE = {
    "modeling_utils": [
        "to_pipelined",
        "PipelineMixin",
        "register",
        "get_layer_ipu",
        "split_encoder_decoder_ipu_config",
    ],
    "data": ["pad_on_batch_axis", "DataCollatorForLanguageModelingWithMaxTokensMasked"],
    "diffusers": [
        *("IPUStableDiffusionPipeline", "IPUStableDiffusionImg2ImgPipeline", "IPUStableDiffusionInpaintPipeline"),
        *("get_default_ipu_configs", "INFERENCE_ENGINES_TO_MODEL_NAMES"),
    ],
    "generation": ["IPUGenerationMixin", "IPUAttentionMixin", "supports_kv_cache", "OnDeviceGenerationModel"],
    "modelcard": ["IPUTrainingSummary"],
    "models.deberta": ["PipelinedDebertaForMaskedLM", "PipelinedDebertaForQuestionAnswering"],
    "models.groupbert": ["GroupBertConfig", "GroupBertModel", "PipelinedGroupBertForPreTraining"],
    "models.hubert": ["PipelinedHubertCTC"],
    "models.wav2vec2": ["PipelinedWav2Vec2ForCTC"],
    "models.whisper": [
        "PipelinedWhisperForConditionalGeneration",
        "WhisperProcessorTorch",
        "WhisperFeatureExtractorTorch",
    ],
    "pipelines": ["pipeline", "get_poplar_executor", "list_tasks", "check_model_type"],
    "training_args": ["IPUTrainingArguments", "ALLOWED_N_IPU"],
    "utils": ["check_min_version"],
}


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    install()
    yield
    for name in [name for name in sys.modules if name.startswith("optimum.graphcore")]:
        del sys.modules[name]
    vars(sys.modules["optimum"]).pop("graphcore", None)


def test_the_table_has_every_public_name():
    top = MODULES["optimum.graphcore"]
    assert set(EXPORTED) <= set(top)
    pipelined = [f"Pipelined{model}{head}" for model, heads in HEADS.items() for head in heads]
    assert len(pipelined) == 28 and set(pipelined) <= set(top)
    for home, names in ELSEWHERE.items():
        assert set(names) <= set(MODULES[f"optimum.graphcore.{home}"]), home


def test_the_page_is_written_from_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), "write docs/migration.md anew: its last table is `table()`"


@pytest.mark.parametrize("home", sorted(MODULES))
def test_each_name_is_there_or_refused_as_the_table_says(home, served):
    module = importlib.import_module(home)
    for name, old in MODULES[home].items():
        if old.target is None:
            with pytest.raises(ImportError, match=re.escape(f"`{old.path}` is not served: {old.change}")):
                getattr(module, name)
        else:
            assert getattr(module, name) is not None
    assert not home.endswith("models.bert") or "PipelinedBertForMaskedLM" in dir(module)


def test_what_is_refused_says_why_and_what_changed_is_said():
    for old in NAMES:
        assert old.new or old.change, old.path
        assert old.target is not None or len(old.change) > 20, old.path
