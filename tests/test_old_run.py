"""A run folder of version 0.1 is read, predicts what it did, and an unfinished training of it is resumed."""
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from osteonb.core.config import configure
from osteonb.core.files import read_json, read_table
from osteonb.core.labels import PROBABILITY_COLUMNS
from osteonb.core.runs import Run
from osteonb.models.checkpoint import load_model, provenance_warnings, save_model
from osteonb.models.prediction import predict
from osteonb.models.training import fit

OLD = Path(__file__).parent / "old_run"  # radiomics only, 42 tiles of 64 pixels, 6 epochs
UNFINISHED = Path(__file__).parent / "old_run_unfinished"  # the same, interrupted after 3 epochs
NUMBERS = [*PROBABILITY_COLUMNS, "gate_image"]


@pytest.fixture
def run(tmp_path):
    "A copy of the old run folder."
    return Run(shutil.copytree(OLD, tmp_path / "run"))


def same_place() -> bool:
    "Whether torch computes here as it did where the fixture was made: other kernels round otherwise."
    made_with = read_json(OLD / "made_with.json")["versions"]["torch"]
    kernels = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.__version__.split("+")[0] == made_with and kernels


def predict_again(run):
    tiles, folds, features = run.load_tables()
    return predict(load_model(run), tiles[folds.part != "train"], features, folds)


def test_config_is_read(run):
    "Settings have new names and groups, and the same values."
    config = run.config
    assert config.replace() == config and config.preset == "quick"  # as it was called then
    assert config.flat() == configure(
        "plain", test_group="Case-904", tile_size=64, modality="radiomics", feature_classes=("firstorder",),
        masks=("tile",), n_features=4, width=4, pretrained_weights="none", max_epochs=6, min_epochs=6,
        mc_dropout_passes=2, lr=0.01,
    ).flat()
    assert run.file("scaler").name == "standardiser.json"
    assert len(run.history) == 6 and len(run.tiles) == 42 and run.excluded.empty


def test_predictions_are_the_same(run):
    "Two dropout passes give the old table: bit for bit with the same torch on such a processor."
    old, new = run.predictions, predict_again(run)
    pd.testing.assert_frame_equal(old.drop(columns=NUMBERS), new.drop(columns=NUMBERS))
    np.testing.assert_allclose(new[NUMBERS], old[NUMBERS], atol=1e-5)
    if same_place():
        assert new.equals(old)


def test_weights_and_scaler(run):
    "Tensors bear the names that they had; the header's entry `standardiser` is checked as `scaler` is."
    trained = load_model(run)
    assert set(trained.net.state_dict()) >= {"radiomics.1.weight", "heads.tumor.weight"}
    kept = read_json(run.path / "standardiser.json")
    assert trained.scaler.mean.to_dict() == kept["mean"]
    text = (run.path / "standardiser.json").read_text()
    (run.path / "standardiser.json").write_text(text.replace("169.268", "169.269"))
    with pytest.raises(ValueError, match="standardiser.json: not the numbers"):
        load_model(run)


def test_saved_again(run):
    "A model of an old run that is saved anew is read under the new names."
    before = predict_again(run)
    save_model(load_model(run), run)
    assert run.file("scaler").name == "scaler.json"
    assert predict_again(run).equals(before)


def test_only_versions_differ(run):
    "The tables' digests are computed as they were."
    assert not [text for text in provenance_warnings(run) if "not what the run was trained on" in text]


def test_unfinished_training_is_resumed(run, tmp_path):
    "Best score and history of the old checkpoint are taken up; the result is that of one training."
    folder = shutil.copytree(UNFINISHED, tmp_path / "unfinished")
    tiles, folds, features = run.load_tables()
    begun = read_table(folder / "history.csv").reset_index(drop="epoch" in read_table(folder / "history.csv"))
    resumed, history = fit(run.config, tiles, folds, features, folder)
    straight, whole = fit(run.config, tiles, folds, features)
    assert history.epoch.tolist() == list(range(6))
    np.testing.assert_allclose(history.valid_auc[:3], begun.valid_auc, rtol=1e-9)  # read, not computed
    np.testing.assert_allclose(history.train_loss[:3], begun.train_loss, rtol=1e-9)
    pd.testing.assert_frame_equal(history, whole, rtol=1e-2)
    for name, tensor in straight.net.state_dict().items():
        torch.testing.assert_close(resumed.net.state_dict()[name], tensor, rtol=0, atol=0.02)
    if same_place():
        assert history.equals(whole)
        assert all(torch.equal(v, resumed.net.state_dict()[k]) for k, v in straight.net.state_dict().items())
        assert all(torch.equal(v, load_model(run).net.state_dict()[k]) for k, v in resumed.net.state_dict().items())


def test_finished_training_is_not_repeated(run, tmp_path):
    "A training that ended before its model was saved gives its history from the old checkpoint."
    folder = shutil.copytree(UNFINISHED, tmp_path / "unfinished")
    tiles, folds, features = run.load_tables()
    three = run.config.replace(max_epochs=3, min_epochs=3)
    _, history = fit(three, tiles, folds, features, folder)
    np.testing.assert_allclose(history.train_loss, read_table(folder / "history.csv").train_loss, rtol=1e-9)
