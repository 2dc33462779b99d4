# SPDX-License-Identifier: Apache-2.0
"""`ipu pipeline`: a task on texts, or on files of images or sounds."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..paths import refuse_absent_path
from .arguments import CONFIG_HELP, LAYERS_HELP, add_set, layers, positive, read_config
from .console import import_torch

if TYPE_CHECKING:
    from ..config.ipu_config import IPUConfig

EXAMPLES = (
    'ipu pipeline text-classification --model checkpoint "a fine day" "never again"',
    'ipu pipeline question-answering --model checkpoint --set question="who sleeps?" "Ada sleeps."',
    "ipu pipeline ner --model checkpoint --layers-per-ipu 2,2 --json - < texts.txt",
)


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "run a task on texts, or on files of images or sounds"
    command = commands.add_parser("pipeline", help=meaning, examples=EXAMPLES)
    add = command.add_argument
    add("task", metavar="TASK", help="a task, such as text-classification")
    add("inputs", metavar="INPUT", nargs="+", help="a text, or a file of an image or a sound; - for standard input")
    add("--model", metavar="DIR", help="a directory with a checkpoint, or a name on a hub")
    add("--config", metavar="FILE", help=f"{CONFIG_HELP}, or a name on a hub")
    add("--layers-per-ipu", metavar="N,N,...", type=layers, help=LAYERS_HELP)
    add("--batch", metavar="ROWS", type=positive, default=1, help="inputs that run together (default 1)")
    add_set(command, "an argument of the task, such as top_k=3")
    add("--json", action="store_true", help="print each result as JSON")
    add("--plan", action="store_true", help="print which modules sit on which IPU to standard error")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a line for each input."""
    if options.model is not None:
        refuse_absent_path("--model", options.model, "a directory with a checkpoint, or a name on a hub")
    import_torch()
    from ..pipelines.console import inputs_of, line_of
    from ..pipelines.pipeline import pipeline
    from ..pipelines.tasks import task_named

    task = task_named(options.task)
    arguments, config = dict(options.set), given_config(options)
    try:
        made = pipeline(options.task, options.model, config)
    except OSError as error:  # of a hub, in several lines
        raise OSError(f"`--model {options.model}` cannot be read: {' '.join(str(error).split())}") from error
    if options.plan:
        print(made.plan, file=sys.stderr)
    for result in made(inputs_of(options.inputs, task, arguments), batch_size=options.batch, **arguments):
        print(line_of(result, as_json=options.json), flush=True)
    return 0


def given_config(options: argparse.Namespace) -> IPUConfig | None:
    """Return the configuration that is asked for; None for the one beside the checkpoint, or one IPU."""
    from ..config.ipu_config import IPUConfig

    given = read_config(options.config) if options.config else None
    if options.layers_per_ipu:
        return (given or IPUConfig()).replace(layers_per_ipu=options.layers_per_ipu)
    return given
