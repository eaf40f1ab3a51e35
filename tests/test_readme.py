"""tools/readme.py on a small notebook: what a reader of README.md sees of each kind of cell."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "readme.py"
spec = importlib.util.spec_from_file_location("readme", TOOL)
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)

PNG = b"\x89PNG, not a real one"


def code(source, *outputs):
    return {"cell_type": "code", "source": source.splitlines(True), "outputs": list(outputs)}


def prose(source):
    return {"cell_type": "markdown", "source": source.splitlines(True)}


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}


def result(**data):
    return {"output_type": "execute_result", "data": {k.replace("_", "/"): v for k, v in data.items()}}


def arguments(folder):
    return ["--notebook", str(folder / "nbs" / "index.ipynb"), "--readme", str(folder / "README.md")]


def make_readme(folder, *cells):
    "Return the README of a notebook with these cells, without its first line."
    notebook = folder / "nbs" / "index.ipynb"
    notebook.parent.mkdir(exist_ok=True)
    notebook.write_text(json.dumps({"cells": cells}))
    readme.main(arguments(folder))
    return (folder / "README.md").read_text().split("\n\n", 1)[1]


def check(folder):
    return readme.main(["--check", *arguments(folder)])


def test_code_and_its_output(tmp_path):
    cell = code("#| eval: false\n1 + 1", result(text_plain="2"))
    assert make_readme(tmp_path, cell) == "```python\n1 + 1\n```\n\n```\n2\n```\n"
    cell = code("print('a')", printed("\x1b[31ma\x1b[0m\n"))
    assert make_readme(tmp_path, cell) == "```python\nprint('a')\n```\n\n```\na\n```\n"


def test_directives(tmp_path):
    two = result(text_plain="2")
    cells = prose("# T"), code("#| hide\n1 + 1", two), code("#| default_exp core")
    assert make_readme(tmp_path, *cells) == "# T\n"
    assert make_readme(tmp_path, code("#| echo: false\n1 + 1", two)) == "```\n2\n```\n"
    assert make_readme(tmp_path, code("#|output: false\n1 + 1", two)) == "```python\n1 + 1\n```\n"
    cell = code("#| echo: false\n#| output: asis\nprint('*a*')", printed("*a*\n"))
    assert make_readme(tmp_path, cell) == "*a*\n"


def test_a_directive_below_other_lines_is_a_comment(tmp_path):
    source = "# a comment\n#| hide\n1 + 1"
    assert make_readme(tmp_path, code(source)) == f"```python\n{source}\n```\n"


def test_markdown_output_is_markdown(tmp_path):
    output = result(text_plain="?", text_markdown="| a |\n|---|")
    assert make_readme(tmp_path, code("#| echo: false\nt", output)) == "| a |\n|---|\n"


def test_a_fence_is_longer_than_those_inside(tmp_path):
    assert make_readme(tmp_path, code("#| echo: false\nx", printed("```\n"))) == "````\n```\n````\n"


@pytest.mark.parametrize(
    "before, after",
    [
        ("[tiles](01_tiles.ipynb)", "[tiles](nbs/01_tiles.ipynb)"),
        ("[`tiles`](01_tiles.ipynb#names)", "[`tiles`](nbs/01_tiles.ipynb#names)"),
        ("[license](../LICENSE)", "[license](LICENSE)"),
        ('<img src="images/a.png">', '<img src="nbs/images/a.png">'),
        (
            "[paper](https://arxiv.org/abs/2601.09416) [below](#below)",
            "[paper](https://arxiv.org/abs/2601.09416) [below](#below)",
        ),
        ("`[a](b.ipynb)`\n\n```sh\n[a](b.ipynb)\n```", "`[a](b.ipynb)`\n\n```sh\n[a](b.ipynb)\n```"),
    ],
)
def test_links_start_from_the_readme(tmp_path, before, after):
    assert make_readme(tmp_path, prose(before)) == after + "\n"


def test_pictures_are_written_linked_and_removed(tmp_path):
    figure = result(image_png=base64.b64encode(PNG).decode(), text_plain="<Figure>")
    cell = code("#| echo: false\n#| fig-alt: Three tiles\nf", figure)
    assert make_readme(tmp_path, cell) == "![Three tiles](nbs/index_files/figure-1.png)\n"
    assert (tmp_path / "nbs" / "index_files" / "figure-1.png").read_bytes() == PNG
    make_readme(tmp_path, prose("no picture"))
    assert not (tmp_path / "nbs" / "index_files").exists()


def test_check_finds_every_difference(tmp_path):
    make_readme(tmp_path, code("f", result(image_png=base64.b64encode(PNG).decode())))
    assert check(tmp_path) == 0
    (tmp_path / "nbs" / "index_files" / "figure-1.png").write_bytes(b"another")
    message = r"^figure-1.png: not up to date with index.ipynb; run `python tools/readme.py`"
    with pytest.raises(SystemExit, match=message):
        check(tmp_path)
    (tmp_path / "README.md").unlink()
    with pytest.raises(SystemExit, match="README.md, figure-1.png: not up to date"):
        check(tmp_path)


def test_a_failed_cell_is_an_error(tmp_path):
    error = {"output_type": "error", "ename": "ZeroDivisionError"}
    with pytest.raises(SystemExit, match="a cell ended in ZeroDivisionError"):
        make_readme(tmp_path, code("1/0", error))


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(SystemExit, match="absent.ipynb: no such notebook"):
        readme.main(["--notebook", str(tmp_path / "absent.ipynb")])
