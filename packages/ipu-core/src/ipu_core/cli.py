# SPDX-License-Identifier: Apache-2.0
"""The command `ipu`: what is installed, what would sit where, what can run here."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import IPUError, nearest
from .plugins.family import Family, load
from .plugins.registry import describe, installed
from .plugins.stub import stub_of, stub_path
from .report.models import models_table
from .upstream import CORE, upstreams

if TYPE_CHECKING:
    import torch

    from .config.ipu_config import IPUConfig
    from .model.mixin import PipelineMixin
    from .partition.plan import Plan


# Commands that read their arguments themselves: the package to install, and what runs.
ELSEWHERE = {
    "run": (CORE, "ipu_core.migration.script:main"),
    "imagine": ("ipu-diffusers", "ipu_diffusers.imagine:main"),
    "train": ("ipu-trainer", "ipu_trainer.recipes.command:main"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `ipu`; returns its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in ELSEWHERE:
        return _elsewhere(given[0], given[1:])
    options = _parser().parse_args(given)
    try:
        status: int = options.run(options)
    except (IPUError, ValueError, TypeError, OSError) as error:
        print(f"ipu {options.command}: {error}", file=sys.stderr)
        return 2
    return status


def _elsewhere(command: str, arguments: Sequence[str]) -> int:
    """Hand a command on to the package that has it, with arguments of its own."""
    package, target = ELSEWHERE[command]
    if find_spec(target.partition(".")[0]) is None:
        print(f"ipu {command}: {package} is not installed: `pip install {package}`", file=sys.stderr)
        return 2
    status: int = load(target)(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipu", description="Hugging Face models, pipelined over several devices.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    plugins = commands.add_parser("plugins", help="list the installed plugins, their state and what they declare")
    plugins.add_argument("--json", action="store_true", help="print JSON")
    plugins.add_argument("--table", action="store_true", help="print families and heads as a Markdown table")
    plugins.add_argument("--traceback", action="store_true", help="print where a broken plugin raised")
    plugins.set_defaults(run=_plugins)

    stub = commands.add_parser("stub", help="write the stub of a package, of the classes made of its families")
    stub.add_argument("package", help="a package of families, such as ipu_models_bert")
    stub.set_defaults(run=_stub)

    edits = commands.add_parser("edits", help="say whether the source edits of the plugins fit the installed upstream")
    edits.add_argument("--json", action="store_true", help="print JSON")
    edits.set_defaults(run=_edits)

    doctor = commands.add_parser("doctor", help="say which engines can run here, and why the others cannot")
    doctor.add_argument("--config", metavar="FILE", type=Path, help="say what each option of an ipu_config.json does")
    doctor.set_defaults(run=_doctor)

    points = commands.add_parser("points", help="list the named activations of a model: shapes, and where each is from")
    _describe_model(points)
    points.set_defaults(run=_points, inference=True, ipu=None, measure=False)

    plan = commands.add_parser("plan", help="say which modules would sit on which IPU, without weights or a run")
    _describe_model(plan)
    add = plan.add_argument
    add("--inference", action="store_true", help="plan for inference rather than training")
    add("--ipu", metavar="DEVICE", help="say whether it fits: bow, gc200, host (this machine), or bytes an IPU")
    add("--optimizer", metavar="NAME", help='class of torch.optim whose state to count, or "none" (default AdamW)')
    add("--engine", metavar="NAME", help="plan for this engine: host (default), or distributed, a process an IPU")
    add("--measure", action="store_true", help="measure times on this machine, with random weights")
    add("--svg", metavar="FILE", type=Path, help="write a picture of bytes and work")
    add("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)

    trace = commands.add_parser("trace", help="run training steps with random weights, and draw what ran when")
    _describe_model(trace)
    trace.add_argument("--svg", metavar="FILE", type=Path, help="write a picture")
    trace.add_argument("--chrome", metavar="FILE", type=Path, help="write Chrome's trace JSON")
    trace.set_defaults(run=_trace, inference=False, ipu=None, measure=False)

    run = commands.add_parser("pipeline", help="run a task on texts, or on files of images or sounds")
    add = run.add_argument
    add("task", metavar="TASK", help="a task, such as text-classification")
    add("inputs", metavar="INPUT", nargs="+", help="a text, or a file of an image or a sound; - for standard input")
    add("--model", metavar="DIR", help="a directory with a checkpoint, or a name on a hub")
    add("--config", metavar="FILE", help="an ipu_config.json, or a directory that has one")
    add("--layers-per-ipu", metavar="N,N,...", help='layers on each IPU, -1 a wildcard; or "auto"')
    add("--batch", metavar="ROWS", type=int, default=1, help="inputs that run together (default 1)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="an argument of the task, such as top_k=3")
    add("--json", action="store_true", help="print each result as JSON")
    add("--plan", action="store_true", help="print which modules sit on which IPU to standard error")
    run.set_defaults(run=_pipeline)

    commands.add_parser("run", help="run a script written for optimum.graphcore or poptorch, with its arguments")
    commands.add_parser("imagine", help="make an image of a text, with ipu-diffusers")
    commands.add_parser("train", help="train what a recipe in YAML describes, with ipu-trainer")
    return parser


def _describe_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model, which configuration and which batch."""
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--family", metavar="TYPE", help="a model type, such as bert, in its default size")
    source.add_argument("--model", metavar="DIR", type=Path, help="a directory with a transformers config.json")
    add = command.add_argument
    add("--class", dest="class_name", metavar="NAME", help="transformers class; the first declared one by default")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a value of the model's configuration")
    add("--config", metavar="FILE", type=Path, help="an ipu_config.json, or a directory that has one")
    add("--layers-per-ipu", metavar="N,N,...", help='layers on each IPU, -1 a wildcard; or "auto"')
    add("--ipus", metavar="N", type=int, help="IPUs a replica, where --layers-per-ipu does not say")
    add("--accumulation", metavar="N", type=int, help="gradient accumulation steps")
    add("--replicas", metavar="N", type=int, help="replication factor")
    add("--schedule", metavar="NAME", help="sequential, gpipe, 1f1b, interleaved or zero_bubble")
    add("--recompute", action="store_true", help="keep activations between layers only, and compute the rest again")
    add("--stages-per-ipu", metavar="N", type=int, help="stages each IPU's layers are cut into")
    add("--parameters-offchip", action="store_true", help="keep parameters on the host: two stages' at most on an IPU")
    add("--batch", metavar="ROWS", type=int, default=1, help="rows of a micro-batch (default 1)")
    add("--length", metavar="TOKENS", type=int, default=128, help="tokens of a row (default 128)")


