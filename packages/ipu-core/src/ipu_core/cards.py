# SPDX-License-Identifier: Apache-2.0
"""The CUDA devices of this machine, as values; nothing else asks torch about them.

`number_of_cards` and `card_of` are the door that tests replace where there is no card.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch

CUDA = "cuda"
OLDEST_FOR_TRITON = (7, 0)
# What torch's wheels call the package; the second is that of its nightly ones.
TRITON_PACKAGES = ("triton", "pytorch-triton")
C_COMPILERS = ("gcc", "clang", "cc")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A CUDA device.

    Attributes:
        name: as its driver gives it.
        capability: the compute capability, major and minor.
        total_bytes: of its memory.
    """

    name: str
    capability: tuple[int, int]
    total_bytes: int

    @property
    def computes_bfloat16(self) -> bool:
        """Whether its units multiply bfloat16 themselves."""
        return self.capability >= (8, 0)

    def __str__(self) -> str:
        """Return its name and its compute capability."""
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"


def number_of_cards() -> int:
    """Return how many CUDA devices torch can compute on."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_there_are_none() -> str:
    """Return why torch can compute on no CUDA device here."""
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} is built without CUDA"
    return f"none: torch is built for CUDA {torch.version.cuda}, and its driver finds no device (`nvidia-smi`)"


def card_of(device: torch.device) -> Card:
    """Return what a CUDA device is; it is there."""
    found = torch.cuda.get_device_properties(device)
    return Card(name=found.name, capability=(found.major, found.minor), total_bytes=found.total_memory)


def is_card(device: torch.device) -> bool:
    """Return whether a device is a CUDA device."""
    return device.type == CUDA


def triton_version() -> str:
    """Return the version of Triton, which makes the kernels of a card; empty where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return ""
    for package in TRITON_PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def card_facts(device: torch.device) -> tuple[str, ...]:
    """Return everything that code for a card depends on: two cards with equal values can share it."""
    return (str(card_of(device)), f"CUDA {torch.version.cuda}", f"Triton {triton_version()}")


def obstacle_to_compiling(device: torch.device, environment: Mapping[str, str] = os.environ) -> str:
    """Return why nothing can be compiled for a card, and what to change; empty where nothing stands in the way."""
    card = card_of(device)
    if card.capability < OLDEST_FOR_TRITON:
        oldest = ".".join(map(str, OLDEST_FOR_TRITON))
        return f"{device} is a {card}, and Triton makes kernels for {oldest} and later: leave `compile` out"
    if not triton_version():
        return (
            f"{device} is a {card}, whose kernels Triton makes, and Python finds no package `triton` (torch calls that "
            '"cannot find a working triton installation"): `pip install triton`, which torch\'s wheels for CUDA bring, '
            "or leave `compile` out"
        )
    named = environment.get("CC", "").split()[:1]
    if not any(map(shutil.which, named or C_COMPILERS)):
        looked = ", ".join(f"`{name}`" for name in named or C_COMPILERS)
        return (
            f"{device} is a {card}, whose kernels Triton starts by a stub in C, and there is no C compiler ({looked}): "
            "install one, or name one by the variable CC, or leave `compile` out"
        )
    return ""
