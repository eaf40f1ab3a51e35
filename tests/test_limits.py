"""Limits of the machine: memory, open files, disk, permissions, links, closed streams. Each ends in one line with a cause and a fix, and status 1 (or as a shell counts a signal)."""
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from osteonb.experiments.fixtures import small_run
from osteonb.synthetic.cohort import make_cohort

SETTINGS = "tile_size=64 image_size=32 max_epochs=2 min_epochs=2 width=16 gate_width=8 pretrained_weights=none backbone=test_efficientnet"
MIB = 2**20


class Stage:
    "What commands work on."

    def __init__(self, root: Path):
        self.cohort = make_cohort(root / "cohort", scale=0.1, size=64, n_jobs=1)
        self.run = small_run()

    def words(self, command: str, folder: Path) -> list:
        "Return the command line of a command that writes into a folder."
        cache = ["--cache", folder.parent / "cache"]
        return {
            "train": ["train", "--data", self.cohort, "--out", folder / "run", "--test-group", "Case-904+P905", "--set", SETTINGS, *cache],
            "features": ["features", self.cohort, "--tile-size", 64, "--out", folder / "f.parquet", "--jobs", 2, *cache],
            "predict": ["predict", self.run, "--data", self.cohort, "--out", folder / "p.parquet", *cache],
            "audit": ["audit", self.cohort, "--tile-size", 64, "--out", folder / "a.html", *cache],
            "synthesize": ["synthesize", "--out", folder / "c", "--scale", 0.1, "--size", 64, "--jobs", 1],
        }[command]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"))


def call(words: list, limits: dict | None = None, **options) -> subprocess.CompletedProcess:
    "Run a command to its end, under limits: number of the resource -> its value."

    def set_limits():
        for kind, value in (limits or {}).items():
            resource.setrlimit(kind, (value, value))

    line = [sys.executable, "-m", "osteonb", *map(str, words)]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | options
    environment = os.environ | dict(OMP_NUM_THREADS="1") | options.pop("env", {})
    return subprocess.run(line, preexec_fn=set_limits, env=environment, text=True, errors="replace", timeout=300, **options)


def check_line(done: subprocess.CompletedProcess, *texts: str) -> None:
    "Check that a command was refused, and said so in its last line, without a traceback."
    lines = done.stderr.splitlines()
    assert done.returncode and lines, (done.returncode, done.stdout[-500:])
    assert "Traceback" not in done.stderr, done.stderr
    assert lines[-1].startswith("osteonb") and "; " in lines[-1], lines
    for text in texts:
        assert text in lines[-1], lines


@pytest.mark.parametrize("command, mebibytes", [("train", 150), ("train", 300), ("predict", 600), ("train", 1500)])
def test_too_little_memory(command, mebibytes, stage, tmp_path):
    "Address space below what the libraries need: a line about memory, at whatever place it runs out."
    done = call(stage.words(command, tmp_path), {resource.RLIMIT_AS: mebibytes * MIB})
    check_line(done, "memory runs out" if "crashed" in done.stderr else "memory ran out", "ulimit -v")


@pytest.mark.parametrize("n_files", [6, 7])
def test_too_few_open_files(n_files, stage, tmp_path):
    "As few as Python itself can start with."
    check_line(call(stage.words("train", tmp_path), {resource.RLIMIT_NOFILE: n_files}), "open files", "ulimit -n")


@pytest.fixture
def disk():
    "Mount a small disk at a folder, for whoever may."
    places = []

    def mount(place: Path, options: str) -> None:
        place.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("may not mount a disk")
        places.append(place)

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


WRITING = ["features", "predict", "audit", "synthesize"]


@pytest.mark.parametrize("command", WRITING)
def test_full_disk(command, stage, disk, tmp_path):
    "No room for the first file."
    disk(tmp_path / "disk", "size=4k")
    done = call(stage.words(command, tmp_path / "disk"))
    check_line(done, "No space left on device", "free the disk or choose another folder", str(tmp_path / "disk"))
    assert not list((tmp_path / "disk").rglob("*.part"))


@pytest.mark.parametrize("command", WRITING)
def test_read_only_disk(command, stage, disk, tmp_path):
    disk(tmp_path / "disk", "size=64m,ro")
    check_line(call(stage.words(command, tmp_path / "disk")), "choose another folder", str(tmp_path / "disk"))


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission is refused to root")
@pytest.mark.parametrize("command", WRITING)
def test_no_permission(command, stage, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    check_line(call(stage.words(command, tmp_path / "mine")), str(tmp_path / "mine"))


def test_links_to_nothing(stage, tmp_path):
    "A link to data, to a tile, to a list, to a slide, to a run, and as the name of a result; and one that leads to itself."
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    (tmp_path / "gone.tif").symlink_to(tmp_path / "nothing.tif")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "round.csv").symlink_to(tmp_path / "round.csv")
    gone, result = tmp_path / "gone", ["--out", tmp_path / "f.parquet"]
    for words, name in (
        (["features", gone, *result], "gone"),
        (["features", tmp_path / "gone.csv", *result], "gone.csv"),
        (["features", tmp_path / "round.csv", *result], "round.csv"),
        (["audit", tmp_path / "round"], "round"),
        (["slide", tmp_path / "gone.tif", "--model", stage.run], "gone.tif"),
        (["predict", gone, *result], "gone"),
        (["evaluate", tmp_path / "round"], "round"),
        (["synthesize", "--out", gone / "c", "--scale", 0.1, "--size", 64], "gone"),
        (["synthesize", "--out", tmp_path / "round", "--scale", 0.1, "--size", 64], "round"),
    ):
        done = call(words, cwd=tmp_path)
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and len(lines) == 1 and name in lines[0], (words, lines)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_is_full(stage, tmp_path):
    for words in (["--help"], ["--version"], stage.words("synthesize", tmp_path)):
        with open("/dev/full", "w") as full:
            done = call(words, stdout=full)
        check_line(done, "No space left on device")
        assert done.stderr.count("\n") == 1


def test_nobody_reads(stage, tmp_path):
    "As `| head`: the command ends without a word."
    read, write = os.pipe()
    os.close(read)
    done = call(stage.words("synthesize", tmp_path), stdout=write)
    os.close(write)
    assert done.returncode and not [line for line in done.stderr.splitlines() if "rror" in line]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(closed, stage, tmp_path):
    "No standard input, output or errors: the work is done all the same."

    def close():
        for stream in closed:
            os.close(stream)

    line = [sys.executable, "-m", "osteonb", *map(str, stage.words("features", tmp_path))]
    done = subprocess.run(line, preexec_fn=close, timeout=300)
    assert done.returncode == 0 and (tmp_path / "f.parquet").exists()


def test_no_home(stage, tmp_path):
    "No HOME, and one that cannot be written to, are no hindrance where a cache is named."
    words = stage.words("features", tmp_path)
    bare = {name: value for name, value in os.environ.items() if name not in ("HOME", "OSTEONB_CACHE", "XDG_CACHE_HOME")}
    line = [sys.executable, "-m", "osteonb", *map(str, words)]
    assert subprocess.run(line, env=bare, capture_output=True, timeout=300).returncode == 0
    no_cache = [word for word in words if word not in words[-2:]]
    done = call(no_cache, env=dict(HOME="/proc/nowhere", OSTEONB_CACHE="/proc/nowhere"))
    check_line(done, "/proc/nowhere")
