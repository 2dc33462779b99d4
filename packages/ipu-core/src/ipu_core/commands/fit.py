# SPDX-License-Identifier: Apache-2.0
"""`ipu fit`: a configuration that fits the memory there is, found without weights or a run."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .arguments import add_length, add_schedule, add_source, memory, positive
from .console import import_torch, note
from .plan import OPTIMIZER_HELP, planner_of

if TYPE_CHECKING:
    from ..memory.fit import Attempt, Search

EXAMPLES = (
    "ipu fit --family bert --class BertForMaskedLM --device-memory 2GB --batch 32 --length 128",
    "ipu fit --model checkpoint --device-memory bow --ipus 4 --batch 64",
    "ipu fit --model checkpoint --device-memory host --inference",
)
# Where `--ipus` does not say how many there are.
NUM_IPUS = (1, 2, 4, 8, 16)
# What the command line of a plan says, and a search finds.
FOUND = ("config", "layers_per_ipu", "accumulation", "replicas", "recompute", "stages_per_ipu", "parameters_offchip")
MIB = 2**20


def add(commands: Any) -> None:
    """Add the command."""
    meaning = "find a configuration that fits the memory of a device, without weights or a run"
    command = commands.add_parser("fit", help=meaning, examples=EXAMPLES)
    add_source(command)
    add = command.add_argument
    what = "bow, gc200, host (this machine), or bytes of each device, such as 16GB"
    add("--device-memory", metavar="DEVICE", dest="ipu", type=memory, required=True, help=what)
    add("--ipus", metavar="N", type=positive, help="IPUs there are (default: as few of 1, 2, 4, 8, 16 as will do)")
    what = "rows of an update, in micro-batches as large as fit (default 8); with --inference, of a micro-batch at most"
    add("--batch", metavar="ROWS", type=positive, default=8, help=what)
    add_length(command)
    add_schedule(command)
    add("--inference", action="store_true", help="for inference rather than training")
    add("--optimizer", metavar="NAME", help=OPTIMIZER_HELP)
    command.set_defaults(run=run, measure=False, engine=None, **dict.fromkeys(FOUND))


def run(options: argparse.Namespace) -> int:
    """Print what is planned, and the configuration that fits; 1 where none does."""
    import_torch()
    from ..config.device_memory import HOST
    from ..memory.advice import Setup
    from ..memory.fit import Search
    from .random_model import ipu_config_of, random_model

    number, options.ipus = options.ipus, None
    model = random_model(options, device="meta")
    # One process runs every stage, however many IPUs there are.
    numbers = (number,) if number else (1,) if options.ipu == HOST else NUM_IPUS
    setup = Setup(ipu_config=ipu_config_of(options), rows=options.batch, inference=options.inference)
    note("planning, some seconds each ...")
    plan_of = planner_of(options, model)
    search = Search(setup=setup, plan_of=plan_of, num_ipus=numbers, told=lambda attempt: print(attempt, flush=True))
    found = search.run()
    if found is None:
        print(f"ipu fit: {_refusal(search)}", file=sys.stderr)
        return 1
    print(f"\n{_heading(found)}:\n\n{found.ipu_config!r}")
    return 0


def _heading(found: Attempt) -> str:
    plan = found.advice.plan
    assert plan is not None
    rows, steps = plan.micro_batch_size, plan.gradient_accumulation_steps
    batch = f"{rows} row{'s' if rows != 1 else ''} a micro-batch"
    batch += f", {steps} of them an update" if steps > 1 else ""
    with_devices = ', and `devices=["cuda:0", ...]`, which parameters are copied to'
    return f"fits, with {batch}{with_devices if found.setup.ipu_config.parameters_offchip else ''}"


def _refusal(search: Search) -> str:
    least = search.least.advice
    plan, numbers = least.plan, " or ".join(map(str, search.num_ipus))
    assert plan is not None
    ipus = f"{numbers} IPU{'s' if search.num_ipus[-1] > 1 else ''}"
    # Of as many bytes it is the split whose fullest IPU is the least full, and fits.
    return (
        f"`{plan.model}` does not fit the {(plan.limit_bytes or 0) / MIB:.1f} MiB of {plan.device} on {ipus}: the "
        f"smallest memory that would do is {least.peak / MIB:.1f} MiB, --device-memory {least.peak}, with "
        f"{least.change}; give that, more --ipus, or a smaller --length or model"
    )
