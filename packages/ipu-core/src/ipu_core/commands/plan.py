# SPDX-License-Identifier: Apache-2.0
"""`ipu plan`: which modules would sit on which IPU, without weights or a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import nearest
from .arguments import add_model, memory, new_file
from .console import import_torch, note

if TYPE_CHECKING:
    import torch

    from ..config.ipu_config import IPUConfig
    from ..model.mixin import PipelineMixin
    from ..partition.plan import Plan

EXAMPLES = (
    "ipu plan --family bert --layers-per-ipu 3,3,3,3 --batch 4 --length 128",
    "ipu plan --model checkpoint --layers-per-ipu auto --ipus 4 --ipu bow",
    "ipu plan --family gpt2 --set n_embd=256 --layers-per-ipu 2,2 --svg plan.svg",
)
OPTIMIZER_HELP = 'class of torch.optim whose state to count, or "none" (default AdamW)'


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "say which modules would sit on which IPU, without weights or a run"
    command = commands.add_parser("plan", help=meaning, examples=EXAMPLES)
    add_model(command)
    add = command.add_argument
    add("--inference", action="store_true", help="plan for inference rather than training")
    what = "say whether it fits: bow, gc200, host (this machine), or bytes an IPU, such as 16GB"
    add("--ipu", metavar="DEVICE", type=memory, help=what)
    add("--optimizer", metavar="NAME", help=OPTIMIZER_HELP)
    add("--engine", metavar="NAME", help="plan for this engine: host (default), or distributed, a process an IPU")
    add("--measure", action="store_true", help="measure times on this machine, with random weights")
    add("--svg", metavar="FILE", type=new_file, help="write a picture of bytes and work")
    add("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan, and what would make it fit where it does not; 1 then."""
    import_torch()
    from .random_model import random_model

    model = random_model(options, device="cpu" if options.measure else "meta")
    plan_of = planner_of(options, model)
    made = plan_of(model.ipu_config, options.batch)
    print(made.to_json() if options.json else made, flush=True)
    if options.svg is not None:
        options.svg.write_text(made.to_svg(), encoding="utf-8")
        print(f"wrote {options.svg}", file=sys.stderr)
    if not made.excess:
        return 0
    if not options.json:
        _print_advice(options, model, made, plan_of)
    return 1


def planner_of(options: argparse.Namespace, model: PipelineMixin) -> Callable[[IPUConfig, int], Plan]:
    """Return what plans a model under a configuration, with so many rows a micro-batch.

    Raises:
        ValueError: there is no such optimizer, or it has no effect.
    """
    import torch

    from .._torch import pytree
    from ..model.pipelined import to_pipelined
    from ..planner import plan
    from .random_model import combined_batch

    optimizer = _optimizer(options)
    device = "cpu" if options.measure else "meta"

    def plan_of(ipu_config: IPUConfig, rows: int) -> Plan:
        batch = combined_batch(options, model, ipu_config, rows=rows)
        batch = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), batch)
        pipelined = to_pipelined(model, ipu_config)
        return plan(pipelined, batch, options.inference, optimizer=optimizer, engine=options.engine)

    return plan_of


def _print_advice(
    options: argparse.Namespace, model: PipelineMixin, made: Plan, plan_of: Callable[[IPUConfig, int], Plan]
) -> None:
    from ..memory.advice import Setup, advise, vocabulary_size

    setup = Setup(
        ipu_config=model.ipu_config,
        rows=options.batch,
        inference=options.inference,
        vocabulary=vocabulary_size(model),
    )
    print("\nwhat would make it fit:")
    note("planning with other options ...")
    for advice in advise(setup, made, plan_of):
        print(advice, flush=True)


def _optimizer(options: argparse.Namespace) -> type[torch.optim.Optimizer] | None:
    import torch

    if options.inference and options.optimizer is not None:
        raise ValueError(f"`--optimizer {options.optimizer}` has no effect with `--inference`: leave one of them out")
    name = options.optimizer or "AdamW"
    if name == "none":
        return None
    classes = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and c is not torch.optim.Optimizer}
    if name not in classes:
        raise ValueError(f"torch.optim has no `{name}`{nearest(name, classes)}; it has {', '.join(sorted(classes))}")
    found: type[torch.optim.Optimizer] = classes[name]
    return found
