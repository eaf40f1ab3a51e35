"A folder of slides on a Dask cluster, in which one slide is broken."
import joblib
import pandas as pd
from distributed import Client, LocalCluster

from osteonb.core.config import configure; from osteonb.core.files import read_json
from osteonb.experiments.pipeline import train_run
from osteonb.slides.analysis import analyze_slides; from osteonb.synthetic.slides import draw_slide
from osteonb.synthetic.cohort import make_cohort


def test_slides_on_a_cluster(tmp_path):
    "The tables that this machine gives alone, and the broken one listed."
    data = make_cohort(tmp_path/"cohort", scale=.25, size=64, n_jobs=1)
    run = train_run(tmp_path/"run", configure(test_patient="Case-904", tile_size=64, image_size=32, max_epochs=2, min_epochs=1, width=16, gate_width=8, pretrained_weights="none", backbone="test_efficientnet"), data, tmp_path/"cache", 1)
    for i in range(2): draw_slide(tmp_path/"slides"/f"s{i}.tif", ratio=.5, seed=i, cells=8, size=64)
    (tmp_path/"slides"/"torn.tif").write_text("no slide")
    here = analyze_slides(tmp_path/"slides", run, tmp_path/"here", cache_dir=tmp_path/"cache", n_jobs=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster), joblib.parallel_config(backend="dask"):
        there = analyze_slides(tmp_path/"slides", run, tmp_path/"there", cache_dir=tmp_path/"cache")
    pd.testing.assert_frame_equal(here, there)
    assert here.reason.map(bool).tolist() == [False, False, True] and "torn.tif" in here.reason["torn.tif"]
    assert read_json(tmp_path/"here"/"s0.tif"/"slide.json") == read_json(tmp_path/"there"/"s0.tif"/"slide.json")
