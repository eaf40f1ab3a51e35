"""Check that the code reads as CONTRIBUTING.md asks:   python .ci/lines.py   (--list names every place)

Lines of at most 120 columns in modules and in notebooks' code, functions of at most 30 lines, modules below 400 lines, notebooks below 100 cells, below 9 AST nodes a line,
at most 10 tuple assignments and 2 nested comprehensions in 1000 lines.
"""
import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LIMITS = {
    "lines over 120 columns in modules": 0,
    "lines over 120 columns in notebooks": 0,
    "functions over 30 lines": 0,
    "modules of 400 lines or more": 0,
    "notebooks of 100 cells or more": 0,
    "AST nodes a line": 9,
    "tuple assignments in 1000 lines": 10,
    "nested comprehensions in 1000 lines": 2,
}


def code_lines(text: str) -> list[tuple[int, str]]:
    "Return the lines that are neither blank nor a comment, with their numbers."
    lines = enumerate(text.splitlines(), 1)
    return [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def is_nested(node: ast.AST) -> bool:
    "Return whether a comprehension has two loops, or another comprehension in it."
    inside = [other for other in ast.walk(node) if other is not node]
    return len(node.generators) > 1 or any(isinstance(other, COMPREHENSIONS) for other in inside)


def body_length(function: ast.FunctionDef) -> int:
    "Return how many lines a function's body has, without its docstring."
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def check_module(path: Path, places: dict[str, list[str]]) -> tuple[int, int]:
    "Note what one module has that it should not; return its lines and AST nodes."
    text = path.read_text(encoding="utf-8")
    tree, lines, name = ast.parse(text), code_lines(text), path.relative_to(ROOT)
    generated = [node for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
    skipped = {number for node in generated for number in range(node.lineno, node.end_lineno + 1)}
    wide = [number for number, line in lines if len(line) > 120 and number not in skipped]
    places["lines over 120 columns in modules"] += [f"{name}:{number}" for number in wide]
    if len(text.splitlines()) >= 400:
        places["modules of 400 lines or more"].append(f"{name}: {len(text.splitlines())}")
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_length(node) > 30:
            places["functions over 30 lines"].append(f"{where} {node.name}")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            places["tuple assignments in 1000 lines"].append(where)
        if isinstance(node, COMPREHENSIONS) and is_nested(node):
            places["nested comprehensions in 1000 lines"].append(where)
    return len(lines), sum(1 for _ in ast.walk(tree))


def check_notebook(path: Path, places: dict[str, list[str]]) -> None:
    "Note a notebook's wide lines of code, and too many cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    name = path.relative_to(ROOT)
    if len(cells) >= 100:
        places["notebooks of 100 cells or more"].append(f"{name}: {len(cells)}")
    for number, cell in enumerate(cells):
        lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else []
        if any(len(line) > 120 for line in lines):
            places["lines over 120 columns in notebooks"].append(f"{name} cell {number}")


def main() -> int:
    "Print each measure beside its limit; return 1 where one is exceeded."
    places = {name: [] for name in LIMITS}
    modules = [path for path in sorted((ROOT / "osteonb").rglob("*.py")) if path.name != "_modidx.py"]
    sizes = [check_module(path, places) for path in modules]
    notebooks = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    for path in notebooks:
        check_notebook(path, places)
    lines = sum(size for size, _ in sizes)
    wrong = 0
    for name, limit in LIMITS.items():
        value = len(places[name])
        if "1000 lines" in name:
            value = 1000 * value / lines
        if name == "AST nodes a line":
            value = sum(nodes for _, nodes in sizes) / lines
        exceeded = value >= limit if name == "AST nodes a line" else value > limit
        wrong += exceeded
        print(f"{name:40}{value:7.1f}   limit {limit}{'   TOO MUCH' if exceeded else ''}")
        if exceeded or "--list" in sys.argv:
            print("".join(f"    {place}\n" for place in places[name]), end="")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
