# SPDX-License-Identifier: Apache-2.0
"""What `import ipu_core` offers, and what it costs."""

import subprocess
import sys

import ipu_core
import pytest

HEAVY = "{'torch', 'transformers', 'optimum', 'numpy'}"


def modules_after(code: str) -> str:
    script = f"import sys; {code}; print(sorted({HEAVY} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", script], text=True).strip().splitlines()[-1]


def test_the_public_names_are_sorted_and_all_there():
    assert ipu_core.__all__ == sorted(ipu_core.__all__)
    for name in ipu_core.__all__:
        assert getattr(getattr(ipu_core, name), "__name__", name) == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module `ipu_core` has no attribute `nothing`"):
        ipu_core.nothing  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import ipu_core",
        "from ipu_core import Family, hookimpl, IPUError",
        "from ipu_core.plugins.registry import installed; installed()",
        "import ipu_core.cli; ipu_core.cli.main(['plugins'])",
    ],
)
def test_it_imports_neither_torch_nor_transformers(code):
    assert modules_after(code) == "[]"
