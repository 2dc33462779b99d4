# SPDX-License-Identifier: Apache-2.0
"""Train every architecture of `tiny.json` from a recipe in YAML for two steps, on two IPUs; `nox -s catalogue`.

A recipe a type is generated and run as `ipu train` does: the loss is a number, weights have changed, and what was saved
predicts, loaded anew, what the trained model predicts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from ipu_core.errors import nearest

TINY: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "tiny.json").read_text())
# Recurrences are unrolled, so that their graphs grow with the length.
LENGTHS = {"mamba": 6, "rwkv": 6}
LENGTH = 16
WORDS = [f"w{number}" for number in range(40)]
ROWS, STEPS, TURNS = 16, 2, 16


def recipe_of(model_type: str, folder: Path) -> dict[str, Any]:
    """Return what the recipe of a type says."""
    return {
        "input_info": {"input_source": str(folder / "texts.csv"), "input_name": "text", "input_type": "sequence"},
        "input_type_info": {"max_length": LENGTHS.get(model_type, LENGTH), "split_on": " ", "min_freq": 1},
        "model_config": {
            "model_type": model_type,
            "pretrained_model": False,
            "position": "embed",
            "pool": "avg",
            "model_init_config": TINY[model_type],
        },
        "output_info": {"output_source": str(folder / "texts.csv"), "output_name": "out", "output_type": "tabular"},
        "output_type_info": {"target_cat_columns": ["label"], "target_con_columns": ["number"]},
        "data": {"eval_size": 4},
        "ipu_config": {"layers_per_ipu": [-1, -1], "gradient_accumulation_steps": 2},
        "training": {
            "output_dir": str(folder / "out"),
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "disable_tqdm": True,
        },
    }


def write_texts(file: Path) -> None:
    """Write a table of random texts, a label that their first word gives away, and a number."""
    draw = random.Random(0)
    lines = ["ID,text,label,number"]
    for number in range(ROWS):
        text = draw.choices(WORDS, k=draw.randint(3, LENGTH))
        lines.append(f"{number},{' '.join(text)},{'even' if int(text[0][1:]) % 2 else 'odd'},{len(text)}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(model_type: str) -> tuple[str, float, str, float]:
    """Run the recipe of a type; return the type, the loss, what went wrong ("" for nothing), and the seconds."""
    started = time.perf_counter()
    loss, wrong = math.nan, ""
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet[0], quiet[1]:
            loss = _train(model_type, Path(folder))
    except Exception as error:
        wrong = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return model_type, loss, wrong, time.perf_counter() - started


def _train(model_type: str, folder: Path) -> float:
    from ipu_trainer.recipes import Trained, build, check, document_of, run

    write_texts(folder / "texts.csv")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(recipe_of(model_type, folder), sort_keys=False), encoding="utf-8")
    done = run([file], say=lambda line: None)
    checked = check(document_of([file]))
    transformers.set_seed(done.trainer.args.seed)
    fresh = dict(build(checked.recipe, checked.train).model.named_parameters())
    model = done.trained.model.eval()
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, fresh[name])]
    assert any(name.startswith("readers.text.model.") for name in changed), "no weight of the architecture has changed"
    texts = {"text": [" ".join(WORDS[:5]), " ".join(WORDS[7:30])]}
    found = []
    for trained in (done.trained, Trained.load(folder / "out")):
        torch.manual_seed(0)
        found.append(trained.predict(texts))
    assert found[0] == found[1], f"what was saved predicts {found[1]}, and the trained model {found[0]}"
    loss = done.after["eval_loss"]
    assert math.isfinite(loss) and done.trainer.state.global_step == STEPS, f"loss {loss} after {STEPS} steps"
    return loss


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a type; give 1 where one does not train, 2 for a type that is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; by default all")
    parser.add_argument("--turn", type=int, help=f"one of {TURNS} shares of them, which take turns")
    parser.add_argument("--all", action="store_true", help="all of them, which is the default")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    for name in options.types:
        if name not in TINY:
            print(f"no model type `{name}` in the catalogue{nearest(name, TINY)}", file=sys.stderr)
            return 2
    types = options.types or (list(TINY) if options.turn is None else list(TINY)[options.turn % TURNS :: TURNS])
    started, failed = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(options.processes, mp_context=context, initializer=_quiet) as pool:
        for model_type, loss, wrong, seconds in pool.map(train, types):
            failed += bool(wrong)
            print(f"{model_type:20} {'FAIL ' + wrong if wrong else f'loss {loss:.3f}'} {seconds:6.1f} s", flush=True)
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(types) - failed} of {len(types)} types train from a recipe, in {minutes:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
