# SPDX-License-Identifier: Apache-2.0
"""Makes the model of a recipe: vocabularies and lengths of the training texts, architectures, pretrained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from ..errors import RecipeError
from .architectures import configuration, parameters
from .checks import model_values
from .model import SequenceModel, SequenceModelConfig
from .reader import ENCODE, NONE, embedded, last_hidden_state
from .schema import Input, ModelConfig, Recipe
from .sequence_default import SEQUENCE_DEFAULT
from .sequences import Encoder, length_of
from .tables import Examples
from .targets import targets_of
from .tokens import PAD, UNKNOWN, Vocabulary, vocabulary_of

# What types call the number of padding; an embedding learns nothing for it.
_PADDING = ("pad_token_id", "pad_index")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """The model of a recipe, and what its rows are made with.

    Attributes:
        model: the model.
        encoders: of the inputs, by name.
        tokens: of the training texts, by the name of their input.
    """

    model: SequenceModel
    encoders: Mapping[str, Encoder]
    tokens: Mapping[str, Sequence[Sequence[int]]]


def build(recipe: Recipe, examples: Examples) -> Built:
    """Return the model of a recipe, with vocabularies, lengths and labels of the training rows.

    Weights are drawn from torch's generator.

    Raises:
        RecipeError: an architecture that cannot be made, or cannot read rows of that length; targets of one value.
    """
    settings, encoders, tokens, models = [], {}, {}, {}
    for given in recipe.inputs:
        encoders[given.name], tokens[given.name] = _encoded(given, examples.texts[given.name])
        model = _architecture(given.model_config, encoders[given.name])
        settings.append(_settings(given, encoders[given.name], model))
        models[given.name] = model
    config = SequenceModelConfig(
        inputs=settings,
        targets=targets_of(recipe.outputs, examples.targets),
        fusion_hidden_size=recipe.fusion.hidden_size,
        fusion_dropout=recipe.fusion.dropout,
    )
    made = SequenceModel(config)
    for given in recipe.inputs:
        made.readers[given.name].model = models[given.name]
        if given.model_config.freeze_pretrained_model:
            models[given.name].requires_grad_(False)
    return Built(model=made, encoders=encoders, tokens=tokens)


def _encoded(given: Input, texts: Sequence[str]) -> tuple[Encoder, list[list[int]]]:
    """Return how the texts of an input become rows, and their tokens."""
    info, model = given.input_type_info, given.model_config
    vocabulary = vocabulary_of(info, texts, checkpoint=model.model_type if model.pretrained_model else None)
    tokens = [vocabulary.encode(text) for text in texts]
    around = sum(map(len, vocabulary.around))
    length = length_of(info, tokens, around=around, window=model.window_size)
    if length <= around:
        raise RecipeError(f"`{given.name}` has rows of {length} tokens, and its checkpoint puts {around} around a text")
    strategy = info.sampling_strategy_if_longer
    return Encoder(vocabulary=vocabulary, length=length, strategy=strategy), tokens


def _architecture(given: ModelConfig, encoder: Encoder) -> Any:
    """Return the architecture of an input, with a vector for every token of its vocabulary."""
    vocabulary = encoder.vocabulary
    if not given.pretrained_model:
        return transformers.AutoModel.from_config(_sized(given, vocabulary))
    config = configuration(given.model_type, model_values(given))
    try:
        model = transformers.AutoModel.from_pretrained(given.model_type, config=config, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise RecipeError(f"the weights of `{given.model_type}` cannot be loaded: {text}") from error
    if vocabulary.kind != "pretrained":
        _take_vocabulary(model, vocabulary, given.model_type)
    return model


def _sized(given: ModelConfig, vocabulary: Vocabulary) -> Any:
    """Return the configuration of fresh weights, whose table has a row a token."""
    values = model_values(given)
    config = configuration(given.model_type, values)
    wanted = values.get("vocab_size")
    if wanted is not None and wanted < len(vocabulary):
        raise RecipeError(
            f"`vocab_size: {wanted}` is too few for the {len(vocabulary)} tokens of the texts: leave it out, or raise "
            "`min_freq`"
        )
    known = parameters(config.model_type)
    padding = {name: vocabulary.pad for name in _PADDING if name in known and name not in values}
    size = {} if wanted is not None else {"vocab_size": len(vocabulary)}
    return configuration(given.model_type, {**values, **size, **padding})


def _take_vocabulary(model: Any, vocabulary: Vocabulary, checkpoint: str) -> None:
    """Give a pretrained model another vocabulary: tokens that it knows keep their vectors, others are drawn."""
    before = model.get_input_embeddings().weight.detach().clone()
    known, special = {}, {}
    try:
        backend = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        known = backend.get_vocab()
        special = {PAD: backend.pad_token_id, UNKNOWN: backend.unk_token_id}
    except (OSError, ValueError, KeyError):
        pass  # a checkpoint without a tokenizer says of no row which token it is
    model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    table = model.get_input_embeddings().weight
    tokens = vocabulary.numbers or vocabulary.backend.get_vocab()
    with torch.no_grad():
        table.normal_(std=float(before.std()))
        for token, number in tokens.items():
            row = special[token] if special.get(token) is not None else known.get(token)
            if row is not None:
                table[number] = before[row]


def _settings(given: Input, encoder: Encoder, model: Any) -> dict[str, Any]:
    """Return what `SequenceModelConfig.inputs` says of an input."""
    says = given.model_config
    position = says.position
    if position is None and says.model_type == SEQUENCE_DEFAULT:
        position = ENCODE
    embedding_size, hidden_size = _widths(model, says.window_size or encoder.length, says.model_type)
    return {
        "name": given.name,
        "length": encoder.length,
        "sampling_strategy_if_longer": encoder.strategy,
        "model": model.config.to_dict(),
        "embedding_size": embedding_size,
        "hidden_size": hidden_size,
        "position": position,
        "position_dropout": 0.1 if says.position_dropout is None else says.position_dropout,
        "window_size": says.window_size,
        "pool": says.pool or NONE,
        "modality_dropout_rate": given.input_type_info.modality_dropout_rate,
    }


def _widths(model: Any, length: int, name: str) -> tuple[int, int]:
    """Return the widths of the embedding and of the last hidden state of a model, by reading a row of a length."""
    model.eval()
    ids = torch.zeros(1, length, dtype=torch.long)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            vectors = embedded(model, ids)
            hidden = last_hidden_state(model, vectors, torch.ones_like(ids))
    except (IndexError, ValueError, RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"`{name}` cannot read {length} tokens: {text}; lower `max_length`, set `window_size`, or raise the number "
            "of its positions in `model_init_config`"
        ) from error
    finally:
        model.train()
    return vectors.shape[-1], hidden.shape[-1]
