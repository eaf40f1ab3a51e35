"""What a test run does not see of notebooks: their size, missing outputs, paths of a machine. Run from the project's root.

    python .ci/notebooks.py size
    python .ci/notebooks.py outputs
    python .ci/notebooks.py paths [FOLDER ...]   besides the usual homes and scratch folders, these
"""
import json, re, sys
from pathlib import Path
from typing import Iterator

LIMIT_KB = 500
PLACES = ("/home", "/root", "/Users", "/tmp", "/var/folders", "/private", "/mnt", "/opt", "/usr/local")


def notebooks() -> list[Path]:
    "Every notebook that nbdev would test."
    return [p for p in sorted(Path("nbs").rglob("*.ipynb")) if not any(part[0] in "._" for part in p.parts)]


def outputs(
    path:Path        # a notebook
) -> Iterator[dict]: # each output of each cell
    "What a notebook's cells left to look at."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]: yield from cell.get("outputs", [])


def text(
    output:dict # of a cell
) -> str:       # its text of every kind; pictures are no text, but SVG is
    "What a reader could read in an output."
    data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/") or "svg" in k}
    return json.dumps([output.get("text", ""), output.get("traceback", ""), data], ensure_ascii=False)


def check_size() -> Iterator[str]:
    "Notebooks that are too large to be read or merged."
    for path in notebooks():
        if (kb := path.stat().st_size / 1000) > LIMIT_KB: yield f"{path}: {kb:.0f} kB, at most {LIMIT_KB}"


def check_outputs() -> Iterator[str]:
    "Notebooks that show nothing, or show a failure."
    for path in notebooks():
        found = list(outputs(path))
        if not found: yield f"{path}: no cell has an output; run it and keep what it shows"
        if any(o["output_type"] == "error" for o in found): yield f"{path}: a cell ended in an error"


def check_paths(
    *folders:str # that no reader should see
) -> Iterator[str]:
    "Absolute paths of one machine, in outputs and in the README."
    places = {f.rstrip("/") for f in (*PLACES, *folders)} - {""}
    machine = re.compile(rf"(?<![\w.:/~…-])(?:{'|'.join(map(re.escape, sorted(places)))})/[\w.-]*")
    read = {p: " ".join(map(text, outputs(p))) for p in notebooks()} | {Path("README.md"): Path("README.md").read_text(encoding="utf-8")}
    for path, shown in read.items():
        if found := sorted(set(machine.findall(shown))): yield f"{path}: {', '.join(found[:3])}"


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["none"]
    checks = dict(size=check_size, outputs=check_outputs, paths=check_paths)
    if what not in checks: raise SystemExit(__doc__)
    if wrong := list(checks[what](*rest)): raise SystemExit("\n".join(wrong))
