# SPDX-License-Identifier: Apache-2.0
"""A stranger's first hour, run: a clone in an empty folder, a new environment, and what the pages say to type.

`python website/stranger.py FOLDER` types each command, and writes docs/start/transcript.md: what was printed, and how
long it took. A command that is on no page is refused, so that pages and transcript cannot part. A step that fails ends
it; the next run of the same folder goes on there, with what was committed since.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import blocks

TRANSCRIPT = blocks.DOCS / "start" / "transcript.md"
# Of this process, what a new shell would not have.
NOT_OURS = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
LINES = 30  # of what a command prints, at most


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, or the blocks of Python of a page as one script; the page it is on, and the folder it is typed in."""

    title: str
    page: str
    command: str
    script: str = ""
    folder: str = "."

    def refuse_others(self) -> None:
        """Refuse a command that its page does not have.

        Raises:
            ValueError: naming both.
        """
        text = (blocks.DOCS / self.page).read_text(encoding="utf-8")
        for command in () if self.script else self.command.split(" && "):
            if _spaced(command) not in _spaced(text):
                raise ValueError(f"{self.page} does not say `{command}`: change the page or the step")


PACKAGES = "./packages/ipu-core ./packages/ipu-models-bert ./packages/ipu-trainer"
INSTALL = "start/install.md"
STEPS = [
    Step(title="Install", page=INSTALL, command="python3 -m venv .venv"),
    Step(title="Install", page=INSTALL, command="pip install torch==2.13.0"),
    Step(title="Install", page=INSTALL, command=f"pip install {PACKAGES}"),
    Step(title="Install", page=INSTALL, command="ipu doctor"),
    Step(title="The ten lines of the README", page=blocks.README, command="python readme.py", script="readme.py"),
    Step(
        title="A classifier on a csv of 200 rows",
        page="tutorials/classifier.md",
        command="python classifier.py",
        script="classifier.py",
    ),
    Step(
        title="A classifier on a csv of 200 rows",
        page="tutorials/classifier.md",
        command='ipu pipeline text-classification --model reviews "the day was fine and bright"',
    ),
    Step(
        title="The same as a command",
        page="../examples/README.md",
        command="python examples/text_classification.py --data examples/reviews.csv --output_dir out "
        "--max_length 16 --num_train_epochs 4 --layers_per_ipu 1,1",
    ),
    Step(
        title="The same as a command",
        page="../examples/README.md",
        command='ipu pipeline text-classification --model out "the film was a waste of an evening"',
    ),
    Step(title="Generate", page="tutorials/generation.md", command="python generation.py", script="generation.py"),
    Step(title="Generate", page="tutorials/generation.md", command='ipu generate --model poem "two roads"'),
    Step(
        title="Plan",
        page="start/plan.md",
        command="ipu plan --family bert --class BertForMaskedLM --layers-per-ipu 1,2,2,1 --batch 4 --length 128 "
        "--ipu bow",
    ),
    Step(
        title="Fit",
        page="howto/memory.md",
        command="ipu fit --model reviews --device-memory 2MB --batch 16 --length 16",
    ),
    Step(
        title="Trace",
        page="start/plan.md",
        command="ipu trace --family bert --class BertForSequenceClassification --layers-per-ipu 1,2,2,1 "
        "--set hidden_size=192 --set intermediate_size=768 --accumulation 8 --batch 4 --length 64 --schedule 1f1b "
        "--svg trace.svg",
    ),
    Step(title="A plugin", page="writing-a-plugin.md", command="ipu new-plugin ipu-models-opt"),
    Step(
        title="A plugin",
        page="writing-a-plugin.md",
        command="pip install -e .[tests]",
        folder="ipu-models-opt",
    ),
    Step(title="A plugin", page="writing-a-plugin.md", command="ipu plugins", folder="ipu-models-opt"),
    Step(
        title="A plugin",
        page="writing-a-plugin.md",
        command="ipu plan --family opt --layers-per-ipu 6,6",
        folder="ipu-models-opt",
    ),
    Step(title="A plugin", page="writing-a-plugin.md", command="pytest -n auto", folder="ipu-models-opt"),
]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command printed, and its seconds."""

    printed: str
    seconds: float


def main() -> int:
    """Type the commands; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description="Type what the pages say, in a clone and a new environment.")
    parser.add_argument("folder", type=Path, help="an empty folder, or one where a run ended")
    folder = parser.parse_args().folder.resolve()
    for step in STEPS:
        step.refuse_others()
    clone, kept = folder / "ipu-core", folder / "done.json"
    done = [Done(**each) for each in json.loads(kept.read_text())] if kept.exists() else []
    _bring_up_to_date(clone, is_installed=len(done) > 3)
    for step in STEPS[len(done) :]:
        print(f"$ {step.command}", flush=True)
        result = _typed(step, clone)
        if isinstance(result, str):
            print(result, file=sys.stderr)
            return 1
        print(f"  {result.seconds:.1f} s", flush=True)
        done.append(result)
        kept.write_text(json.dumps([vars(each) for each in done]))
    TRANSCRIPT.write_text(transcript(done), encoding="utf-8")
    return 0