def _plugins(options: argparse.Namespace) -> int:
    registry = installed()
    conflicts = registry.conflicts()
    if options.json:
        plugins = [{**asdict(p), "families": [_plain(f) for f in p.families]} for p in registry.plugins]
        print(json.dumps({"plugins": plugins, "conflicts": conflicts}, indent=2))
    elif options.table:
        print(models_table(registry.plugins))
    else:
        print(describe(registry.plugins))
        for name, owners in conflicts.items():
            print(f"conflict: {name} is claimed by {' and '.join(owners)}")
        if options.traceback:
            print("".join(plugin.traceback for plugin in registry.plugins), end="")
    return 1 if conflicts or any(plugin.state == "broken" for plugin in registry.plugins) else 0


def _stub(options: argparse.Namespace) -> int:
    try:
        text, path = stub_of(options.package), stub_path(options.package)
    except ImportError as error:
        raise ValueError(
            f"`{options.package}` has no families: {error}; give a package with a folder of them"
        ) from error
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0


def _plain(family: Any) -> dict[str, Any]:
    return {"model_type": family.model_type, "layout": family.layout, "models": family.targets}


def _edits(options: argparse.Namespace) -> int:
    from .rewrites.edit_review import review

    found = []
    for reviewed in review(installed().plugins):
        found.append(reviewed)
        if not options.json:
            note = f"\n    {reviewed.note}" if reviewed.note else ""
            edit = reviewed.edit
            print(f"{reviewed.outcome:<15} {reviewed.plugin:<8} {edit.target}\n    {edit.reason}{note}", flush=True)
    if options.json:
        print(json.dumps([reviewed.as_dict() for reviewed in found], indent=2))
    elif not found:
        print("no installed plugin declares a source edit")
    return 0 if all(reviewed.is_good for reviewed in found) else 1


def _doctor(options: argparse.Namespace) -> int:
    from .engines.registry import engines

    found = {upstream.name: upstream for upstream in upstreams()}
    for package in (CORE, "torch", "transformers", "optimum"):
        tested = f"  (tested: {found[package].tested_range})" if package in found else ""
        print(f"{package:<14}{importlib.metadata.version(package)}{tested}")
    obstacles = [upstream.obstacle for upstream in found.values() if upstream.obstacle]
    print(*obstacles, sep="\n", end="\n" if obstacles else "")
    are_good = _print_edits()
    print()
    for engine in engines().values():
        print(f"{engine.name:<14}{'usable' if engine.is_usable else 'not usable'}: {engine.obstacle or engine.meaning}")
        if engine.inert:
            print(f"{'':<14}no effect: {', '.join(engine.inert)}")
        if engine.started_by:
            print(f"{'':<14}worker: {engine.started_by}")
    if options.config is not None:
        print()
        print(_effects(options.config))
    return 0 if are_good else 1


