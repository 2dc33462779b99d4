# SPDX-License-Identifier: Apache-2.0
"""A plan as people read it: tables, and a picture of bytes and work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from ..config.options import MEASURED

if TYPE_CHECKING:
    from ..partition.plan import Memory, Plan

MIB = 2**20
STAGES = ("stage", "IPU", "modules", "layers", "parameters", "MiB", "GFLOP", "time", "receives KiB")
MEMORY = ("IPU", "parameters MiB", "gradients", "optimizer", "activations", "peak")
# What a bar of the picture is made of, from the left: field of `Memory`, colour.
PARTS = (
    ("parameters", "#4c78a8"),
    ("gradients", "#f58518"),
    ("optimizer", "#e45756"),
    ("activations", "#72b7b2"),
)
WORK = "#54a24b"
# Of the picture: where bars begin, and the height of what is drawn of one IPU.
LEFT, ROW = 70, 64


def plan_text(plan: Plan) -> str:
    """Write a plan as a title, a table of stages and a table of memory."""
    parts = [_title(plan), _batch(plan), "", *_table(_stage_rows(plan))]
    if plan.cost_source == MEASURED:
        kind = "forward passes" if plan.for_inference else "forward and backward passes"
        parts.append(f"times: measured on this machine, of {kind}")
    if plan.memory:
        parts += ["", *_table(_memory_rows(plan)), *_on_host(plan), *_verdict(plan)]
    else:
        parts += ["", "memory: not worked out, the model returns no loss for this batch"]
    return "\n".join(parts)


def plan_svg(plan: Plan, *, width: int = 960) -> str:
    """Draw, for each IPU, a bar of the bytes it holds, its peak (black) and limit (red), and a bar of its work."""
    num_ipus = plan.ipus_per_replica
    height = 56 + ROW * num_ipus + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="13">{escape(_title(plan))}</text>',
        f'<text x="10" y="38">{escape(_batch(plan))}</text>',
    ]
    for ipu in range(num_ipus):
        top = 56 + ROW * ipu
        modules = "; ".join(", ".join(_abbreviate(s.modules)) for s in plan.stages if s.ipu == ipu)
        lines.append(f'<text x="10" y="{top + 14}">IPU {ipu}</text>')
        lines += [*_drawn_memory(plan, ipu, top, width - 280), *_drawn_work(plan, ipu, top + 24, width - 280)]
        lines.append(f'<text x="{LEFT}" y="{top + 50}" fill="#555">{escape(modules)}</text>')
    for i, (name, colour) in enumerate([*PARTS, ("work", WORK)]):
        lines.append(_bar(LEFT + 110 * i, height - 24, 12, 12, colour, name))
        lines.append(f'<text x="{LEFT + 18 + 110 * i}" y="{height - 14}">{name}</text>')
    return "\n".join([*lines, "</svg>"])


def _drawn_memory(plan: Plan, ipu: int, top: int, span: int) -> list[str]:
    memory = next((m for m in plan.memory if m.ipu == ipu), None)
    if memory is None:
        return []
    scale = span / max([plan.limit_bytes or 0, *(_drawn_bytes(m) for m in plan.memory), 1])
    lines, x = [], float(LEFT)
    for name, colour in PARTS:
        size = getattr(memory, name)
        lines.append(_bar(x, top, scale * size, 20, colour, f"IPU {ipu}: {name} {size / MIB:.1f} MiB"))
        x += scale * size
    lines.append(_mark(LEFT + scale * memory.peak, top, "#000"))
    label = f"peak {memory.peak / MIB:.1f} MiB"
    if plan.limit_bytes is not None:
        lines.append(_mark(LEFT + scale * plan.limit_bytes, top, "#b00"))
        label += f" of {plan.limit_bytes / MIB:.1f}"
    return [*lines, f'<text x="{LEFT + span + 10}" y="{top + 14}">{escape(label)}</text>']


def _drawn_work(plan: Plan, ipu: int, top: int, span: int) -> list[str]:
    seconds = [sum(s.seconds for s in plan.stages if s.ipu == i) for i in range(plan.ipus_per_replica)]
    text = f"{seconds[ipu] / (sum(seconds) or 1.0):.0%} of the work"
    bar = _bar(LEFT, top, span * seconds[ipu] / (max(seconds) or 1.0), 12, WORK, f"IPU {ipu}: {text}")
    return [bar, f'<text x="{LEFT + span + 10}" y="{top + 10}">{text}</text>']


def _drawn_bytes(memory: Memory) -> int:
    return max(memory.peak, sum(getattr(memory, name) for name, _ in PARTS))


def _mark(x: float, top: int, colour: str) -> str:
    return f'<path d="M{x:.1f} {top - 4} v28" stroke="{colour}" stroke-width="2"/>'


def _bar(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<g><title>{escape(title)}</title><rect x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" '
        f'height="{height}" fill="{colour}"/></g>'
    )


def _title(plan: Plan) -> str:
    mode = "inference" if plan.for_inference else "training"
    ipus = f"{plan.ipus_per_replica} IPU{'s' if plan.ipus_per_replica > 1 else ''}"
    replicas = f" x {plan.replication_factor} replicas" if plan.replication_factor > 1 else ""
    return f"{plan.model} for {mode} on {ipus}{replicas}: {plan.num_parameters:,} parameters"


def _batch(plan: Plan) -> str:
    factors = [
        f"{plan.micro_batch_size} row{'s' if plan.micro_batch_size > 1 else ''} a micro-batch",
        *(
            f"{n} {name}"
            for n, name in (
                (plan.gradient_accumulation_steps, "accumulation steps"),
                (plan.replication_factor, "replicas"),
                (plan.device_iterations, "device iterations"),
            )
            if n > 1
        ),
    ]
    return f"batch: {' x '.join(factors)} = {plan.combined_batch_size} rows a call"


def _stage_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [STAGES]
    total = sum(stage.seconds for stage in plan.stages) or 1.0
    for i, stage in enumerate(plan.stages):
        rows.append(
            (
                str(i),
                str(stage.ipu),
                ", ".join(_abbreviate(stage.modules)),
                str(stage.num_layers),
                f"{stage.num_parameters:,}",
                f"{stage.parameter_bytes / MIB:.1f}",
                f"{stage.flops / 1e9:.2f}",
                f"{stage.seconds / total:.0%}",
                f"{stage.received_bytes / 2**10:.1f}",
            )
        )
    return rows


def _memory_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [MEMORY if plan.limit_bytes is None else (*MEMORY, "of")]
    for memory in plan.memory:
        parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.peak)
        row = (str(memory.ipu), *(f"{size / MIB:.1f}" for size in parts))
        rows.append(row if plan.limit_bytes is None else (*row, f"{memory.peak / plan.limit_bytes:.0%}"))
    return rows


def _on_host(plan: Plan) -> list[str]:
    if plan.host is None:
        return []
    parts = [
        ("parameters", plan.host.parameters),
        ("gradients", plan.host.gradients),
        ("optimizer", plan.host.optimizer),
    ]
    kept = ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in parts if size)
    return [f"on the host: {kept}; an IPU has copies of the parameters of two of its stages at most"]


def _verdict(plan: Plan) -> list[str]:
    recorded = f", {plan.recording_bytes / MIB:.1f} MiB of it for its recording" if plan.recording_bytes else ""
    lines = [f"one process that runs every stage: peak {plan.process_peak_bytes / MIB:.1f} MiB{recorded}"]
    if plan.limit_bytes is not None:
        limit = f"{plan.limit_bytes / MIB:.1f} MiB of {plan.device}"
        over = [f"{where} needs {excess / MIB:.1f} MiB more" for where, excess in plan.excess.items()]
        lines.append(f"does not fit the {limit}: {'; '.join(over)}" if over else f"fits the {limit}")
        lines += [largest_text(plan)] if over else []
    return lines


def largest_text(plan: Plan) -> str:
    """Return which module holds the most, and whether an IPU could hold it alone."""
    parts = "parameters" if plan.for_inference else "parameters, gradients and optimizer state"
    text = f"the largest module is `{plan.largest_module}`, {plan.largest_bytes / MIB:.1f} MiB of {parts}"
    excess = plan.largest_bytes - (plan.limit_bytes or plan.largest_bytes)
    return f"{text}, {excess / MIB:.1f} MiB more than there is" if excess > 0 else text


def _abbreviate(paths: Sequence[str]) -> list[str]:
    """Write runs of numbered modules as a range: ``layer.0, layer.1, layer.2`` becomes ``layer.0-2``."""
    groups: list[tuple[str, list[str]]] = []
    for path in paths:
        stem, _, last = path.rpartition(".")
        key = stem if last.isdigit() else path
        if groups and last.isdigit() and groups[-1][0] == key:
            groups[-1][1].append(last)
        else:
            groups.append((key, [last] if last.isdigit() else []))
    return [
        stem if not numbers else f"{stem}.{numbers[0]}" + (f"-{numbers[-1]}" if len(numbers) > 1 else "")
        for stem, numbers in groups
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        names = zip(rows[0], row, widths, strict=True)
        return "  ".join(c.ljust(w) if name == "modules" else c.rjust(w) for name, c, w in names).rstrip()

    return [line(row) for row in rows]
