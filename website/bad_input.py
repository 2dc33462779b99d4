# SPDX-License-Identifier: Apache-2.0
"""Bad input, typed: what a command or an example prints of each, and its exit status, as the page docs/bad_input.md.

`python website/bad_input.py` runs every case, and fails where the page says something else; `--write` writes the page.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import blocks

PAGE = blocks.DOCS / "bad_input.md"
FOLDER = blocks.RUNS / "bad_input"
LINES = 4  # shown of what a case prints, at most
SECONDS = 300  # that a case may take


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command with something wrong in it, and what that is."""

    about: str
    command: str
    shows: str = ""  # of what is printed, the lines in which this is found; all by default
    interrupted_at: str = ""  # what is printed when Ctrl-C is typed


EXAMPLE = "python examples/text_classification.py --output_dir out "
REVIEWS = EXAMPLE + "--data reviews.csv "
GROUPS = {
    "Commands": [
        Case(about="no command", command="ipu", shows="^usage|^examples|^  ipu"),
        Case(about="the versions", command="ipu --version"),
        Case(about="a misspelt command", command="ipu plam"),
        Case(about="a misspelt option", command="ipu plan --famly bert"),
        Case(about="no model", command="ipu plan"),
        Case(about="a misspelt family", command="ipu plan --family bret"),
        Case(about="a misspelt option of the model", command="ipu plan --family bert --set hiden_size=64"),
        Case(about="a value of another type", command="ipu plan --family bert --set hidden_size=big"),
        Case(about="`--set` without a value", command="ipu plan --family bert --set hidden_size"),
        Case(about="more tokens than positions", command="ipu plan --family bert --length 1000"),
        Case(about="a negative batch", command="ipu plan --family bert --batch -2"),
        Case(about="rows of no tokens", command="ipu plan --family bert --length 0"),
        Case(about="a word for a number", command="ipu plan --family bert --layers-per-ipu two"),
        Case(about="more layers than there are", command="ipu plan --model tiny --layers-per-ipu 1,2"),
        Case(about="no such configuration", command="ipu plan --family bert --config nowhere/ipu_config.json"),
        Case(about="a configuration that is no JSON", command="ipu plan --family bert --config broken"),
        Case(about="a misspelt option of `IPUConfig`", command="ipu plan --family bert --config misspelt"),
        Case(about="no such folder", command="ipu plan --model ./tinny"),
        Case(about="a folder without a model", command="ipu plan --model reviews"),
        Case(about="a config.json that is no JSON", command="ipu plan --model broken"),
        Case(about="no number of bytes", command="ipu fit --model tiny --device-memory 16GG"),
        Case(about="a prompt and tokens beyond the positions", command='ipu generate --model poem "two roads"'),
        Case(about="no prompt", command='ipu generate --model poem ""'),
        Case(about="a checkpoint without a tokenizer", command='ipu generate --model tiny "two roads"'),
        Case(about="weights that were cut off", command='ipu generate --model cut "two roads"'),
        Case(about="a task of texts, and no tokenizer", command='ipu pipeline text-classification --model tiny "fine"'),
        Case(about="a picture's folder that is missing", command="ipu plan --family bert --svg pictures/plan.svg"),
        Case(about="a missing recipe", command="ipu train run.yaml"),
        Case(about="a missing script", command="ipu run run_glue.py"),
        Case(about="a reader that goes away", command="ipu plugins --classes | head -n 1"),
    ],
    "New plugins": [
        Case(about="a name that no package has", command="ipu new-plugin 9lives"),
        Case(about="a name that is installed", command="ipu new-plugin ipu-models-bert"),
        Case(about="a model type that is declared", command="ipu new-plugin ipu-models-mine --model-type bert"),
        Case(about="a misspelt model type", command="ipu new-plugin ipu-models-mine --model-type optt"),
        Case(about="a folder that is not empty", command="ipu new-plugin ipu-models-opt --folder reviews"),
        Case(about="a file in its place", command="ipu new-plugin ipu-models-opt --folder reviews.csv"),
    ],
    "Examples": [
        Case(about="an empty label", command=EXAMPLE + "--data gap.csv"),
        Case(about="an empty file", command=EXAMPLE + "--data empty.csv"),
        Case(about="names of columns, and no rows", command=EXAMPLE + "--data header.csv"),
        Case(about="one row", command=EXAMPLE + "--data row.csv"),
        Case(about="a line with too many fields", command=EXAMPLE + "--data fields.csv"),
        Case(about="a line that is no JSON", command=EXAMPLE + "--data broken.jsonl"),
        Case(about="a misspelt file", command=EXAMPLE + "--data review.csv"),
        Case(about="a missing folder", command=EXAMPLE + "--data data/reviews/"),
        Case(about="columns of other names", command=EXAMPLE + "--data stars.csv"),
        Case(about="texts that are cut", command=REVIEWS + "--max_length 6 --max_steps 1", shows="cut to it"),
        Case(about="more tokens than positions", command=REVIEWS + "--max_length 1000"),
        Case(about="a missing checkpoint", command=REVIEWS + "--model ./tinny"),
        Case(about="weights that were cut off", command=REVIEWS + "--model cut"),
        Case(about="a config.json that is no JSON", command=REVIEWS + "--model broken"),
        Case(
            about="an output directory that cannot be made",
            command="python examples/text_classification.py --output_dir reviews.csv/out",
        ),
        Case(about="a word for a number", command=REVIEWS + "--layers_per_ipu 1,x"),
        Case(about="a split that does not fit", command=REVIEWS + "--layers_per_ipu 1,2", shows="^error"),
        Case(
            about="a device that is not there",
            command=REVIEWS + "--ipu_config_overrides 'devices=[cuda:99 cpu]'",
            shows="^error",
        ),
        Case(
            about="a batch larger than the data", command=REVIEWS + "--per_device_train_batch_size 300", shows="^error"
        ),
        Case(about="a misspelt option", command=REVIEWS + "--max_lenght 16"),
        Case(about="a word for steps", command=REVIEWS + "--max_steps two"),
        Case(
            about="Ctrl-C, before a checkpoint",
            command=REVIEWS + "--do_train --max_steps 100000 --logging_steps 5",
            shows="^stopped|^  ",
            interrupted_at="'loss'",
        ),
        Case(
            about="Ctrl-C, after one",
            command=REVIEWS + "--do_train --max_steps 100000 --save_steps 100 --logging_steps 110",
            shows="^stopped|^  ",
            interrupted_at="'loss'",
        ),
        Case(
            about="a prompt and tokens beyond the positions",
            command='python examples/text_generation.py --model poem --max_new_tokens 64 "two roads"',
        ),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What a case printed, and its exit status."""

    text: str
    status: int


def main() -> int:
    """Run the cases; return 1 where the page says something else."""
    parser = argparse.ArgumentParser(description="Type bad input, and compare what is printed with docs/bad_input.md.")
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    began = time.perf_counter()
    prepare(FOLDER)
    cases = [case for group in GROUPS.values() for case in group]
    with ThreadPoolExecutor(2) as pool:
        printed = dict(zip(cases, pool.map(run, range(len(cases)), cases), strict=True))
    made = page(printed)
    if options.write:
        PAGE.write_text(made, encoding="utf-8")
    said = PAGE.read_text(encoding="utf-8")
    differ = [
        f"{PAGE.name} says\n{old}\nand it is\n{new}"
        for old, new in zip(said.splitlines(), made.splitlines(), strict=False)
        if not blocks.agrees(new, old)
    ]
    missing = [] if len(said.splitlines()) == len(made.splitlines()) else [f"{PAGE.name} has other rows: --write"]
    traces = [f"a traceback is printed of: {case.command}" for case in cases if "Traceback" in printed[case].text]
    print(*traces, *differ, *missing, f"{len(cases)} cases in {time.perf_counter() - began:.0f} s", sep="\n")
    return 1 if traces or differ or missing else 0


def prepare(folder: Path) -> None:
    """Write the files that the cases name."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(folder, ignore_errors=True)
    texts = {
        "gap.csv": "text,label\nthe day was fine,good\nthe road was dull,\n",
        "empty.csv": "",
        "header.csv": "text,label\n",
        "fields.csv": "text,label\nthe day was fine,good\nthe road, they say, was dull,bad\n",
        "row.csv": "text,label\nthe day was fine,good\n",
        "stars.csv": "review,stars\nthe day was fine,5\nthe road was dull,1\n",
        "broken.jsonl": '{"text": "the day was fine", "label": 1}\n{"text": "the road was dull" "label": 0}\n',
        "reviews/train.csv": "text,label\nthe day was fine,good\n",
        "broken/config.json": '{\n  "model_type": "bert",\n  "hidden_size" 64\n}\n',
        "broken/ipu_config.json": '{"layers_per_ipu": [1, 1}\n',
        "misspelt/ipu_config.json": '{"layer_per_ipu": [1, 1]}\n',
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(blocks.ROOT / "examples" / "reviews.csv", folder)
    (folder / "examples").symlink_to(blocks.ROOT / "examples")
    small = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=99, **small)).save_pretrained(
        folder / "tiny"
    )
    words = {word: number for number, word in enumerate(("<unk>", "</s>", "two", "roads"))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ends)
    config = transformers.GPT2Config(
        vocab_size=4, n_layer=2, n_embd=32, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "poem")
    tokenizer.save_pretrained(folder / "poem")
    shutil.copytree(folder / "poem", folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def run(number: int, case: Case) -> Printed:
    """Type a case, with Ctrl-C where that belongs to it."""
    folder = FOLDER / "runs" / str(number)
    folder.mkdir(parents=True)
    for path in FOLDER.iterdir():
        if path.name != "runs":
            (folder / path.name).symlink_to(path)
    plain = {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    plain["PYTHONUNBUFFERED"] = "1"  # what is waited for is seen as soon as it is printed
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    command = ["bash", "-c", case.command]
    if case.interrupted_at:
        command = shlex.split(case.command)  # no shell in between
    output = folder / "printed.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **plain, "PATH": path}, stdout=file, stderr=subprocess.STDOUT
        )
        until = time.monotonic() + SECONDS
        while case.interrupted_at and not re.search(case.interrupted_at, output.read_text(encoding="utf-8")):
            if process.poll() is not None or time.monotonic() > until:
                break
            time.sleep(0.05)
        if case.interrupted_at:
            process.send_signal(signal.SIGINT)
        status = process.wait(SECONDS)
    return Printed(text=output.read_text(encoding="utf-8").replace(str(folder), "..."), status=status)


def shown(case: Case, printed: str) -> list[str]:
    """Return the lines of a case that its row has: of a line that was written over, the last."""
    lines = [line.rpartition("\r")[2].rstrip() for line in printed.splitlines()]
    lines = [line for line in lines if line and re.search(case.shows, line)]
    return lines[:LINES] + (["..."] if len(lines) > LINES else [])


def page(printed: dict[Case, Printed]) -> str:
    """Return the page: a table for each group."""
    parts = [_HEAD]
    for title, cases in GROUPS.items():
        parts += [f"\n## {title}\n", "| wrong | typed | printed | status |", "|---|---|---|---|"]
        parts += [_row(case, printed[case]) for case in cases]
    return "\n".join([*parts, ""])


def _row(case: Case, printed: Printed) -> str:
    lines = "<br>".join(map(_code, shown(case, printed.text))) or "nothing"
    return f"| {case.about} | {_code(case.command)} | {lines} | {printed.status} |"


def _code(text: str) -> str:
    """Return a line as code in a table: numbers of checkpoints are of one run."""
    text = re.sub(r"checkpoint-\d+", "checkpoint-100", text.strip()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


_HEAD = """# Bad input, and what is printed

What is wrong, what is there, and what to change, in a sentence and before anything is computed. The status is 2 where
something has to be changed, and 130 after Ctrl-C. `python website/bad_input.py` types each line below, with files that
are as the first column says, and `nox -s docs` compares what is printed with this page. What Python's own interfaces
raise is in [errors and their causes](reference/errors.md)."""


if __name__ == "__main__":
    sys.exit(main())
