# SPDX-License-Identifier: Apache-2.0
"""`ipu trace`: training steps with random weights, and what ran when."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import add_model, new_file
from .console import import_torch, note

EXAMPLES = (
    "ipu trace --family bert --class BertForMaskedLM --layers-per-ipu 1,1 --accumulation 4 --schedule 1f1b "
    "--svg timeline.svg",
)


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "run training steps with random weights, and draw what ran when"
    command = commands.add_parser("trace", help=meaning, examples=EXAMPLES)
    add_model(command)
    command.add_argument("--svg", metavar="FILE", type=new_file, help="write a picture")
    command.add_argument("--chrome", metavar="FILE", type=new_file, help="write Chrome's trace JSON")
    command.set_defaults(run=run, inference=False, ipu=None, measure=False)


def run(options: argparse.Namespace) -> int:
    """Run two steps, and print the timeline of the second."""
    import_torch()
    from ..executor import training_model
    from .random_model import combined_batch, random_model

    model = random_model(options, device="cpu")
    batch = combined_batch(options, model, model.ipu_config, rows=options.batch)
    executor = training_model(model, outputs=["loss"])
    for step in ("warm up", "measure"):
        note(f"{step} ...")
        executor(**batch)
    timeline = executor.timeline()
    print(timeline)
    for path, text in ((options.svg, timeline.to_svg), (options.chrome, timeline.to_chrome_trace)):
        if path is not None:
            path.write_text(text(), encoding="utf-8")
            print(f"wrote {path}")
    return 0
