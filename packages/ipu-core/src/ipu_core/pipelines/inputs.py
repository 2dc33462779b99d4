# SPDX-License-Identifier: Apache-2.0
"""What a user may give a pipeline: texts, images and sounds are looked at before upstream prepares them."""

from __future__ import annotations

import io
import os
import shutil
import warnings
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_torchaudio_available

from ..errors import InputError
from .tasks import IMAGE, SOUND

_REMOTE = ("http://", "https://", "data:image/")


def refuse_nothing(inputs: Any, task: str) -> None:
    """Refuse None, an empty list and an empty text.

    Raises:
        InputError: it is one of them.
    """
    if inputs is None:
        raise InputError(f"`{task}` was given None: give an input, or a list of them")
    if isinstance(inputs, (list, tuple)) and not inputs:
        raise InputError(f"`{task}` was given an empty list: give at least one input")
    if isinstance(inputs, str) and not inputs.strip():
        raise InputError(f"`{task}` was given an empty text, {inputs!r}: give at least one word, or leave it out")


def opened(given: Any, task: str, takes: str, *, rate: int | None = None) -> Any:
    """Return an input as upstream takes it: files of images and sounds read, with Pillow and SciPy.

    Raises:
        InputError: nothing, a file that is not there or cannot be read, a sound of another rate than `rate`.
    """
    refuse_nothing(given, task)
    if takes == IMAGE and not isinstance(given, Mapping):
        return image(given)
    return sound(given, rate) if takes == SOUND else given


def image(given: Any) -> Any:
    """Return an image, read where it is a path or bytes; URLs and encoded text are upstream's to read."""
    from PIL import Image

    if isinstance(given, str) and given.startswith(_REMOTE):
        return given
    name = given if isinstance(given, (str, Path)) else "an image"
    if isinstance(given, (str, Path)):
        if isinstance(given, str) and not os.path.exists(given) and len(given) > 512:
            return given  # encoded in base64
        _refuse_no_file(given, "image")
    source = io.BytesIO(given) if isinstance(given, bytes) else given
    if not isinstance(source, (str, Path, io.BytesIO, Image.Image)):
        raise InputError(f"an image is a {type(given).__name__}: give a path, a `PIL.Image.Image`, or a URL")
    try:
        read = source if isinstance(source, Image.Image) else Image.open(source)
        read.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"`{name}` cannot be read as an image ({error}): give a whole PNG, JPEG or the like"
        ) from error
    return read


def sound(given: Any, rate: int | None) -> Any:
    """Return a sound as upstream takes it: a wave file becomes its samples, channels mixed."""
    if isinstance(given, Path):
        given = str(given)
    if isinstance(given, str) and given.startswith(_REMOTE[:2]):
        return given
    name = given if isinstance(given, str) else "a sound"
    if isinstance(given, str):
        _refuse_no_file(given, "sound")
    if isinstance(given, (str, bytes)):
        given = _samples(given, str(name))
        if given is None:
            return name
    if isinstance(given, Mapping) and "sampling_rate" in given:
        _refuse_other_rates(given["sampling_rate"], rate, str(given.get("path") or name))
        given = dict(given)  # upstream takes it apart
    return given


def _samples(given: str | bytes, name: str) -> dict[str, Any] | None:
    """Read a wave file with SciPy; None leaves it to upstream, which asks ffmpeg."""
    import numpy as np
    from scipy.io import wavfile  # type: ignore[import-untyped]

    content = given if isinstance(given, bytes) else Path(given).read_bytes()
    if content[:4] != b"RIFF":
        if shutil.which("ffmpeg") and isinstance(given, str):
            return None
        raise InputError(
            f"`{name}` is no wave file, and ffmpeg, which reads others, is not installed: give a WAV file, or its "
            "samples as {'raw': array, 'sampling_rate': number}"
        )
    try:
        with warnings.catch_warnings(action="ignore", category=wavfile.WavFileWarning):  # of notes beside the sound
            rate, samples = wavfile.read(io.BytesIO(content))
    except (ValueError, EOFError, wave.Error, OSError) as error:
        raise InputError(f"`{name}` cannot be read as a wave file ({error}): give a whole one") from error
    if samples.dtype.kind in "iu":
        middle = 128 if samples.dtype == np.uint8 else 0  # eight bits have no sign
        samples = (samples.astype(np.float32) - middle) / 2 ** (8 * samples.dtype.itemsize - 1)
    if not samples.size:
        raise InputError(f"`{name}` has no samples: give a recording that is longer than nothing")
    samples = samples.mean(-1) if samples.ndim == 2 else samples
    return {"raw": samples.astype(np.float32), "sampling_rate": rate}


def _refuse_other_rates(came: Any, rate: int | None, name: str) -> None:
    if rate is None or came == rate or is_torchaudio_available():
        return
    raise InputError(
        f"`{name}` has {came} samples a second and the model takes {rate}; upstream resamples with torchaudio, which "
        f"is not installed: install it, or resample to {rate}"
    )


def _refuse_no_file(path: str | Path, kind: str) -> None:
    if not os.path.isfile(path):
        raise InputError(f"there is no {kind} `{path}`: give the path of a file that is there")


def refuse_too_long(given: Any, limit: int | None, count: Callable[[], int], name: str) -> None:
    """Refuse a text that has more tokens than a model takes; `count` is asked where a text may.

    Raises:
        InputError: with the number of tokens.
    """
    if limit is None or _most_tokens(given) <= limit:
        return
    tokens = count()
    if tokens > limit:
        raise InputError(
            f"a text has {tokens} tokens and `{name}` takes {limit}: shorten it, or pass `truncation=True` to lose its "
            "end"
        )


def _most_tokens(given: Any) -> int:
    """Return more than a text can have: each token is a byte at least, and some special ones are added."""
    texts = given.values() if isinstance(given, Mapping) else [given]
    return 8 + sum(len(text.encode()) for text in texts if isinstance(text, str))


def takes_tokens(value: Any) -> bool:
    """Return whether a value is a text, or texts by name."""
    return isinstance(value, str) or (
        isinstance(value, Mapping) and all(isinstance(v, (str, torch.Tensor)) for v in value.values())
    )
