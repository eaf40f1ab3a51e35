#!/usr/bin/env python3
"""Makes README.md from nbs/index.ipynb, without Quarto and with the standard library alone.

    python tools/readme.py          writes README.md, and its pictures beside the notebook
    python tools/readme.py --check  writes nothing; ends with status 1 where one of them is not in step

Markdown stays as it is, but for its links, which start from the README's folder now. Code becomes a fence with its output below it.
A cell can say `#| hide`, `#| echo: false`, `#| output: false`, `#| output: asis` and `#| fig-alt: what the picture shows`.
"""
import argparse, base64, json, os, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"\s*#\s*\|\s*([\w.-]+):?\s*(.*)")
COLORS = re.compile(r"\x1b\[[0-9;]*m")
LINK = re.compile(r"""
    (?P<code> ^(?P<fence>```+|~~~+) .*? ^(?P=fence) | `[^`\n]+` ) |             # nothing inside code is a link
    (?P<before> \]\( | \b(?:src|href)=" | ^\[[^\]\n]+\]:[ ] )                   # [text](target), <img src="target">, [name]: target
    (?! [a-z][a-z0-9+.-]*: | [/\#] ) (?P<target> [^)"\s]+ )                     # but not a URL, an absolute path or an anchor
    """, re.X | re.S | re.M)


def joined(
    text:str|list[str] # a notebook keeps text whole or as a list of lines
) -> str:
    "The text as one string."
    return text if isinstance(text, str) else "".join(text)


def fenced(
    text:str,        # code or output
    language:str=""  # after the opening fence
) -> str:            # a fence longer than any run of backticks inside
    "Text as a fenced block."
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def relinked(
    markdown:str, # with links that start from the notebook's folder
    folder:str    # the notebook's folder, seen from the README
) -> str:
    "The same with links that start from the README's folder; URLs, anchors and code stay as they are."
    def mend(m): return m[0] if m["code"] else m["before"] + posixpath.normpath(posixpath.join(folder, m["target"]))
    return LINK.sub(mend, markdown)


def directives(
    source:str                     # of a code cell
) -> tuple[dict[str, str], str]:   # what its first lines say (`#| echo: false` becomes `{"echo": "false"}`), and the code without them
    "Split a cell into its directives and its code."
    found, lines = {}, source.splitlines()
    while lines and (m := DIRECTIVE.fullmatch(lines[0])):
        found[m[1]] = m[2].strip()
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def show_output(
    output:dict,          # one output of a code cell
    says:dict[str, str],  # the cell's directives
    folder:str,           # the notebook's folder, seen from the README
    pictures:list[bytes], # PNG files so far; a new one is added
    pictures_at:str       # the folder for pictures, seen from the README
) -> str:                 # markdown; empty where there is nothing to show
    "One output: markdown as it is, a picture as a link, everything else as plain text."
    if output["output_type"] == "error": raise SystemExit(f"a cell ended in an error ({output['ename']}): mend the notebook and run it again")
    data = output.get("data", {})
    if "text/markdown" in data: return relinked(joined(data["text/markdown"]).strip("\n"), folder)
    if "image/png" in data:
        pictures.append(base64.b64decode(joined(data["image/png"])))
        return f"![{says.get('fig-alt', f'Figure {len(pictures)}')}]({pictures_at}/figure-{len(pictures)}.png)"
    text = COLORS.sub("", joined(output.get("text", data.get("text/plain", "")))).strip("\n")
    if says.get("output") == "asis": return relinked(text, folder)
    return fenced(text) if text.strip() else ""


def show_cell(
    cell:dict,            # of a notebook
    folder:str,           # the notebook's folder, seen from the README
    pictures:list[bytes], # PNG files so far; new ones are added
    pictures_at:str       # the folder for pictures, seen from the README
) -> list[str]:           # blocks of markdown
    "A cell as the README shows it."
    source = joined(cell["source"])
    if cell["cell_type"] == "markdown": return [relinked(source.strip("\n"), folder)]
    if cell["cell_type"] != "code": return []
    says, code = directives(source)
    if "hide" in says or says.get("include") == "false": return []
    blocks = [] if says.get("echo") == "false" else [code and fenced(code, "python")]
    if says.get("output") != "false": blocks += [show_output(o, says, folder, pictures, pictures_at) for o in cell["outputs"]]
    return blocks


def build(
    notebook:Path,          # the front page
    readme:Path             # what is to be made of it
) -> dict[Path, bytes]:     # the README and every picture, by where they belong
    "Everything that the notebook makes, in memory."
    def seen(path): return Path(os.path.relpath(path, readme.parent)).as_posix()
    at, pictures = notebook.parent/f"{notebook.stem}_files", []
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    blocks = [b for c in cells for b in show_cell(c, seen(notebook.parent), pictures, seen(at)) if b]
    head = f"<!-- Made from {seen(notebook)} by tools/readme.py: edit the notebook. -->"
    text = "\n\n".join([head, *blocks]) + "\n"
    return {readme: text.encode()} | {at/f"figure-{i}.png": p for i, p in enumerate(pictures, 1)}


def leftovers(
    notebook:Path,           # the front page
    files:dict[Path, bytes]  # what it makes now
) -> list[Path]:             # pictures that it made once
    "Pictures that nothing links to any more."
    return sorted(set((notebook.parent/f"{notebook.stem}_files").glob("figure-*.png")) - set(files))


def write(
    files:dict[Path, bytes], # contents by where they belong
    old:list[Path]           # files to remove
) -> None:
    "Write what changed, remove what is no longer used."
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content: path.write_bytes(content)
    for path in old:
        path.unlink()
        if not any(path.parent.iterdir()): path.parent.rmdir()


def main(
    argv:list[str]|None=None # the command line; the process's own where it is None
) -> int:                    # the exit status
    "Write the README, or say whether it is in step."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, end with status 1 where something is not in step")
    parser.add_argument("--notebook", type=Path, default=ROOT/"nbs"/"index.ipynb", help="the front page")
    parser.add_argument("--readme", type=Path, default=ROOT/"README.md", help="what is made of it")
    args = parser.parse_args(argv)
    if not args.notebook.is_file(): raise SystemExit(f"{args.notebook.name}: no such notebook; hand it over with --notebook")
    files = build(args.notebook, args.readme)
    old = leftovers(args.notebook, files)
    differ = [p.name for p, content in files.items() if not p.exists() or p.read_bytes() != content] + [p.name for p in old]
    if args.check and differ: raise SystemExit(f"{', '.join(differ)}: not in step with {args.notebook.name}; run `python tools/readme.py`")
    if not args.check: write(files, old)
    print(f"{args.readme.name} {'is in step' if args.check else 'written'}, pictures: {len(files) - 1}")
    return 0


if __name__ == "__main__": sys.exit(main())
