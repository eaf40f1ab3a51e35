"""The same settings on the same tiles give the same bytes: with one thread and two, one job and two, another hash seed, in another folder."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from osteonb.core.files import read_table
from osteonb.synthetic.cohort import make_cohort

# wide enough for libraries to divide its products between threads; with many gray levels, whose eigenvalues they divide too
JOB = """
import sys
from pathlib import Path

from osteonb.core.config import configure
from osteonb.experiments.grid_runs import run_grid
from osteonb.experiments.pipeline import evaluate_run, predict_run, predict_tiles, train_run
from osteonb.core.files import write_table

folder, n_jobs = Path(sys.argv[1]), int(sys.argv[2])
data, cache = folder / "cohort", folder / "cache"
settings = dict(
    test_group="Case-904+P905", tile_size=64, image_size=64, patch_size=32, pooling="mean_std", pretrained_weights="none",
    feature_classes=("firstorder", "glcm"), masks=("tile",), bin_width=1, max_epochs=4, min_epochs=4, mc_dropout_passes=2,
)

if __name__ == "__main__":
    for name, own in dict(
        network=dict(augment=True, n_members=2), logistic=dict(estimator="logistic", pooling="mean"), svm=dict(estimator="svm", modality="radiomics")
    ).items():
        train_run(folder / name, configure("plain", **settings | own), data, cache, n_jobs)
        predict_run(folder / name, cache)
    evaluate_run(folder / "network")
    write_table(predict_tiles(folder / "network", data, cache, n_jobs), folder / "predicted.parquet")
    run_grid(folder / "grid", folder / "grid.toml", data, cache, n_jobs)
"""
GRID = """
name = "A small grid"
splits = ["tile"]
folds = 2
draws = 20
[base]
modality = "radiomics"
tile_size = 64
feature_classes = ["firstorder"]
masks = ["tile"]
max_epochs = 3
min_epochs = 3
[variants.hierarchical]
[variants.flat]
head = "flat"
"""
OF_THE_PLACE = ("tiles.parquet", "inputs.json")  # paths of tiles, and what computed a step


def start(folder: Path, n_threads: int, n_jobs: int, hash_seed: int) -> subprocess.Popen:
    "Start the job in a folder of its own."
    (folder / "job.py").write_text(JOB)
    (folder / "grid.toml").write_text(GRID)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = os.environ | dict.fromkeys(names, str(n_threads)) | dict(PYTHONHASHSEED=str(hash_seed))
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "job.py", folder, str(n_jobs)]
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results_of(folder: Path) -> dict[str, bytes]:
    "Return the content of every result below a folder, by its path there."
    paths = [path for name in ("network", "logistic", "svm", "grid") for path in sorted((folder / name).rglob("*"))]
    kept = [path for path in paths if path.suffix in (".parquet", ".json", ".csv", ".safetensors", ".html") and path.name not in OF_THE_PLACE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*kept, folder / "predicted.parquet"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    "Do the job twice, with another number of threads and jobs, another hash seed and another folder."
    first = tmp_path_factory.mktemp("first")
    make_cohort(first / "cohort", scale=0.25, size=64)
    second = tmp_path_factory.mktemp("second") / "further down"
    shutil.copytree(first, second)
    jobs = [start(first, n_threads=1, n_jobs=2, hash_seed=0), start(second, n_threads=2, n_jobs=1, hash_seed=1)]
    outputs = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)
    return [first, second]


def test_equal_bytes(folders):
    "Tables, metrics, histories, weights and reports are the same, byte for byte."
    one, other = map(results_of, folders)
    for name in ("network/predictions.parquet", "network/metrics.json", "network/model.safetensors", "svm/predictions.parquet"):
        assert name in one
    assert any(name.startswith("network/history.") for name in one)
    assert sum(name.startswith("grid/") and name.endswith("predictions.parquet") for name in one) >= 4
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []


def test_equal_tiles(folders):
    "The tables of tiles differ in the places of the files alone."
    one, other = (read_table(folder / "network" / "tiles.parquet") for folder in folders)
    pd.testing.assert_frame_equal(one.drop(columns="path"), other.drop(columns="path"))
    assert (one.path != other.path).all()
