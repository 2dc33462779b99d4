# SPDX-License-Identifier: Apache-2.0
"""Recordings as the examples on speech read them: wave files, of one rate, of one length, without a codec library."""

from __future__ import annotations

import csv
import io
import math
import random
from pathlib import Path
from typing import Any

import corpus
import datasets
import numpy as np
import refusals
import task
from scipy import signal
from scipy.io import wavfile

SPLITS = ("train", "validation", "test")


def loaded(options: task.Options) -> datasets.DatasetDict:
    """Read a folder of wave files, or any other data whose column `audio` has wave files.

    In a folder, or its folders `train`, `validation` and `test`, a metadata.csv names the files (`file_name`) and says
    what else is known of them; without one, the files are in folders named as their labels.
    """
    path = Path(options.data)
    parts = {split: path / split for split in SPLITS if (path / split).is_dir()} or {"train": path}
    rows = {split: listed(part) for split, part in parts.items()}
    if all(rows.values()):
        return datasets.DatasetDict({split: datasets.Dataset.from_list(own) for split, own in rows.items()})
    data = corpus.loaded(options)
    for split, own in data.items():
        for name, feature in own.features.items():
            if isinstance(feature, datasets.Audio):
                data[split] = data[split].cast_column(name, datasets.Audio(decode=False))
    return data


def listed(folder: Path) -> list[task.Row]:
    """Return the rows of metadata.csv, or of folders named as labels; none where there is neither."""
    listing = folder / "metadata.csv"
    if not listing.is_file():
        return [{"audio": {"path": str(p)}, "label": p.parent.name} for p in sorted(folder.glob("*/*.wav"))]
    with listing.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or "file_name" not in rows[0]:
        refusals.refuse(f"{listing} has no column file_name: it names the wave file of each row")
    return [{"audio": {"path": str(folder / row["file_name"])}, **row} for row in rows]


def wave(audio: dict[str, Any], rate: int) -> np.ndarray:
    """Return the samples of a recording as float32 [N] at `rate` samples a second, its channels mixed."""
    if audio.get("array") is not None:
        own_rate, samples = audio["sampling_rate"], np.asarray(audio["array"], dtype=np.float32)
    else:
        source = io.BytesIO(audio["bytes"]) if audio.get("bytes") else audio["path"]
        with task.refusing(f"{audio.get('path')} cannot be read as a wave file: ", OSError, ValueError):
            own_rate, samples = wavfile.read(source)
    if samples.dtype.kind in "iu":
        middle = 128 if samples.dtype == np.uint8 else 0  # eight bits have no sign
        samples = (samples.astype(np.float32) - middle) / 2 ** (8 * samples.dtype.itemsize - 1)
    samples = samples.mean(-1) if samples.ndim == 2 else samples
    common = math.gcd(own_rate, rate)
    return signal.resample_poly(samples, rate // common, own_rate // common).astype(np.float32)


def with_waves(data: datasets.DatasetDict, *, rate: int, max_seconds: float | None) -> tuple[datasets.DatasetDict, int]:
    """Return the data with a column `wave` for `audio`, and the most samples a row has.

    Rows of train and validation that are longer than `max_seconds` are left out; those of test are cut.
    """
    data = data.map(lambda row: {"wave": wave(row["audio"], rate)}, remove_columns=["audio"])
    if max_seconds is not None:
        most = int(max_seconds * rate)
        for split in set(data) - {"test"}:
            rows = data[split]
            data[split] = rows.filter(lambda row: len(row["wave"]) <= most)
            if left_out := len(rows) - len(data[split]):
                print(f"{split}: {left_out} of {len(rows)} recordings are longer than {max_seconds} s, and left out")
        return data, most
    return data, max(len(row) for split in data.values() for row in split["wave"])


def tones(draw: random.Random, notes: list[float], rate: int, *, seconds: float = 0.12) -> dict[str, Any]:
    """Play notes, given in hertz, one after the other with a little noise between them."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(draw.randrange(2**32))
    parts = []
    for note in notes:
        parts.append(noise.normal(size=int(draw.uniform(0.02, 0.06) * rate)) * 0.01)
        parts.append(np.sin(2 * np.pi * note * time) * np.hanning(len(time)))
    return {"array": np.concatenate(parts).astype(np.float32), "sampling_rate": rate}
