"""Every command stops at any moment within two seconds, in a line, with the shell's status, and leaves no process, no shared memory and no half-written file.

The moments are drawn with a seed, from the first at which the command hears signals, while it is still loading libraries, to seconds of work. On a busy machine two seconds are
stretched by the number of processes that wait for each core.
"""
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from osteonb.experiments.fixtures import small_run
from osteonb.synthetic.cohort import make_cohort
from osteonb.synthetic.slides import draw_slide

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
LIMIT_S = 2.0
SETTINGS = "tile_size=64 image_size=32 max_epochs=100000 min_epochs=100000 width=16 gate_width=8 pretrained_weights=none backbone=test_efficientnet"
GRID = """
name = "A small grid"
splits = ["tile"]
folds = 4
draws = 5
[base]
tile_size = 64
image_size = 32
max_epochs = 2000
min_epochs = 2000
pretrained_weights = "none"
backbone = "test_efficientnet"
[variants.hierarchical]
[variants.flat]
head = "flat"
"""


class Stage:
    "What commands work on, and a server that accepts connections and says nothing."

    def __init__(self, root: Path):
        self.cohort = make_cohort(root / "cohort", scale=0.25, size=64, n_jobs=1)
        self.large = make_cohort(root / "large", scale=0.02, size=512, n_jobs=1)
        self.run = small_run()
        self.slides = root / "slides"
        for seed in range(2):
            draw_slide(self.slides / f"s{seed}.tif", ratio=0.5, seed=seed, cells=12, size=64)
        self.grid = root / "grid.toml"
        self.grid.write_text(GRID)
        self.server = socket.create_server(("127.0.0.1", 0))

    def words(self, command: str, folder: Path) -> list:
        "Return the command line of a command that works in a folder."
        if command == "evaluate":  # it writes into the run
            shutil.copytree(self.run, folder / "copy")
        cache = ["--cache", folder / "cache"]
        train = ["--data", self.cohort, "--out", folder / "run", "--test-group", "Case-904+P905", "--set", SETTINGS, *cache]
        slide = ["--model", self.run, "--out", folder / "out", *cache]
        return {
            "run": ["run", *train],
            "train": ["train", *train, "--set", "modality=radiomics"],
            "train, trunk": ["train", *train, "--set", "freeze_backbone=False augment=True"],
            "synthesize": ["synthesize", "--out", folder / "new", "--size", 512, "--jobs", 2],
            "download": ["download", folder / "release"],
            "features": ["features", self.large, "--tile-size", 512, "--out", folder / "f.parquet", "--jobs", 2, *cache],
            "features, reference": ["features", self.large, "--tile-size", 512, "--out", folder / "f.csv", "--engine", "pyradiomics", "--masks", "tile", "--classes", "firstorder,glcm", "--jobs", 2, *cache],
            "predict": ["predict", self.run, "--data", self.cohort, "--out", folder / "p.parquet", *cache],
            "evaluate": ["evaluate", folder / "copy"],
            "audit": ["audit", self.large, "--tile-size", 512, "--out", folder / "audit.html", *cache],
            "experiment": ["experiment", self.grid, "--data", self.cohort, "--out", folder / "grid", "--jobs", 2, *cache],
            "slide": ["slide", self.slides / "s0.tif", *slide],
            "slides": ["slide", self.slides, "--jobs", 2, *slide],
            "explain": ["explain", self.run, "--data", self.cohort, "--out", folder / "explained", "--jobs", 2, *cache],
            "export": ["export", self.run, "--out", folder / "model.onnx"],
            "benchmark": ["benchmark", "--rounds", 20],
        }[command]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage(tmp_path_factory.mktemp("stage"))
    yield made
    made.server.close()


def hear_signals():
    "Take signals as in a terminal: a shell lets what it starts in the background ignore Ctrl-C."
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


