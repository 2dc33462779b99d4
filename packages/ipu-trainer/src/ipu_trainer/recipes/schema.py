# SPDX-License-Identifier: Apache-2.0
"""Every key of a recipe: its type, its default, what it means, and what is refused with which reason.

The blocks are frozen dataclasses; `ipu train --explain` prints them, and `checks.py` reads a file into them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .reader import POOLS, POSITIONS
from .sequence_default import SEQUENCE_DEFAULT

FROM_START, UNIFORM = STRATEGIES = ("from_start", "uniform")
LONGEST, AVERAGE = "max", "average"
BASIC_ENGLISH, BPE = "basic_english", "bpe"
_NOT_HERE = "it needs a package of its own, and a model of each language: tokenize before, and give `split_on`"
# What `tokenizer` may be elsewhere, and why it is not here.
REFUSED_TOKENIZERS = dict.fromkeys(("spacy", "moses", "toktok", "revtok", "subword"), _NOT_HERE)


def key(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    refused: str = "",
    reasons: Mapping[str, str] | None = None,
) -> Any:
    """Declare a key of a block.

    Args:
        default: its value where it is left out; `dataclasses.MISSING` where it has to be given.
        meaning: what it does.
        choices: the texts that it may be.
        minimum: the smallest number that it may be.
        maximum: the largest one.
        refused: why it cannot be given; such a key is known, and never read.
        reasons: texts that it cannot be, and why.
    """
    bounds = {"choices": choices, "minimum": minimum, "maximum": maximum}
    said = {**means(meaning), **bounds, "refused": refused, "reasons": reasons or {}}
    return dataclasses.field(default=default, metadata=said)


def means(meaning: str) -> dict[str, Any]:
    """Return what a field knows about a key without choices or bounds."""
    return {"meaning": meaning, "choices": (), "minimum": None, "maximum": None, "refused": "", "reasons": {}}


@dataclass(frozen=True, kw_only=True)
class InputInfo:
    """`input_info`: where the texts of an input are."""

    input_name: str = key(dataclasses.MISSING, "name of the input; its column, where texts are in a table")
    input_source: str | None = key(
        None, "folder with a file `ID.txt` for each text, or a table with a column of them; `data.source` by default"
    )
    input_type: str = key("sequence", "kind of input", choices=("sequence",))


@dataclass(frozen=True, kw_only=True)
class InputTypeInfo:
    """`input_type_info`: how a text becomes tokens of one length."""

    max_length: int | str = key(
        AVERAGE,
        "tokens of a row: a number, `max` or `average` of the training texts; shorter texts are padded",
        choices=(LONGEST, AVERAGE),
        minimum=1,
    )
    sampling_strategy_if_longer: str = key(
        UNIFORM,
        "part of a longer text that is read: its beginning, or a part that begins anywhere, another one each time in "
        "training and always the same in evaluation",
        choices=STRATEGIES,
    )
    split_on: str | None = key(
        " ", "text between words: each piece is tokenized by itself. ` ` is any white space, null every character"
    )
    tokenizer: str | None = key(
        None,
        "how a piece becomes tokens: null as it is, `basic_english` in lower case with punctuation apart, `bpe` by "
        "pairs learned from the training texts; of a pretrained model its own",
        choices=(BASIC_ENGLISH, BPE),
        reasons=REFUSED_TOKENIZERS,
    )
    tokenizer_language: str | None = key(None, "language of `basic_english`, which has one", choices=("en",))
    min_freq: int | None = key(
        None,
        "tokens that are rarer in the training texts are unknown; 10 by default, and 1 with a vocabulary that is given",
        minimum=1,
    )
    vocab_file: str | None = key(
        None, "vocabulary: a token a line, or JSON of tokens and numbers; for `bpe` a tokenizer.json"
    )
    adaptive_tokenizer_max_vocab_size: int | None = key(None, "tokens that `bpe` learns at most (32000)", minimum=4)
    modality_dropout_rate: float = key(
        0.0, "share of the rows for which training leaves out this input", minimum=0.0, maximum=0.99
    )
    mixing_subtype: str | None = key(
        None, "how two texts are mixed", refused="texts are not mixed in training: leave it out"
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`model_config`: the architecture that reads an input."""

    model_type: str = key(
        SEQUENCE_DEFAULT, "model type, or a directory with a checkpoint (or the name of a downloaded one)"
    )
    model_init_config: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=means("parameters of the model type, over the directory's; `ipu train --explain TYPE` lists them"),
    )
    pretrained_model: bool = key(False, "whether to begin with the weights of the checkpoint")
    freeze_pretrained_model: bool = key(False, "whether these weights stay as they are, the embedding's too")
    embedding_dim: int | None = key(
        None, f"width of the embedding: 64 for {SEQUENCE_DEFAULT}; other architectures have their own", minimum=1
    )
    position: str | None = key(
        None,
        "positions added to the embedding: fixed sines (`encode`), or a table that is learned and begins as zeros "
        f"(`embed`); {SEQUENCE_DEFAULT} has `encode` by default, others what they bring",
        choices=POSITIONS,
    )
    position_dropout: float | None = key(
        None, "dropout of the embedding after positions were added (0.1)", minimum=0.0, maximum=0.99
    )
    window_size: int = key(0, "tokens that the architecture reads at once; 0 for all of a row", minimum=0)
    pool: str | None = key(
        None, "mean or largest value over the tokens, or all of them side by side (none)", choices=POOLS
    )
    masked: bool | None = key(
        None,
        "training on masked tokens",
        refused="targets are of a table; examples/masked_language_modeling.py does so",
    )


