"""SECURITY.md says of each dependency what settings.ini and the installed packages say, and no module loads pickles."""

import ast
import configparser
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| ([\w.-]+) \| (always|`\w+`) \| ([^|]+) \| ([\d.]+)[^|]* \| ([^|]+) \|")
FAMILIES = {"BSD-3-Clause": "BSD", "MIT-CMU": "MIT", "Apache-2.0": "Apache", "MPL-2.0": "MPL", "LGPL-2.1": "LGPL"}
# calls that run what a file holds, or may
FORBIDDEN = {"eval", "exec", "read_pickle", "allow_pickle", "unsafe_load", "load_from_checkpoint"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def required():
    "Return the direct dependencies but those of `dev`: (package, extra) -> requirement."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    found = {}
    for name, text in parser["DEFAULT"].items():
        extra = "always" if name == "requirements" else f"`{name.removesuffix('_requirements')}`"
        if name == "requirements" or (name.endswith("_requirements") and name != "dev_requirements"):
            for requirement in map(Requirement, text.split()):
                found[requirement.name, extra] = requirement
    return found


def table():
    "Return the table of SECURITY.md: (package, extra) -> license, newest release, what it loads."
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    return {(name, extra): rest for name, extra, *rest in ROW.findall(text)}


def test_every_dependency_has_a_row():
    assert table().keys() == required().keys()


@pytest.mark.parametrize("key", table(), ids="-".join)
def test_row_agrees_with_what_is_installed(key):
    license_name, newest, _ = table()[key]
    assert required()[key].specifier.contains(newest)
    try:
        installed = distribution(key[0])
    except PackageNotFoundError:
        pytest.skip("not installed")
    fields = [installed.metadata.get("License-Expression"), installed.metadata.get("License")]
    fields += [*(installed.metadata.get_all("Classifier") or []), installed.read_text("LICENSE")]
    stated = " ".join(filter(None, fields))
    for word in license_name.removesuffix(" and others").split(" and "):
        assert FAMILIES.get(word, word) in stated, f"{key[0]} states: {stated[:300]}"


@pytest.mark.parametrize("path", sorted((ROOT / "osteonb").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_loads_code_or_pickles(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        assert not FORBIDDEN_MODULES.intersection(names), names
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            is_method = called.endswith(".eval")  # of a network
            assert is_method or not FORBIDDEN.intersection({called.split(".")[-1], *words}), called
            assert called != "joblib.load"
            if called == "torch.load" or "ckpt_path" in words:
                assert ast.literal_eval(words["weights_only"]) is True, ast.unparse(node)
            if called == "YAML":
                assert ast.literal_eval(words["typ"]) == "safe"
