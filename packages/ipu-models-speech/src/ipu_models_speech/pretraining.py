# SPDX-License-Identifier: Apache-2.0
"""Wav2Vec2's pre-training with static shapes, and its temperature as an input that may change from call to call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ipu_core.rewrites.inputs import taken_inputs
from ipu_core.rewrites.source_edits import Edit

TEMPERATURE = "gumbel_temperature"

NEGATIVES = Edit(
    target="transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2ForPreTraining.forward",
    changes=(
        # Rows are counted from the first one of a micro-batch, wherever in a batch they stand.
        (
            "sampled_negative_indices.long().view(-1)",
            """(
                sampled_negative_indices.long() % sequence_length
                + sequence_length * torch.arange(batch_size, device=quantized_features.device)[:, None, None]
            ).view(-1)""",
        ),
        (
            """
            if neg_is_pos.any():
                logits[1:][neg_is_pos] = float("-inf")
            """,
            """
            logits = torch.cat([logits[:1], torch.where(neg_is_pos, float("-inf"), logits[1:])])
            """,
        ),
    ),
    digest="37a678b6b2f71176",
    reason="whether a negative equals its positive is read off values, and indices count rows of a whole batch",
    versions=">=5.23,<5.25",
)


@contextlib.contextmanager
def temperature_as_input(model: Any, config: Any) -> Iterator[None]:
    """Let a batch say how soft the choice of code vectors is: `gumbel_temperature`, a number for each row.

    It takes the place of `set_gumbel_temperature`, which a captured graph would not hear of.
    """
    quantizer = getattr(model, "quantizer", None)
    if quantizer is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(taken_inputs(model, TEMPERATURE))
        before = quantizer.temperature

        def warm(module: Any, args: Any) -> None:
            if TEMPERATURE in given:
                quantizer.temperature = given[TEMPERATURE].float().mean()

        def cool(module: Any, args: Any, outputs: Any) -> None:
            quantizer.temperature = before

        stack.callback(quantizer.register_forward_pre_hook(warm).remove)
        stack.callback(quantizer.register_forward_hook(cool, always_call=True).remove)
        yield


def temperature_given(model: Any, config: Any, batch: Mapping[str, Any]) -> None:
    """Check that a batch to pre-train with says the temperature.

    Raises:
        ValueError: it does not.
    """
    if hasattr(model, "quantizer") and not config.inference and TEMPERATURE not in batch:
        raise ValueError(
            f"pre-training takes the temperature of its quantizer from the batch, and it has no `{TEMPERATURE}`: give "
            "a number for each row, such as `torch.full((rows,), 2.0)`, or collate with `PretrainingCollator`"
        )
