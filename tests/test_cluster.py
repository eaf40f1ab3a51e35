"The work of Dask clusters of two workers: the tables are those of one machine."

import os
import signal
import subprocess
import sys
import time

import joblib
import pandas as pd
from distributed import Client, LocalCluster

from osteonb.core.files import read_json, read_table
from osteonb.experiments.fixtures import small_run
from osteonb.slides.analysis import analyze_slides
from osteonb.synthetic.cohort import make_cohort
from osteonb.synthetic.slides import draw_slide

GRID = """
splits = ["tile"]
folds = 2
draws = 5
[base]
tile_size = 64
modality = "radiomics"
max_epochs = 2
min_epochs = 1
width = 16
[variants.chained]
[variants.flat]
head = "flat"
"""


def start_cluster():
    "Start two workers of one thread each."
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)


def start_command(*words):
    "Start `osteonb` with these words."
    words = [sys.executable, "-m", "osteonb", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end_command(command):
    "Wait for a command and return what it printed; its status is 0."
    printed, problems = command.communicate(timeout=300)
    assert command.returncode == 0, problems[-3000:]
    return printed


def kill_busy_worker(cluster, command):
    "Kill a worker once it has something to do."
    while command.poll() is None:
        for worker in cluster.workers.values():
            state = cluster.scheduler.workers.get(worker.worker_address)
            if state is not None and state.processing:
                os.kill(worker.pid, signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError(f"no worker was busy: {command.communicate()}")


def test_slides_on_a_cluster(tmp_path):
    "The tables are those of this machine alone, and the broken slide is listed."
    run = small_run()
    for seed in range(2):
        draw_slide(tmp_path / "slides" / f"s{seed}.tif", ratio=0.5, seed=seed, cells=8, size=64)
    (tmp_path / "slides" / "torn.tif").write_text("no slide")
    cache = tmp_path / "cache"
    here = analyze_slides(tmp_path / "slides", run, tmp_path / "here", cache_dir=cache, n_jobs=1)
    with start_cluster() as cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        there = analyze_slides(tmp_path / "slides", run, tmp_path / "there", cache_dir=cache)
    pd.testing.assert_frame_equal(here, there)
    assert here.reason.map(bool).tolist() == [False, False, True]
    assert "torn.tif" in here.reason["torn.tif"]
    one, other = (tmp_path / name / "s0.tif" / "slide.json" for name in ("here", "there"))
    assert read_json(one) == read_json(other)


def test_features_though_a_worker_is_killed(tmp_path):
    "`osteonb features --dask` writes the bytes that it writes without."
    data = make_cohort(tmp_path / "cohort", scale=0.5, size=256, n_jobs=1)
    common = ["features", data, "--tile-size", 256, "--masks", "tile,tissue", "--classes", "glcm,glrlm"]
    alone = [*common, "--out", tmp_path / "alone.parquet", "--cache", tmp_path / "one", "--jobs", 1]
    end_command(start_command(*alone))
    with start_cluster() as cluster:
        there = [*common, "--out", tmp_path / "there.parquet", "--cache", tmp_path / "two"]
        command = start_command(*there, "--dask", cluster.scheduler_address)
        kill_busy_worker(cluster, command)
        end_command(command)
    pd.testing.assert_frame_equal(*(read_table(tmp_path / f"{n}.parquet") for n in ("alone", "there")))


def test_slide_command_though_a_worker_is_killed(tmp_path):
    "`osteonb slide --dask` writes the tables that it writes without."
    run = small_run()
    for seed in range(4):
        draw_slide(tmp_path / "slides" / f"s{seed}.tif", ratio=0.5, seed=seed, cells=8, size=64)
    common = ["slide", tmp_path / "slides", "--model", run]
    end_command(start_command(*common, "--out", tmp_path / "alone", "--jobs", 1))
    with start_cluster() as cluster:
        words = [*common, "--out", tmp_path / "there", "--dask", cluster.scheduler_address]
        command = start_command(*words)
        kill_busy_worker(cluster, command)
        end_command(command)
    for name in ("slides.csv", "patients.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_experiment_though_a_worker_is_killed(tmp_path):
    "`osteonb experiment --dask` writes the tables that it writes without."
    data = make_cohort(tmp_path / "cohort", scale=0.25, size=64, n_jobs=1)
    (tmp_path / "grid.toml").write_text(GRID)
    common = ["experiment", tmp_path / "grid.toml", "--data", data, "--cache", tmp_path / "cache"]
    end_command(start_command(*common, "--out", tmp_path / "alone", "--jobs", 1))
    with start_cluster() as cluster:
        words = [*common, "--out", tmp_path / "there", "--dask", cluster.scheduler_address]
        command = start_command(*words)
        kill_busy_worker(cluster, command)
        end_command(command)
    tables = [path.name for path in (tmp_path / "alone").iterdir() if path.suffix in (".csv", ".parquet")]
    assert {"metrics.csv", "claims.csv"} <= set(tables)
    for name in tables:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
