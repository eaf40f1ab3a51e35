"A folder of slides on a Dask cluster, in which one slide is broken."
import joblib
import pandas as pd
from distributed import Client, LocalCluster

from osteonb.core.files import read_json
from osteonb.experiments.fixtures import small_run
from osteonb.slides.analysis import analyze_slides
from osteonb.synthetic.slides import draw_slide


def test_slides_on_a_cluster(tmp_path):
    "The tables are those of this machine alone, and the broken slide is listed."
    run = small_run()
    for seed in range(2):
        draw_slide(tmp_path / "slides" / f"s{seed}.tif", ratio=0.5, seed=seed, cells=8, size=64)
    (tmp_path / "slides" / "torn.tif").write_text("no slide")
    cache = tmp_path / "cache"
    here = analyze_slides(tmp_path / "slides", run, tmp_path / "here", cache_dir=cache, n_jobs=1)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        there = analyze_slides(tmp_path / "slides", run, tmp_path / "there", cache_dir=cache)
    pd.testing.assert_frame_equal(here, there)
    assert here.reason.map(bool).tolist() == [False, False, True]
    assert "torn.tif" in here.reason["torn.tif"]
    one, other = (tmp_path / name / "s0.tif" / "slide.json" for name in ("here", "there"))
    assert read_json(one) == read_json(other)