def _bring_up_to_date(clone: Path, *, is_installed: bool) -> None:
    if not clone.exists():
        clone.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "-q", str(blocks.ROOT), str(clone)], check=True)
        return
    subprocess.run(["git", "-C", str(clone), "pull", "-q", "--ff-only"], check=True)
    if is_installed:
        again = f"pip install -q --no-deps --force-reinstall {PACKAGES}"
        subprocess.run(["bash", "-c", again], cwd=clone, env=_shell(clone), check=True)


def _shell(clone: Path) -> dict[str, str]:
    """Return the environment of a shell in which the new one was activated."""
    env = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    path = [part for part in env["PATH"].split(os.pathsep) if Path(part) != Path(sys.executable).parent]
    return {**env, "PATH": os.pathsep.join([str(clone / ".venv" / "bin"), *path]), "COLUMNS": "110"}


def _typed(step: Step, clone: Path) -> Done | str:
    """Type a command; return what it printed, or all of it where it failed."""
    if step.script:
        (clone / step.script).write_text(script_of(step.page), encoding="utf-8")
    began = time.perf_counter()
    bash = ["bash", "-o", "pipefail", "-c", step.command]
    result = subprocess.run(
        bash, cwd=clone / step.folder, env=_shell(clone), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.perf_counter() - began
    printed = result.stdout.replace(str(clone.parent), "...")
    return printed if result.returncode else Done(printed=_short(step, printed), seconds=seconds)


def script_of(page: str) -> str:
    """Return the blocks of Python of a page, one after the other, as a reader would paste them into a file."""
    text = (blocks.DOCS / page).read_text(encoding="utf-8")
    found = [b.code for b in blocks.runnable(blocks.blocks_of(page, text)) if b.language == "python"]
    return "\n\n".join(found)


def _short(step: Step, printed: str) -> str:
    """Return the last of what pip says, and the end of what is long: progress is one line."""
    lines = [line.rpartition("\r")[2].rstrip() for line in printed.splitlines()]
    if step.command.startswith("pip"):
        names = re.findall(r"(\S+)-\d\S*", next((x for x in lines if x.startswith("Successfully installed")), ""))
        return f"Successfully installed {len(names)} packages"
    return "\n".join(lines if len(lines) <= LINES else ["...", *lines[-LINES:]]).strip("\n")


def transcript(done: list[Done]) -> str:
    """Return the page: a table of times, then what was typed and printed."""
    seconds: dict[str, float] = {}
    for step, each in zip(STEPS, done, strict=True):
        seconds[step.title] = seconds.get(step.title, 0) + each.seconds
    rows = [f"| {title} | {_time(taken)} |" for title, taken in seconds.items()]
    parts = [_HEAD, *rows, f"| in all | {_time(sum(seconds.values()))} |"]
    title = ""
    for step, each in zip(STEPS, done, strict=True):
        if step.title != title:
            parts += ["", f"## {step.title}"]
            title = step.title
        where = f"`{step.page.removeprefix('../')}`" + (f", its blocks in `{step.script}`" if step.script else "")
        prompt = f"{step.folder}$" if step.folder != "." else "$"
        shown = f"{prompt} {step.command}\n{each.printed}".strip()
        parts += ["", f"{where}, {_time(each.seconds)}:", "", f"```text\n{shown}\n```"]
    return "\n".join([*parts, ""])


_HEAD = """# A stranger's hour

From a clone and an empty environment to a plugin, by what the README and the pages say alone: each command below is on
the page that is named above it. `python website/stranger.py FOLDER` types them and writes this page. Two cores that
others used too, no GPU; the index that pip asks there has torch without CUDA.

| | time |
|---|---|"""


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _spaced(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").split())


if __name__ == "__main__":
    sys.exit(main())
