"""Patients may be called NA, nan, 007, 1e5, True or =1+1: every table keeps them apart, from a list to a grid's report."""
import re

import pandas as pd
import pytest

from osteonb.core.files import read_table, write_table
from osteonb.data.tiles import read_tiles
from osteonb.experiments.grid_runs import run_grid
from osteonb.synthetic.fixtures import small_cohort

NAMES = ["NA", "nan", "007", "1e5", "True", "=1+1", "@x", "None"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    "A list of the small cohort's tiles in which the patients have these names, and slides and scans too."
    tiles, _ = read_tiles(small_cohort(), tile_size=64)
    names = dict(zip(tiles.patient.unique(), NAMES))
    assert len(names) > 3
    patient = tiles.patient.map(names)
    table = pd.DataFrame(dict(path=tiles.path, label=tiles.label, patient=patient, slide=patient))
    file = tmp_path_factory.mktemp("list") / "tiles.csv"
    table.to_csv(file, index=False)
    return file, sorted(names.values())


def test_a_list(listed):
    file, names = listed
    tiles, excluded = read_tiles(file, tile_size=64)
    assert sorted(tiles.patient.unique()) == names and not len(excluded)


def test_a_grid(listed, tmp_path):
    "Its tables and its page name every patient, and no cell of a table would run in a spreadsheet."
    file, names = listed
    base = dict(tile_size=64, modality="radiomics", estimator="majority", feature_classes=["firstorder"])
    variants = {"007": {}, "=1+1": dict(estimator="logistic")}
    grid = dict(seeds=[0], folds=2, base=base, reference="007", variants=variants)
    page = run_grid(tmp_path / "grid", grid, file, tmp_path / "cache", 1)
    held_out = read_table(page.parent / "patients.csv")
    assert sorted(held_out.patient.unique()) == names
    assert list(read_table(page.parent / "variants.csv").index) == list(variants)
    predictions = read_table(page.parent / "predictions.parquet")
    assert set(predictions.variant) == set(variants) and set(predictions.patient) == set(names)
    for table in page.parent.rglob("*.csv"):
        cells = re.findall(r'(?:^|,)"?([=+@\t]|-(?![\d.]))', table.read_text(), flags=re.MULTILINE)
        assert not cells, table
        assert read_table(table).shape == read_table(table).shape
    shown = page.read_text()
    assert all(f">{name}<" in shown for name in variants)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table(suffix, tmp_path):
    words = [*NAMES, "-1", "+1", "a\rb", "'=x", "O'Hara", "'"]
    table = pd.DataFrame(dict(patient=words, value=words, n=range(len(words))), pd.Index(words, name="slide"))
    write_table(table, tmp_path / f"t{suffix}")
    pd.testing.assert_frame_equal(read_table(tmp_path / f"t{suffix}"), table)
