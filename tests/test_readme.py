"""tools/readme.py on a small notebook: what a reader of README.md sees of each kind of cell."""
import base64, importlib.util, json
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent/"tools"/"readme.py"
spec = importlib.util.spec_from_file_location("readme", TOOL)
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)

PNG = b"\x89PNG, or so it says"


def code(source, *outputs): return dict(cell_type="code", source=source.splitlines(True), outputs=list(outputs))
def prose(source): return dict(cell_type="markdown", source=source.splitlines(True))
def printed(text): return dict(output_type="stream", name="stdout", text=text.splitlines(True))
def result(**data): return dict(output_type="execute_result", data={k.replace("_", "/"): v for k, v in data.items()})


def made(tmp_path, *cells):
    "The README of a notebook with these cells, without its first line."
    notebook = tmp_path/"nbs"/"index.ipynb"
    notebook.parent.mkdir(exist_ok=True)
    notebook.write_text(json.dumps(dict(cells=cells)))
    readme.main(["--notebook", str(notebook), "--readme", str(tmp_path/"README.md")])
    return (tmp_path/"README.md").read_text().split("\n\n", 1)[1]


def check(tmp_path): return readme.main(["--check", "--notebook", str(tmp_path/"nbs"/"index.ipynb"), "--readme", str(tmp_path/"README.md")])


def test_code_and_its_output(tmp_path):
    assert made(tmp_path, code("#| eval: false\n1 + 1", result(text_plain="2"))) == "```python\n1 + 1\n```\n\n```\n2\n```\n"
    assert made(tmp_path, code("print('a')", printed("\x1b[31ma\x1b[0m\n"))) == "```python\nprint('a')\n```\n\n```\na\n```\n"


def test_directives(tmp_path):
    x = result(text_plain="2")
    assert made(tmp_path, prose("# T"), code("#| hide\n1 + 1", x), code("#| default_exp core")) == "# T\n"
    assert made(tmp_path, code("#| echo: false\n1 + 1", x)) == "```\n2\n```\n"
    assert made(tmp_path, code("#|output: false\n1 + 1", x)) == "```python\n1 + 1\n```\n"
    assert made(tmp_path, code("#| echo: false\n#| output: asis\nprint('*a*')", printed("*a*\n"))) == "*a*\n"
    assert made(tmp_path, code("# a comment\n#| hide\n1 + 1")) == "```python\n# a comment\n#| hide\n1 + 1\n```\n"   # directives come first or not at all


def test_markdown_output_is_markdown(tmp_path):
    assert made(tmp_path, code("#| echo: false\nt", result(text_plain="?", text_markdown="| a |\n|---|"))) == "| a |\n|---|\n"


def test_a_fence_outgrows_its_text(tmp_path):
    assert made(tmp_path, code("#| echo: false\nx", printed("```\n"))) == "````\n```\n````\n"


@pytest.mark.parametrize("before, after", [
    ("[tiles](01_tiles.ipynb)", "[tiles](nbs/01_tiles.ipynb)"),
    ("[`tiles`](01_tiles.ipynb#names)", "[`tiles`](nbs/01_tiles.ipynb#names)"),
    ("[licence](../LICENSE)", "[licence](LICENSE)"),
    ('<img src="images/a.png">', '<img src="nbs/images/a.png">'),
    ("[paper](https://arxiv.org/abs/2601.09416) [below](#below)", "[paper](https://arxiv.org/abs/2601.09416) [below](#below)"),
    ("`[a](b.ipynb)`\n\n```sh\n[a](b.ipynb)\n```", "`[a](b.ipynb)`\n\n```sh\n[a](b.ipynb)\n```"),
])
def test_links_start_from_the_readme(tmp_path, before, after):
    assert made(tmp_path, prose(before)) == after + "\n"


def test_pictures_are_written_linked_and_removed(tmp_path):
    figure = result(image_png=base64.b64encode(PNG).decode(), text_plain="<Figure>")
    assert made(tmp_path, code("#| echo: false\n#| fig-alt: Three tiles\nf", figure)) == "![Three tiles](nbs/index_files/figure-1.png)\n"
    assert (tmp_path/"nbs"/"index_files"/"figure-1.png").read_bytes() == PNG
    made(tmp_path, prose("no picture"))
    assert not (tmp_path/"nbs"/"index_files").exists()


def test_check_sees_every_difference(tmp_path):
    made(tmp_path, code("f", result(image_png=base64.b64encode(PNG).decode())))
    assert check(tmp_path) == 0
    (tmp_path/"nbs"/"index_files"/"figure-1.png").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"figure-1.png: not in step with index.ipynb; run `python tools/readme.py`"): check(tmp_path)
    (tmp_path/"README.md").unlink()
    with pytest.raises(SystemExit, match="README.md, figure-1.png: not in step"): check(tmp_path)


def test_a_failed_cell_is_no_front_page(tmp_path):
    with pytest.raises(SystemExit, match="ended in an error"): made(tmp_path, code("1/0", dict(output_type="error", ename="ZeroDivisionError")))
    with pytest.raises(SystemExit, match="no such notebook"): readme.main(["--notebook", str(tmp_path/"absent.ipynb")])