def _print_edits() -> bool:
    """Print which families' source edits do not match the installed upstream; say whether all do."""
    from .rewrites.edit_review import DRIFTED, matches

    found = list(matches(installed().plugins))
    if not found:
        return True
    wrong: dict[str, list[str]] = {}
    for model_type, reviewed in found:
        if reviewed.note:
            method = reviewed.edit.target.partition(":")[2]
            wrong.setdefault(model_type, []).append(f"{method} {reviewed.outcome}")
    good = len(found) - sum(map(len, wrong.values()))
    print(f"{'source edits':<14}{good} of {len(found)} apply{'' if good == len(found) else ' (`ipu edits` says more)'}")
    for model_type, notes in wrong.items():
        fails = any(note.endswith(DRIFTED) for note in notes)
        what = "a model with it is refused" if fails else "works, and may differ from the plain model"
        print(f"{'':<14}{model_type}: {what}: {', '.join(notes)}")
    return not any(note.endswith(DRIFTED) for notes in wrong.values() for note in notes)


def _effects(file: Path) -> str:
    """List every option with its effect on the host engine, and what a changed one means."""
    from .config.ipu_config import IPUConfig
    from .config.options import OPTIONS, attribute_option
    from .engines.host import HOST

    ipu_config = IPUConfig.from_pretrained(file)
    changed = ipu_config.changed(OPTIONS) | ipu_config.changed(OPTIONS, for_inference=True)
    lines = []
    unchanged = dict.fromkeys(OPTIONS)
    for name, value in changed.items():
        option = attribute_option(name)
        assert option is not None
        unchanged.pop(option.name, None)
        effect = "no effect on the host engine" if option.name in HOST.inert else "has an effect"
        lines.append(f"{name}={value}: {effect}: {option.meaning}")
    with_effect = ", ".join(name for name in unchanged if name not in HOST.inert) or "none"
    without = ", ".join(name for name in unchanged if name in HOST.inert) or "none"
    lines += ["at their defaults:", f"  with an effect: {with_effect}", f"  no effect on the host engine: {without}"]
    return "\n".join(lines)


def _points(options: argparse.Namespace) -> int:
    from .points.places import table

    print(table(_random_model(options, device="meta")))
    return 0


def _plan(options: argparse.Namespace) -> int:
    import torch

    from ._torch import pytree
    from .planner import plan

    optimizer = _optimizer(options)
    device = "cpu" if options.measure else "meta"
    model = _random_model(options, device=device)

    def plan_of(ipu_config: IPUConfig, rows: int) -> Plan:
        from .model.pipelined import to_pipelined

        batch = _combined_batch(options, model, ipu_config, rows=rows)
        batch = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), batch)
        pipelined = to_pipelined(model, ipu_config)
        return plan(pipelined, batch, options.inference, optimizer=optimizer, engine=options.engine)

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


def _print_advice(
    options: argparse.Namespace, model: PipelineMixin, made: Plan, plan_of: Callable[[IPUConfig, int], Plan]
) -> None:
    from .memory.advice import Setup, advise, vocabulary_size

    setup = Setup(
        ipu_config=model.ipu_config,
        rows=options.batch,
        inference=options.inference,
        vocabulary=vocabulary_size(model),
    )
    print("\nwhat would make it fit:")
    print("planning with other options ...", file=sys.stderr)
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


def _trace(options: argparse.Namespace) -> int:
    from .executor import training_model

    model = _random_model(options, device="cpu")
    batch = _combined_batch(options, model, model.ipu_config, rows=options.batch)
    executor = training_model(model, outputs=["loss"])
    for step in ("warm up", "measure"):
        print(f"{step} ...", file=sys.stderr)
        executor(**batch)
    timeline = executor.timeline()
    print(timeline)
    for path, text in ((options.svg, timeline.to_svg), (options.chrome, timeline.to_chrome_trace)):
        if path is not None:
            path.write_text(text(), encoding="utf-8")
            print(f"wrote {path}")
    return 0


