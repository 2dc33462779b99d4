# SPDX-License-Identifier: Apache-2.0
"""Ask of one class of every installed family whether it works on the versions that are installed here.

Of each: a plan, the conformance kit's equality and its generation. What breaks is printed by its name in transformers.
`nox -s lowest` and `nox -s newest` run it; it needs nothing but the packages and pytest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import transformers
from ipu_core import IPUConfig, plan, to_pipelined
from ipu_core.plugins.family import load
from ipu_core.plugins.registry import installed
from ipu_core.samples import sample_batch
from ipu_core.testing import kit


def planned(family, name: str) -> None:
    """Check a plan of training, or of inference where the class has no loss."""
    model = kit.tiny_model(family, name)
    batch = sample_batch(model, batch_size=2, length=16)
    plan(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1])), batch, "labels" not in batch)


def exact(family, name: str) -> None:
    """Check equality of training; some families compute a part in float32 whatever their weights are."""
    kit.exact(family, name, atol=kit.SINGLE_PRECISION)


CHECKS = (kit.declared, planned, kit.infers, exact, kit.generates)


def class_to_ask(family) -> str:
    """Return the class of a family that says most: one that generates, or the first with a loss of its own."""
    classes = {name: kit.declared_class(family, name).plain_class() for name in family.models}
    generating = [name for name, cls in classes.items() if cls.can_generate()]
    return next(iter([*generating, *(name for name in classes if "For" in name), *classes]))


def model_types() -> list[str]:
    """Return the model types of transformers that are declared; models of diffusers are asked by their own tests."""
    plain = [(claim.family.model_type, load(claim.target).plain_class()) for claim in installed().claims()]
    of_diffusers = {model_type for model_type, cls in plain if cls.__module__.startswith("diffusers.")}
    return [*dict.fromkeys(model_type for model_type, _ in plain if model_type not in of_diffusers)]


def ask(model_type: str) -> tuple[str, list[str]]:
    """Make every check of one family; returns the line to print, and what broke."""
    family = installed().family(model_type)
    name, notes, failures = class_to_ask(family), [], []
    for check in CHECKS:
        try:
            check(family, name)
        except pytest.skip.Exception as skipped:
            notes.append(f"{check.__name__}: {skipped}")
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            failures.append(f"{model_type} (transformers.{name}), {check.__name__}: {text[:600]}")
            notes.append(f"{check.__name__} FAILED")
    return f"{model_type:20} {name:40} {'; '.join(notes) or 'equal'}", failures


def quiet() -> None:
    """Leave the output to the table, and a core to each process."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main() -> int:
    """Print a line for each family, and what broke; returns 1 where something did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--part", default="1/1", help="1/3 is the first third of them; all by default")
    options = parser.parse_args()
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")), sep=", ", flush=True)
    types = options.types or model_types()
    part, parts = map(int, options.part.split("/"))
    types = types[part - 1 :: parts]
    failures = []
    # Processes of their own: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=quiet) as pool:
        for line, failed in pool.map(ask, types):
            print(line, flush=True)
            failures += failed
    print(*(f"FAILED: {failure}" for failure in failures), sep="\n", end="\n" if failures else "")
    print(f"{len(types)} families, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
