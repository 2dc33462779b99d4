# SPDX-License-Identifier: Apache-2.0
"""The blocks of the pages print what the pages say, a share of the pages a day; the reference has what the code has."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "website"))

import bad_input  # noqa: E402
import blocks  # noqa: E402
import reference  # noqa: E402
import stage  # noqa: E402
from ipu_core import errors  # noqa: E402
from ipu_core.config.options import OPTIONS  # noqa: E402

PAGE = """
```python
x = 1
print(f"loss {x / 3}")
```

prints

```
loss 0.333
```

<!-- goes on -->
```python
print(x)
```

<!-- not run: needs a network -->
```python
fetch()
```

<!-- file: run.yaml -->
```yaml
a: 1
```

```console
$ cat run.yaml
a: 1
$ true
```
"""


def run(text, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "DOCS", tmp_path)
    monkeypatch.setattr(blocks, "RUNS", tmp_path / "runs")
    (tmp_path / "page.md").write_text(text)
    return blocks.run_page("page.md")


def test_the_blocks_of_a_page_are_read_with_their_marks_and_what_they_print():
    read = blocks.blocks_of("page.md", PAGE)
    assert [block.language for block in read] == ["python", "python", "python", "yaml", "console"]
    assert [block.said(PAGE) for block in read[:2]] == ["loss 0.333\n", ""]
    assert [block.goes_on for block in read] == [False, True, False, False, False]
    assert (read[2].not_run, read[3].file) == ("needs a network", "run.yaml")


def test_a_page_is_run_as_one_session_in_a_folder(tmp_path, monkeypatch):
    done = run(PAGE, tmp_path, monkeypatch)
    assert list(done.printed.values()) == [f"loss {1 / 3}\n", "1\n", "", "$ cat run.yaml\na: 1\n$ true\n"]
    assert done.complaints() == []


def test_what_a_page_says_wrongly_is_shown_and_corrected(tmp_path, monkeypatch):
    done = run(PAGE.replace("0.333", "0.5").replace("a: 1\n$ true", "a: 2\n$ true"), tmp_path, monkeypatch)
    first, second = done.complaints()
    assert "page.md:2 prints\nloss 0.33" in first and "a: 2" in second
    assert done.corrected().complaints() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nnowhere\n```\n", "page.md:1 raises\n.*NameError"),
        ("```console\n$ false\n```\n", "page.md:1 ends with 1: false"),
        (
            "```python\nx = 1\n```\n```python\nprint(x)\n```\n",
            "page.md:4 raises\n.*NameError",
        ),  # complete, without a mark
        ("```\na\n```\n", "page.md:1 names no language"),
        ("<!-- not run -->\n```python\nx\n```\n", "page.md:2 does not say why"),
    ],
)
def test_what_cannot_be_run_is_named_with_its_line(text, message, tmp_path, monkeypatch):
    with pytest.raises(blocks.BlockError, match=f"(?s){message}"):
        run(text, tmp_path, monkeypatch)


def test_a_picture_that_nothing_wrote_is_named(tmp_path, monkeypatch):
    done = run('![drawn](a.svg) ![not](b.svg)\n```python\nopen("a.svg", "w").close()\n```\n', tmp_path, monkeypatch)
    assert done.complaints() == ["page.md shows b.svg, which is not in docs and which no block wrote"]


@pytest.mark.parametrize(
    ("printed", "said", "same"),
    [
        ("loss 0.8137", "loss 0.8136", True),
        ("loss 0.9", "loss 0.8", False),
        ("3 steps", "4 steps", False),
        ("1,234.5 MB in 7 s", "1,230.1 MB in ... s", True),
        ("a b", "a (b", False),
        ("a  \n", "a", True),
    ],
)
def test_numbers_with_a_point_may_differ_in_their_last_digits_and_nothing_else(printed, said, same):
    assert blocks.agrees(printed, said) is same


@pytest.mark.turns(1)
def test_the_readme_runs_as_pasted():
    run_in_a_process(blocks.README)


@pytest.mark.turns(16)
@pytest.mark.parametrize("page", [page for page in blocks.pages() if page != blocks.README])
def test_the_blocks_of_a_page_print_what_it_says(page):
    run_in_a_process(page)


def run_in_a_process(page):
    command = [sys.executable, str(ROOT / "website" / "run.py"), page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_is_in_its_page_and_every_number_has_a_unit():
    page = reference.options_page()
    for name, option in OPTIONS.items():
        assert f"| <a id='{name}'></a>`{name}` | " in page
        is_number = "int" in option.kind or "float" in option.kind or "bytes" in option.kind
        assert bool(option.unit) == (is_number and name != "seed"), name


def test_every_error_is_in_its_page_with_what_raises_it():
    page = reference.errors_page()
    tree = {cls.__name__ for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.IPUError)}
    assert {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")} == tree
    assert "must be >= {...}" not in page  # of no error of ours
    assert reference.raised_messages()["NotCompiledError"]


def test_the_messages_of_errors_are_read_from_where_they_are_raised():
    message = ast.parse("f'`{name}` has {len(x)} rows' 'and no more'", mode="eval").body
    assert reference._template(message) == "`{name}` has {...} rowsand no more"


def test_what_a_module_exports_is_read_without_importing_it():
    import ipu_core

    assert reference._exported("ipu_core") == ipu_core.__all__


def test_the_page_of_models_has_every_family_of_the_packages():
    page = reference.models_page()
    for package in ("bert", "seq2seq", "speech", "vision"):
        assert f"| **{package}** |" in page
    assert "| `llama` |" in page


def test_links_that_leave_the_pages_lead_into_the_site():
    text = "[a](../../CONTRIBUTING.md#x) [b](../../packages/ipu-core/README.md) [c](plan.md) [d](inside.ipynb) [e](https://f.g)"
    shown = stage.linked("start/install.md", text)
    assert shown == (
        "[a](../project/contributing.md#x) [b](../project/ipu-core.md) [c](plan.md) [d](inside.md) [e](https://f.g)"
    )
    assert stage.linked("project/contributing.md", "[v](docs/versions.md)") == "[v](../versions.md)"


def test_marks_become_titles():
    shown = stage.titled("<!-- goes on -->\n```python\nx\n```\n")
    assert shown == '```python title="goes on from the block above"\nx\n```\n'
    assert stage.titled("<!-- file: run.yaml -->\n```yaml\n").startswith('```yaml title="run.yaml"')


def test_what_bad_input_prints_is_a_row_of_its_page():
    case = bad_input.Case(about="a pipe", command="ipu a | head", shows="error|`")
    printed = bad_input.Printed(text="bar 1\rbar 2\nerror: no\n\nno `a`\n in checkpoint-7, `b`\n", status=2)
    assert bad_input._row(case, printed) == (
        "| a pipe | `ipu a \\| head` | `error: no`<br>`` no `a` ``<br>`` in checkpoint-100, `b` `` | 2 |"
    )


def test_the_page_of_bad_input_has_every_case_and_no_trace_of_calls():
    text = bad_input.PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cases = [case for group in bad_input.GROUPS.values() for case in group]
    assert [row.split(" | ")[0] for row in rows if " | typed | " not in row] == [f"| {case.about}" for case in cases]
    assert "Traceback" not in text