def _pipeline(options: argparse.Namespace) -> int:
    from .config.ipu_config import IPUConfig
    from .pipelines.console import inputs_of, line_of
    from .pipelines.pipeline import pipeline
    from .pipelines.tasks import task_named

    task = task_named(options.task)
    layers = options.layers_per_ipu and _layers(options.layers_per_ipu)
    ipu_config: Any = options.config
    if layers:
        given = IPUConfig.from_pretrained(options.config) if options.config else IPUConfig()
        ipu_config = given.replace(layers_per_ipu=layers)
    arguments = dict(_key_value(text) for text in options.set)
    run = pipeline(options.task, options.model, ipu_config)
    if options.plan:
        print(run.plan, file=sys.stderr)
    for result in run(inputs_of(options.inputs, task, arguments), batch_size=options.batch, **arguments):
        print(line_of(result, as_json=options.json), flush=True)
    return 0


def _ipu_config(options: argparse.Namespace) -> IPUConfig:
    from .config.ipu_config import IPUConfig

    ipu_config = IPUConfig.from_pretrained(options.config) if options.config else IPUConfig()
    changes = {
        "layers_per_ipu": options.layers_per_ipu and _layers(options.layers_per_ipu),
        "ipus_per_replica": options.ipus,
        "gradient_accumulation_steps": options.accumulation,
        "replication_factor": options.replicas,
        "schedule": options.schedule,
        "recompute_checkpoint_every_layer": options.recompute or None,
        "stages_per_ipu": options.stages_per_ipu,
        "inference_stages_per_ipu": options.stages_per_ipu,
        "parameters_offchip": options.parameters_offchip or None,
        "device_memory": int(options.ipu) if options.ipu and options.ipu.isdigit() else options.ipu,
        "cost_source": "measured" if options.measure else None,
    }
    return ipu_config.replace(**{name: value for name, value in changes.items() if value is not None})


def _combined_batch(
    options: argparse.Namespace, model: PipelineMixin, ipu_config: IPUConfig, *, rows: int
) -> dict[str, Any]:
    from .samples import sample_batch

    combined = rows * ipu_config.batch_size_factor(options.inference)
    return sample_batch(model, batch_size=combined, length=options.length, labels=not options.inference)


def _random_model(options: argparse.Namespace, *, device: str) -> PipelineMixin:
    """Make a pipelined model; on the meta device it has shapes and no weights."""
    import torch
    import transformers

    from .model.pipelined import to_pipelined

    ipu_config = _ipu_config(options)
    values = dict(_key_value(text) for text in options.set)
    if options.model is not None:
        if not (options.model / "config.json").is_file():
            raise OSError(f"`{options.model}` is not a directory with a config.json")
        family = installed().family(json.loads((options.model / "config.json").read_bytes()).get("model_type", ""))
        config = transformers.AutoConfig.from_pretrained(options.model, local_files_only=True, **values)
        name = options.class_name or (config.architectures or [""])[0]
    else:
        family = installed().family(options.family)
        if family is None:
            known = [f.model_type for plugin in installed().plugins for f in plugin.families]
            raise ValueError(
                f"no plugin declares the family `{options.family}`{nearest(options.family, known)}; declared: "
                f"{', '.join(known) or 'none'} (see `ipu plugins`)"
            )
        layers = ipu_config.inference_layers_per_ipu if options.inference else ipu_config.layers_per_ipu
        # Where one list has all layers, their number is an option of the configuration.
        lists = [pattern for pattern in family.layout if ".*" in pattern]
        if layers != "auto" and -1 not in layers and [pattern.count(".*") for pattern in lists] == [1]:
            values.setdefault("num_hidden_layers", sum(layers))
        config = transformers.AutoConfig.for_model(options.family, **values)
        name = options.class_name or next(iter(family.models))
    cls = _model_class(name, family)
    with torch.device(device):
        model = cls(config)
    pipelined: PipelineMixin = to_pipelined(model, ipu_config)
    return pipelined


def _model_class(name: str, family: Family | None) -> type[Any]:
    """Return the class of transformers, or one of an architecture of a plugin's own."""
    import transformers

    cls: type[Any] | None = getattr(transformers, name, None)
    if cls is None and family is not None and name in family.models:
        cls = load(family.targets[name]).plain_class()
    if cls is None:
        raise ValueError(f"transformers has no class `{name}`, and no plugin declares it: give another with --class")
    return cls


def _layers(text: str) -> list[int] | str:
    return text if text == "auto" else [int(n) for n in text.split(",")]


def _key_value(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"`--set {text}` is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
