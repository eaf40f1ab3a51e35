#!/usr/bin/env python3
"""Make README.md from nbs/index.ipynb, without Quarto and with the standard library alone.

    python tools/readme.py          write README.md, and its pictures beside the notebook
    python tools/readme.py --check  write nothing; exit with status 1 where a file is out of date

Markdown is copied; its links are changed to start from the folder of the README. Code becomes a fenced block, followed
by its output. These directives of a cell are followed: `#| hide`, `#| echo: false`, `#| output: false`,
`#| output: asis` and `#| fig-alt: text that describes the picture`.
"""

import argparse
import base64
import json
import os
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"\s*#\s*\|\s*([\w.-]+):?\s*(.*)")
COLORS = re.compile(r"\x1b\[[0-9;]*m")
LINK = re.compile(
    r"""
    (?P<code> ^(?P<fence>```+|~~~+) .*? ^(?P=fence) | `[^`\n]+` )   # a link inside code is left alone
    |
    (?P<before> \]\( | \b(?:src|href)=" | ^\[[^\]\n]+\]:[ ] )       # [text](target), <img src="target">, [name]: target
    (?! [a-z][a-z0-9+.-]*: | [/\#] )                                # no URL, no absolute path, no anchor
    (?P<target> [^)"\s]+ )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def join_lines(
    text: str | list[str],  # a notebook keeps text as a string or as a list of lines
) -> str:
    "Return the text as one string."
    return text if isinstance(text, str) else "".join(text)


def fenced(
    text: str,  # code or output
    language: str = "",  # after the opening fence
) -> str:  # the fence is longer than any run of backticks inside
    "Return text as a fenced block."
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def relink(
    markdown: str,  # with links that start from the notebook's folder
    folder: str,  # of the notebook, relative to the README
) -> str:
    "Return markdown whose links start from the README's folder; URLs, anchors and code are not changed."

    def replace(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        return match["before"] + posixpath.normpath(posixpath.join(folder, match["target"]))

    return LINK.sub(replace, markdown)


def directives(
    source: str,  # of a code cell
) -> tuple[dict[str, str], str]:  # `#| echo: false` becomes `{"echo": "false"}`
    "Split a cell into the directives in its first lines and its code."
    found = {}
    lines = source.splitlines()
    while lines and (match := DIRECTIVE.fullmatch(lines[0])):
        found[match[1]] = match[2].strip()
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def show_output(
    output: dict,  # of a code cell
    found: dict[str, str],  # directives of the cell
    folder: str,  # of the notebook, relative to the README
    pictures: list[bytes],  # PNG files so far; a new one is added
    picture_folder: str,  # relative to the README
) -> str:  # markdown; empty where there is nothing to show
    "Return an output: markdown as it is, a picture as a link, everything else as plain text."
    if output["output_type"] == "error":
        raise SystemExit(f"a cell ended in {output['ename']}: correct the notebook and run it again")
    data = output.get("data", {})
    if "text/markdown" in data:
        return relink(join_lines(data["text/markdown"]).strip("\n"), folder)
    if "image/png" in data:
        pictures.append(base64.b64decode(join_lines(data["image/png"])))
        text = found.get("fig-alt", f"Figure {len(pictures)}")
        return f"![{text}]({picture_folder}/figure-{len(pictures)}.png)"
    text = join_lines(output.get("text", data.get("text/plain", "")))
    text = COLORS.sub("", text).strip("\n")
    if found.get("output") == "asis":
        return relink(text, folder)
    return fenced(text) if text.strip() else ""


def show_cell(
    cell: dict,  # of a notebook
    folder: str,  # of the notebook, relative to the README
    pictures: list[bytes],  # PNG files so far; new ones are added
    picture_folder: str,  # relative to the README
) -> list[str]:  # blocks of markdown
    "Return a cell as the README shows it."
    source = join_lines(cell["source"])
    if cell["cell_type"] == "markdown":
        return [relink(source.strip("\n"), folder)]
    if cell["cell_type"] != "code":
        return []
    found, code = directives(source)
    if "hide" in found or found.get("include") == "false":
        return []
    blocks = []
    if code and found.get("echo") != "false":
        blocks.append(fenced(code, "python"))
    if found.get("output") != "false":
        for output in cell["outputs"]:
            blocks.append(show_output(output, found, folder, pictures, picture_folder))
    return [block for block in blocks if block]


def build(
    notebook: Path,  # the front page
    readme: Path,  # made of it
) -> dict[Path, bytes]:  # the README and every picture, by path
    "Return the contents of every file that is made of the notebook."

    def from_readme(path: Path) -> str:
        return Path(os.path.relpath(path, readme.parent)).as_posix()

    picture_folder = notebook.parent / f"{notebook.stem}_files"
    folder = from_readme(notebook.parent)
    pictures: list[bytes] = []
    blocks = [f"<!-- Made from {from_readme(notebook)} by tools/readme.py: edit the notebook. -->"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        blocks += show_cell(cell, folder, pictures, from_readme(picture_folder))
    text = "\n\n".join(block for block in blocks if block) + "\n"
    files = {readme: text.encode()}
    for number, picture in enumerate(pictures, 1):
        files[picture_folder / f"figure-{number}.png"] = picture
    return files


def unused_pictures(
    notebook: Path,  # the front page
    files: dict[Path, bytes],  # what is made of it now
) -> list[Path]:
    "Return the pictures of an earlier version that nothing links to."
    found = (notebook.parent / f"{notebook.stem}_files").glob("figure-*.png")
    return sorted(set(found) - set(files))


def write(
    files: dict[Path, bytes],  # contents by path
    unused: list[Path],  # files to remove
) -> None:
    "Write the files that changed and remove the unused ones."
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in unused:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def main(
    argv: list[str] | None = None,  # arguments; those of the process where it is `None`
) -> int:  # the exit status
    "Write the README, or check whether it is up to date."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    parser.add_argument("--notebook", type=Path, default=ROOT / "nbs" / "index.ipynb", help="the front page")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file to write")
    args = parser.parse_args(argv)
    if not args.notebook.is_file():
        raise SystemExit(f"{args.notebook.name}: no such notebook; give its path with --notebook")
    files = build(args.notebook, args.readme)
    unused = unused_pictures(args.notebook, files)
    if not args.check:
        write(files, unused)
        print(f"{args.readme.name} written, pictures: {len(files) - 1}")
        return 0
    outdated = [
        path.name for path, content in files.items() if not path.exists() or path.read_bytes() != content
    ]
    outdated += [path.name for path in unused]
    if outdated:
        names = ", ".join(outdated)
        raise SystemExit(f"{names}: not up to date with {args.notebook.name}; run `python tools/readme.py`")
    print(f"{args.readme.name} is up to date, pictures: {len(files) - 1}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
