"""The structure of the package: which folder may import which, one notebook for each module, and the public names."""
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "osteonb"
# a folder imports only from folders below it; two on one floor do not import each other
FLOORS = [
    {"core"},
    {"data", "evaluation"},
    {"radiomics", "models", "synthetic"},
    {"reports"},
    {"slides", "experiments"},
    {"explain"},
    {"cli"},
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_modidx.py"]
CHAPTERS = [path for path in MODULES if path.name != "__init__.py" and path.parent != PACKAGE]


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
    "Return what a module imports of this package: the dotted name below `osteonb`, and the names."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        here = list(path.relative_to(PACKAGE).parts[:-1])
        names = [alias.name for alias in node.names]
        if node.level:
            base = here[: len(here) - node.level + 1]
            found.append((".".join(base + ([node.module] if node.module else [])), names))
        elif (node.module or "").startswith("osteonb."):
            found.append((node.module.removeprefix("osteonb."), names))
    return found


def public_names(path: Path) -> list[str]:
    "Return a module's `__all__`."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [element.value for element in node.value.elts]
    return []


def exports() -> dict[str, list[str]]:
    "Return module -> the notebooks that export to it."
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if match := re.match(r"#\| default_exp (\S+)", "".join(cell["source"])):
                found.setdefault(match[1], []).append(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_folder_imports_only_from_below(path):
    folder = path.relative_to(PACKAGE).parts[0]
    for module, names in imports_of(path):
        other = module.split(".")[0]
        if other and other != folder:
            assert FLOOR[other] < FLOOR[folder], f"{folder} may not import {module}"
            private = [name for name in names if name.startswith("_")]
            assert not private or folder == "cli", f"{private} of {module} are private"


def test_one_notebook_for_each_module():
    found = exports()
    assert not {module: paths for module, paths in found.items() if len(paths) > 1}
    for path in MODULES:
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            assert module in found, f"{path.relative_to(ROOT)} lacks its notebook"
    for module, (path,) in found.items():
        assert (PACKAGE / Path(*module.split("."))).with_suffix(".py").exists(), f"{path}: not exported"


def test_a_notebook_lies_where_its_module_does():
    for module, (path,) in exports().items():
        folder, name = "/".join(module.split(".")[:-1]), module.split(".")[-1]
        if module == "__main__":
            continue
        assert Path(path).parent.as_posix() == f"nbs/{folder}".rstrip("/"), path
        assert name == "__init__" or re.fullmatch(rf"\d\d_{name}", Path(path).stem), path


def test_public_names_are_a_decision():
    "A new public name is written into the list on purpose."
    listed = (ROOT / "tests" / "public_names.txt").read_text().splitlines()
    names = sorted(f"{path.relative_to(PACKAGE).as_posix()} {name}" for path in CHAPTERS for name in public_names(path))
    assert names == listed, "tests/public_names.txt lists every public name: change it if you mean to"
    assert len(names) < 200
    twice = [name for name, n in Counter(line.split()[1] for line in names).items() if n > 1]
    assert not twice
    assert not {line.split()[1] for line in names} & {path.stem for path in CHAPTERS}


def test_importing_a_folder_loads_little():
    "Faces load their modules when a name is asked for."
    folders = sorted(FLOOR)
    code = (
        f"import sys, importlib\nfor name in {folders}: importlib.import_module('osteonb.' + name)\n"
        "print(sorted({'torch', 'lightning', 'pandas', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_have_types_and_docstrings():
    for path in CHAPTERS:
        public = set(public_names(path))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if getattr(node, "name", None) in public:
                assert ast.get_docstring(node), f"{path.name}: {node.name} lacks a docstring"