class Command:
    "A command in a session of its own; what it starts is known by a mark in its environment."

    def __init__(self, words: list, folder: Path, port: int):
        self.mark = uuid.uuid4().hex
        self.folder = folder
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.said = folder / "said.txt"
        proxy = f"http://127.0.0.1:{port}"
        environment = os.environ | dict(MARK=self.mark, TMPDIR=str(folder / "tmp"), https_proxy=proxy, OMP_NUM_THREADS="1")
        with open(self.said, "w") as errors:
            line = [sys.executable, "-m", "osteonb", *map(str, words)]
            self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True, preexec_fn=hear_signals)

    def processes(self) -> list[int]:
        "Return the command's processes that run."
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                pass  # it has ended, or belongs to another user
        return found

    def wait_until_it_hears(self) -> None:
        "Wait until the command has started its job: it takes signals by then."
        end = time.monotonic() + 60
        while len(self.processes()) < 2 and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def send(self, number: int, way: str) -> float:
        "Send a signal, and return the seconds until the command has ended."
        begun = time.monotonic()
        for _ in range(2 if way == "twice" else 1):
            if way == "group":
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            time.sleep(0.1 if way == "twice" else 0)
        self.process.wait(60)
        return time.monotonic() - begun


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def limit() -> float:
    "Return two seconds, longer where more processes wait than there are cores."
    return LIMIT_S * max(1.0, os.getloadavg()[0] / os.cpu_count())


def stop(words: list, stage: Stage, folder: Path, moment: float, number: int, way: str) -> float | None:
    "Stop a command after some seconds and look at what is left; None where it had ended before."
    before = shared_memory()
    command = Command(words, folder, stage.server.getsockname()[1])
    command.wait_until_it_hears()
    try:
        command.process.wait(moment)
        may_be_one = words[0] in ("audit", "download")  # where it finds something, or nobody answers
        assert command.process.returncode in ((0, 1) if may_be_one else (0,)), command.said.read_text()
        return None
    except subprocess.TimeoutExpired:
        pass
    members = command.processes()
    n_before = len(command.said.read_text().splitlines())
    seconds = command.send(number, way)
    end = time.monotonic() + limit() - min(seconds, limit())
    while command.processes() and time.monotonic() < end:
        time.sleep(0.02)
    left = command.processes()
    for process in left:
        os.kill(process, signal.SIGKILL)
    lines = command.said.read_text().splitlines()
    status = command.process.returncode
    assert status == 128 + number, (status, lines)
    assert lines[-1:] == [line for line in lines if line.startswith("osteonb: stopped")], lines
    assert len(lines) <= n_before + 1 and signal.Signals(number).name in lines[-1], lines[n_before:]
    assert not left
    assert not [name for name in shared_memory() - before if any(str(member) in name for member in members)]
    assert not list(folder.rglob("*.part"))
    assert not list((folder / "tmp").iterdir())
    return seconds


COMMANDS = ["run", "train", "train, trunk", "synthesize", "download", "features", "features, reference", "predict", "evaluate", "audit"]
COMMANDS += ["experiment", "slide", "slides", "explain", "export", "benchmark", "experiment", "slides", "features", "synthesize"]
WAYS = ["once", "group", "twice", "once"]


@pytest.mark.parametrize("n, name", list(enumerate(COMMANDS)))
def test_a_command_stops(n, name, stage, tmp_path):
    "Twenty signals: SIGTERM and Ctrl-C in turn; to the one process, to all of its group as a terminal does, and twice."
    chance = random.Random(n)
    moment = (n * 7 % 20 + chance.random()) * 0.4
    number = (signal.SIGTERM, signal.SIGINT)[(n + n // 10) % 2]
    way = WAYS[(n + n // 4) % 4]
    for trial in range(8):
        folder = tmp_path / str(trial)
        seconds = stop(stage.words(name, folder), stage, folder, moment, number, way)
        if seconds is not None:
            break
        moment /= 2  # it was faster than that
    assert seconds is not None and seconds < limit()
    print(f"{name}: {signal.Signals(number).name} {way} after {moment:.2f} s: {seconds:.2f} s")
