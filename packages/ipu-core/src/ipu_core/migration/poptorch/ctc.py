# SPDX-License-Identifier: Apache-2.0
"""Decoding of what a CTC head gives, by a beam search over prefixes, on the host."""

from __future__ import annotations

import math
from collections import defaultdict

import torch

from .errors import createPoptorchError
from .host_calls import host_call
from .trace import Trace

Beam = dict[tuple[int, ...], tuple[float, float]]


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the likeliest label sequences of each row.

    Args:
        probs: log-probabilities, [time, rows, classes].
        lengths: the steps of each row, [rows].
        blank: the class that stands for no label.
        beam_width: prefixes that are kept at each step.
        top_paths: sequences to return.

    Returns:
        Their log-probabilities [rows, top_paths], their lengths [rows, top_paths], and the labels
        [rows, top_paths, time], which end with blanks.

    Raises:
        Error: an argument that does not fit.
    """
    if probs.ndim != 3:
        raise createPoptorchError(
            f"Incorrect shape for first input to CTC beam search decoder {list(probs.shape)}: give [time, rows, "
            "classes]."
        )
    if lengths.ndim != 1 or lengths.shape[0] != probs.shape[1]:
        raise createPoptorchError(
            f"lengths {list(lengths.shape)} must have one number for each of {probs.shape[1]} rows."
        )
    if not 0 <= blank < probs.shape[2] or not 0 < top_paths <= beam_width:
        raise createPoptorchError(
            f"blank {blank} must be one of {probs.shape[2]} classes, and top_paths {top_paths} at most the beam_width "
            f"{beam_width}."
        )
    steps, rows = probs.shape[:2]
    like = [
        torch.empty(rows, top_paths),
        torch.empty(rows, top_paths, dtype=torch.int32),
        torch.empty(rows, top_paths, steps, dtype=torch.int32),
    ]

    def decode(probs: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        return _decoded(probs, lengths, blank, beam_width, top_paths)

    if Trace.current is None:
        first, second, third = decode(probs, lengths)
    else:
        first, second, third = host_call(decode, [probs, lengths], like)
    return first, second, third


def _decoded(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int, beam_width: int, top_paths: int
) -> list[torch.Tensor]:
    steps, rows = probs.shape[:2]
    scores = torch.full((rows, top_paths), -math.inf)
    sizes = torch.zeros(rows, top_paths, dtype=torch.int32)
    labels = torch.full((rows, top_paths, steps), blank, dtype=torch.int32)
    for row in range(rows):
        for i, (path, score) in enumerate(
            _paths(probs[: int(lengths[row]), row].tolist(), blank, beam_width)[:top_paths]
        ):
            scores[row, i], sizes[row, i] = score, len(path)
            labels[row, i, : len(path)] = torch.tensor(path, dtype=torch.int32)
    return [scores, sizes, labels]


def _paths(steps: list[list[float]], blank: int, beam_width: int) -> list[tuple[tuple[int, ...], float]]:
    """Return label sequences with their log-probabilities, the likeliest first."""
    beam: Beam = {(): (0.0, -math.inf)}  # of a prefix that ends in a blank, and in its last label
    for step in steps:
        found: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (ends_blank, ends_label) in beam.items():
            both = _added(ends_blank, ends_label)
            found[prefix][0] = _added(found[prefix][0], both + step[blank])
            for label, score in enumerate(step):
                if label == blank:
                    continue
                is_repeated = bool(prefix) and prefix[-1] == label
                if is_repeated:
                    found[prefix][1] = _added(found[prefix][1], ends_label + score)
                longer = (*prefix, label)
                found[longer][1] = _added(found[longer][1], (ends_blank if is_repeated else both) + score)
        best = sorted(found.items(), key=lambda item: -_added(*item[1]))[:beam_width]
        beam = {prefix: (ends[0], ends[1]) for prefix, ends in best}
    return [(prefix, _added(*ends)) for prefix, ends in beam.items()]


def _added(first: float, second: float) -> float:
    """Return the logarithm of the sum of two numbers whose logarithms are given."""
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
