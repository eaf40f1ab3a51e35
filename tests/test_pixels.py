"""A result belongs to the bytes that were decoded, and a training tile is recognized by its pixels."""
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from osteonb.core.errors import InputError
from osteonb.core.runs import Run
from osteonb.experiments.fixtures import small_run
from osteonb.experiments.pipeline import compute_run_features, predict_run, predict_tiles

CHANGED = "changed since the table of tiles was made"


@pytest.fixture
def honest(tmp_path):
    "A run in a folder of its own, with two of its test tiles."
    run = Run(shutil.copytree(small_run(), tmp_path / "honest"))
    test = run.folds.index[run.folds.part == "test"]
    return run, test[:2].tolist()


@pytest.fixture
def hostile(honest, tmp_path):
    "The same run, whose table names two tiles' files the wrong way round."
    run, (a, b) = honest
    edited = Run(shutil.copytree(run.path, tmp_path / "hostile"))
    tiles = run.tiles
    tiles.loc[[a, b], "path"] = tiles.path[[b, a]].to_numpy()
    edited.write("tiles", tiles)
    return edited


def quietly(call, *arguments):
    "Call without warnings of undefined features."
    with warnings.catch_warnings(action="ignore"):
        return call(*arguments)


def test_an_edited_run_folder_does_not_poison_the_cache(honest, hostile, tmp_path):
    run, _ = honest
    expected = quietly(predict_run, run, tmp_path / "clean")
    for _ in range(2):
        with pytest.raises(InputError, match=CHANGED):
            quietly(predict_run, hostile, tmp_path / "shared")
    with pytest.raises(InputError, match=CHANGED):
        quietly(compute_run_features, run.config, hostile.tiles, tmp_path / "shared", 2)
    pd.testing.assert_frame_equal(quietly(predict_run, run, tmp_path / "shared"), expected)
    features, _ = quietly(compute_run_features, run.config, run.tiles, tmp_path / "shared", 2)
    pd.testing.assert_frame_equal(features, run.features, check_names=False)


def test_maps_are_of_the_image_that_was_predicted(honest, tmp_path):
    pytest.importorskip("captum")
    from osteonb.explain.report import explain_tiles

    run, (a, b) = honest
    own = shutil.copytree(Path(run.tiles.path[a]).parents[2], tmp_path / "data")
    moved = run.tiles.path.map(lambda path: str(own.joinpath(*Path(path).parts[-3:])))
    run.write("tiles", run.tiles.assign(path=moved))
    quietly(predict_run, run, tmp_path / "cache")
    shutil.copy(moved[b], moved[a])  # after its embedding was stored
    with pytest.raises(InputError, match=CHANGED):
        quietly(explain_tiles, run, None, tmp_path / "pages", tmp_path / "cache", 1)


@pytest.mark.parametrize("listed", [True, False])
def test_training_tiles_are_known_by_their_pixels(honest, tmp_path, listed):
    run, _ = honest
    chosen = pd.concat([run.folds[run.folds.part == part].head(3) for part in ("train", "valid", "test")])
    folder = tmp_path / "others"
    folder.mkdir()
    rows = []
    for number, tile in enumerate(chosen.index):
        file = folder / f"{number:02}.png"
        Image.open(run.tiles.path[tile]).save(file)
        rows.append(dict(tile=f"own {number}.png", path=file.name, label="viable", patient=f"A{number}", slide=f"S{number}"))
    if listed:
        pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    data = folder / "list.csv" if listed else folder
    found = quietly(predict_tiles, run, data, tmp_path / "cache", 1)
    assert found.part.tolist() == chosen.part.tolist()


def test_a_known_name_with_other_pixels_is_new(honest, tmp_path):
    run, _ = honest
    tile = run.folds.index[run.folds.part == "train"][0]
    pixels = Image.open(run.tiles.path[tile]).transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "turned").mkdir()
    pixels.save(tmp_path / "turned" / f"{tile}.png")
    found = quietly(predict_tiles, run, tmp_path / "turned", tmp_path / "cache", 1)
    assert found.part.tolist() == ["new"]


def test_a_run_of_before_knows_its_files_under_any_name(honest, tmp_path):
    run, _ = honest
    run.write("tiles", run.tiles.drop(columns="pixels", errors="ignore"))
    tile = run.folds.index[run.folds.part == "train"][0]
    (tmp_path / "renamed").mkdir()
    shutil.copy(run.tiles.path[tile], tmp_path / "renamed" / "another.jpg")
    found = quietly(predict_tiles, run, tmp_path / "renamed", tmp_path / "cache", 1)
    assert found.part.tolist() == ["train"]