@dataclass(frozen=True, kw_only=True)
class OutputInfo:
    """`output_info`: where the targets are."""

    output_source: str | None = key(None, "table with the targets; `data.source` by default")
    output_name: str = key("output", "name of the output, before those of its targets in metrics")
    output_type: str = key("tabular", "kind of output", choices=("tabular",))


@dataclass(frozen=True, kw_only=True)
class OutputTypeInfo:
    """`output_type_info`: the columns to predict."""

    target_cat_columns: list[str] = dataclasses.field(
        default_factory=list, metadata=means("columns of labels, which are classified")
    )
    target_con_columns: list[str] = dataclasses.field(
        default_factory=list, metadata=means("columns of numbers, which are regressed")
    )


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """`fusion`: between the features of the inputs and the targets."""

    hidden_size: int | None = key(None, "width of a layer between them; null for none", minimum=1)
    dropout: float = key(0.1, "dropout of the features", minimum=0.0, maximum=0.99)


@dataclass(frozen=True, kw_only=True)
class Data:
    """`data`: tables that inputs and outputs share, and what is held out."""

    source: str | None = key(
        None, "table (csv, tsv, parquet, jsonl), or a folder of texts, LABEL/ID.txt: a table of ID, text and label"
    )
    columns: dict[str, str] = dataclasses.field(
        default_factory=dict,
        metadata=means("column of an input's texts, by its name; by default the one of that name, or `text`"),
    )
    id_column: str = key("ID", "column that says which text and which row belong together")
    eval_source: str | None = key(None, "another `source` to evaluate on")
    eval_size: int | float | None = key(None, "rows to hold out, or a share of them (0.1)", minimum=0.0)
    unlabelled: str = key("refuse", "what to do with a text that the table has no row for", choices=("refuse", "drop"))


@dataclass(frozen=True, kw_only=True)
class Input:
    """An entry of `inputs`."""

    input_info: InputInfo
    input_type_info: InputTypeInfo = dataclasses.field(default_factory=InputTypeInfo)
    model_config: ModelConfig = dataclasses.field(default_factory=ModelConfig)

    @property
    def name(self) -> str:
        """The name of the input."""
        return self.input_info.input_name


@dataclass(frozen=True, kw_only=True)
class Output:
    """An entry of `outputs`."""

    output_info: OutputInfo = dataclasses.field(default_factory=OutputInfo)
    output_type_info: OutputTypeInfo = dataclasses.field(default_factory=OutputTypeInfo)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a recipe says, with defaults in place.

    Attributes:
        inputs: what is read; several make one model.
        outputs: what is predicted.
        fusion: what is between them.
        data: tables they share.
        ipu_config: options of `IPUConfig`.
        training: arguments of `IPUTrainingArguments`.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    fusion: Fusion = dataclasses.field(default_factory=Fusion)
    data: Data = dataclasses.field(default_factory=Data)
    ipu_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


BLOCKS: dict[str, type[Any]] = {
    "input_info": InputInfo,
    "input_type_info": InputTypeInfo,
    "model_config": ModelConfig,
    "output_info": OutputInfo,
    "output_type_info": OutputTypeInfo,
    "fusion": Fusion,
    "data": Data,
}
FREE_BLOCKS = ("ipu_config", "training")
