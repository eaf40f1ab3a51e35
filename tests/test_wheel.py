"""The wheel in an environment that holds nothing else: what `pip install` gives a user. It takes two minutes and 6 GB, and needs a package index."""
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "osteonb").rglob("*.py"))
MODEL = ROOT / "osteonb" / "pretrained" / "release"  # the model that comes with the package
MODEL_FILES = {path.relative_to(ROOT).as_posix() for path in MODEL.parent.rglob("*") if path.is_file()}
TRIAL = "osteonb/pretrained/trial/config.json"  # a file of a model that only the built copy has
NOT_IMPORTED = ("__init__.py", "__main__.py", "_modidx.py")
MODULES = [name[:-3].replace("/", ".") for name in FILES if not name.endswith(NOT_IMPORTED)]
HEAVY = {
    "torch", "torchvision", "timm", "lightning", "sklearn", "skimage", "matplotlib", "seaborn", "radiomics", "SimpleITK",
    "dask", "openslide", "captum", "onnx",
}  # fmt: skip
# folder or module -> what it may load of the heavy packages; everything else is free to load them
LIGHT = {
    "core": set(),
    "cli": set(),
    "synthetic": {"skimage"},
    "data": {"sklearn", "skimage"},
    "evaluation": {"sklearn"},
    "radiomics.firstorder": {"torch"},
    "radiomics.masks": {"skimage"},
    "models.loss": {"torch"},
    "reports.html": set(),
    "experiments.grid": set(),
    "slides.reader": {"skimage"},
}


def run(*words, **settings):
    "Run a command and return what it printed; its status must be 0."
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "Build a wheel of the working tree, from a copy so that the tree stays as it is."
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    (source / TRIAL).parent.mkdir(parents=True)
    (source / TRIAL).write_text("{}")
    # the source distribution, and the wheel from it
    run(sys.executable, "-m", "build", "--outdir", target, source)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="session")
def bin(wheel, tmp_path_factory):
    "Return the commands of a fresh environment, with fastcore 2."
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    run(place / "bin" / "python", "-m", "pip", "install", "-q", f"{wheel}[offline]", "fastcore>=2")
    return place / "bin"


@pytest.fixture
def alone(tmp_path):
    "Return an empty folder to work in, and an environment that leads to no other package and to no model hub."
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "OSTEONB_DATA")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return dict(cwd=tmp_path, env=kept | dict(HF_HUB_OFFLINE="1", OSTEONB_CACHE=str(tmp_path / "cache")))


def test_the_wheel_holds_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {*FILES, *MODEL_FILES, TRIAL}
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    # a link of the README leads somewhere from the package index's page too
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)


def test_the_wheel_is_small(wheel):
    "A model is at most 16 MB, and the code is small beside it."
    assert wheel.stat().st_size < 18e6
    assert sum((ROOT / name).stat().st_size for name in MODEL_FILES) <= 16e6


def test_packages_agree(bin):
    assert run(bin / "python", "-c", "import fastcore; print(fastcore.__version__)").stdout.startswith("2.")
    run(bin / "python", "-m", "pip", "check")


def test_every_module_imports(bin, alone):
    code = f"import importlib\nfor name in {MODULES}: importlib.import_module(name)"
    run(bin / "python", "-c", code, **alone)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_little(bin, alone, name):
    "No heavy package comes with a module that does not need it."
    modules = [module for module in MODULES if f"{module}.".startswith(f"osteonb.{name}.")]
    code = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(*({HEAVY} & set(sys.modules)))"
    )
    assert set(run(bin / "python", "-c", code, **alone).stdout.split()) <= LIGHT[name]


def test_the_main_command_offline(bin, alone):
    "A report from nothing, and no word that looks like an error."
    settings = ["--set", "tile_size=128 image_size=64", "--set", "max_epochs=3", "--set", "min_epochs=1"]
    done = run(bin / "osteonb", "run", "--out", "run", *settings, **alone)
    assert (alone["cwd"] / "run" / "report.html").exists() and "Accuracy" in done.stdout
    assert not re.search("error|traceback|deprecat|exception", done.stdout + done.stderr, re.I), done.stderr


@pytest.mark.skipif(not MODEL.is_dir(), reason="this copy has no osteonb/pretrained/release")
def test_the_model_of_the_package_predicts_offline(bin, alone):
    "The model in the wheel predicts a folder of tiles."
    draw = (
        "from pathlib import Path; from PIL import Image; from osteonb.synthetic import draw_tile\n"
        "Path('tiles').mkdir()\n"
        "for label in ('Non-Tumor', 'Non-Viable-Tumor', 'Viable'):\n"
        "    Image.fromarray(draw_tile('Case 904 C11-5000-7000', label)).save(f'tiles/{label}.png')\n"
    )
    run(bin / "python", "-c", draw, **alone)
    done = run(bin / "osteonb", "predict", "tiles", "--model", "release", **alone)
    assert "3 tiles (3 new)" in done.stdout and (alone["cwd"] / "predictions.csv").exists()
    lines = (alone["cwd"] / "predictions.csv").read_text().splitlines()
    names = lines[0].split(",")
    for line in lines[1:]:
        row = dict(zip(names, line.split(",")))
        assert abs(sum(float(row[f"p_{name}"]) for name in ("non_tumor", "non_viable", "viable")) - 1) < 1e-6


def test_every_subcommand_answers(bin, alone):
    listed = run(bin / "osteonb", "--help", **alone).stdout.split("Commands:")[1]
    names = re.findall(r"^  (\w+)", listed, re.M)
    assert len(names) == 13
    for name in names:
        assert "Usage" in run(bin / "osteonb", name, "--help", **alone).stdout
