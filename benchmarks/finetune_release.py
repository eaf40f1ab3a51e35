#!/usr/bin/env python
"""Fine-tune EfficientNet-Lite0 and Lite2 on the whole release, with each group held out, and time it.

    python benchmarks/finetune_release.py --data path/to/release --out tables
    python benchmarks/finetune_release.py --small               a minute on a CPU, on synthetic tiles

Inception V3 from random weights, with the recipe's settings, is the control. On a GPU all of it takes at most
`--minutes`: the trainings are done in order of their importance, and those for which no time is left are named.
The first table has a row for each model, the second the tiles per second of embedding, training and predicting
beside the bare network on the same device. `--out` writes both as CSV, the first before the second is measured,
and each with the device that it was computed on.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from osteonb.core.cache import default_cache_dir
from osteonb.core.config import Config, configure
from osteonb.core.errors import InputError
from osteonb.data import leave_one_group_out, read_tiles
from osteonb.data.overlaps import assign_groups
from osteonb.evaluation import evaluate
from osteonb.evaluation.decisions import _decide_in_order
from osteonb.evaluation.predictions import _average_seeds
from osteonb.experiments import run_benchmark
from osteonb.experiments.pipeline import compute_run_features
from osteonb.experiments.throughput import _device_name
from osteonb.models import fit, predict
from osteonb.synthetic import make_cohort

# of all models that are fine-tuned
FINE_TUNED = dict(preset="best", head="hierarchical")
# the recipe, from random weights; as many epochs as it trains at least
CONTROL = dict(
    preset="paper",
    pretrained_weights="none",
    mixed_label="non-viable",
    valid_fraction=0,
    keep_epoch="last",
    precision="bf16",
    max_epochs=60,
)
LITE0 = "tf_efficientnet_lite0"
LITE2 = "tf_efficientnet_lite2"
# title, settings and seed of each training of three groups, the most important first
MODELS = [
    ("Lite0, hierarchical", FINE_TUNED | dict(backbone=LITE0), 0),
    ("Lite2, hierarchical", FINE_TUNED | dict(backbone=LITE2), 0),
    ("Lite0, flat", FINE_TUNED | dict(backbone=LITE0, head="flat"), 0),
    ("Lite2, flat", FINE_TUNED | dict(backbone=LITE2, head="flat"), 0),
    ("Inception V3, random weights, the recipe", CONTROL, 0),
    ("Lite0, image alone", FINE_TUNED | dict(backbone=LITE0, modality="image", side_loss=0.0), 0),
    *[("Lite2, hierarchical", FINE_TUNED | dict(backbone=LITE2), seed) for seed in (1, 2)],
    *[("Lite0, hierarchical", FINE_TUNED | dict(backbone=LITE0), seed) for seed in (1, 2)],
]
# `--small`: the same path through the code, on synthetic tiles of 128 pixels
SMALL = dict(
    tile_size=128, crop_size=64, max_epochs=1, pretrained_weights="none", batch_size=8, precision="fp32"
)
SMALL_MODELS = [
    ("a small network, hierarchical", FINE_TUNED | SMALL | dict(backbone="test_efficientnet"), 0),
    ("a small network, flat", FINE_TUNED | SMALL | dict(backbone="test_efficientnet", head="flat"), 0),
]


@dataclass
class Cohort:
    "Hold the tiles of all groups, which of them are mixed, and their features."

    tiles: pd.DataFrame  # with scans and groups; mixed tiles count as non-viable
    mixed: pd.Index
    features: dict[tuple, pd.DataFrame]  # by settings of the radiomics
    cache_dir: Path

    @classmethod
    def read(
        cls,
        data: Path,  # a release
        tile_size: int,  # pixels
        cache_dir: Path,
    ) -> "Cohort":
        "Read a release and find its scans and groups."
        tiles, _ = read_tiles(data, "non-viable", tile_size)
        unmixed, _ = read_tiles(data, "drop", tile_size, images=False)
        tiles = assign_groups(tiles, cache_dir)
        return cls(tiles, tiles.index.difference(unmixed.index), {}, cache_dir)

    def measure(
        self,
        config: Config,  # its group `radiomics` is read
    ) -> pd.DataFrame | None:  # None for images alone
        "Compute the features that a configuration needs, once."
        if config.model.modality == "image":
            return None
        key = (config.radiomics.masks, config.radiomics.feature_classes)
        if key not in self.features:
            self.features[key] = compute_run_features(config, self.tiles, self.cache_dir)[0]
        return self.features[key]


def train_fold(
    config: Config,
    cohort: Cohort,
    folds: pd.DataFrame,  # of one held-out group
) -> tuple[pd.DataFrame, dict[str, float]]:  # predictions of the group; seconds and tiles
    "Fine-tune on the other groups without their mixed tiles, and predict the group."
    folds = folds[(folds.part == "test") | ~folds.index.isin(cohort.mixed)]
    tiles = cohort.tiles.loc[folds.index]
    test = tiles[folds.part == "test"]
    features = cohort.measure(config)
    start = time.perf_counter()
    trained, _ = fit(config, tiles, folds, features, None, cohort.cache_dir)
    middle = time.perf_counter()
    predictions = predict(trained, test, features, folds, cohort.cache_dir)
    end = time.perf_counter()
    n_seen = int((folds.part == "train").sum()) * config.training.max_epochs
    spent = dict(fit_s=middle - start, seen=n_seen, predict_s=end - middle, predicted=len(test))
    return predictions.assign(fold=folds.fold.iloc[0]), spent


def train_model(
    config: Config,
    cohort: Cohort,
) -> tuple[pd.DataFrame, dict[str, float]]:  # every tile once, and the sums of what was spent
    "Hold out each group once."
    folds = leave_one_group_out(cohort.tiles, config.data.valid_fraction, 0)
    predicted = []
    spent = []
    for _, own in folds.groupby("fold"):
        predictions, used = train_fold(config, cohort, own)
        predicted.append(predictions)
        spent.append(used)
    return pd.concat(predicted), pd.DataFrame(spent).sum().to_dict()


def accuracy(
    rows: pd.DataFrame,  # predictions
) -> float:  # `NaN` without rows
    "Return the share of right decisions: tumor or not at ½, then the likelier kind of tumor."
    return (_decide_in_order(rows, 0.5, 0.5) == rows.label).mean() if len(rows) else float("nan")


def area(
    rows: pd.DataFrame,  # predictions
    scope: str,  # `classes` or a task
) -> float:  # `NaN` where no group has both kinds
    "Return the AUC within groups."
    if not len(rows):
        return float("nan")
    return evaluate(rows).set_index(["scope", "metric"]).value[scope, "roc_auc_within"]


def summarize_model(
    predictions: pd.DataFrame,  # every tile once, seeds averaged
    cohort: Cohort,
) -> dict[str, float]:
    "Return the figures of a model: over all groups, of each group, and of Case 4 as the paper tests."
    unmixed = predictions[~predictions.index.isin(cohort.mixed)]
    row = {"accuracy": accuracy(unmixed), "AUC": area(unmixed, "classes")}
    row["AUC tumor"] = area(unmixed, "tumor")
    for group, own in unmixed.groupby("group"):
        row[f"{group}: accuracy"] = accuracy(own)
    case4 = predictions[predictions.patient == "Case-4"]
    for rows in (case4, case4[~case4.index.isin(cohort.mixed)]):
        if len(rows):
            row[f"Case-4, {len(rows)} tiles: accuracy"] = accuracy(rows)
            row[f"Case-4, {len(rows)} tiles: AUC"] = area(rows, "classes")
    return row


def run_models(
    models: list[tuple],  # title, settings, seed
    cohort: Cohort,
    changes: dict,  # settings of `--set`
    deadline: float,  # on the clock of `time.perf_counter`
) -> pd.DataFrame:  # a row for each title, its seeds averaged
    "Train the models for which there is time, and print each row when it is known."
    predicted = {}
    spent = {}
    longest = 0.0  # seconds of a model so far
    for title, settings, seed in models:
        start = time.perf_counter()
        if predicted and start + 1.2 * longest > deadline:
            print(f"no time left: {title}, seed {seed}", flush=True)
            continue
        config = configure(**settings | changes | dict(seed=seed))
        predictions, used = train_model(config, cohort)
        predicted.setdefault(title, []).append(predictions)
        spent.setdefault(title, []).append(used)
        longest = max(longest, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        row = summarize_model(predictions, cohort)
        figures = "; ".join(f"{name} {value:.3f}" for name, value in row.items())
        print(f"{title}, seed {seed}, {seconds:.0f} s: {figures}", flush=True)
    return table_of_models(cohort, predicted, spent)


def table_of_models(
    cohort: Cohort,
    predicted: dict[str, list[pd.DataFrame]],  # title -> predictions of each seed
    spent: dict[str, list[dict]],  # title -> what each seed took
) -> pd.DataFrame:
    "Average the seeds of each model, and add how fast it was."
    rows = {}
    for title, tables in predicted.items():
        averaged = _average_seeds(pd.concat(tables))
        sums = pd.DataFrame(spent[title]).sum()
        row = dict(seeds=len(tables), **summarize_model(averaged, cohort))
        row["trained tiles per second"] = sums.seen / sums.fit_s
        row["predicted tiles per second"] = sums.predicted / sums.predict_s
        rows[title] = row
    return pd.DataFrame(rows).T.rename_axis("model")


def measure_throughput(
    cohort: Cohort,
    settings: list[dict],  # backbone and image size
    n: int,  # tiles for each step
    folder: Path,  # empty
) -> pd.DataFrame:  # a row for each backbone, size, step and way
    "Time embedding, training and predicting beside the bare network, and print each step when it is done."
    logging.basicConfig(format="%(message)s")
    logging.getLogger("osteonb").setLevel("INFO")
    tables = []
    for number, own in enumerate(settings):
        print(", ".join(f"{name} {value}" for name, value in own.items()), flush=True)
        config = configure("plain", pretrained_weights="none", **own)
        steps = ("embed", "train", "predict")
        table = run_benchmark(config, cohort.tiles, folder / str(number), n, steps)
        tables.append(table.reset_index().assign(**own))
    found = pd.concat(tables, ignore_index=True)
    return found.set_index(["backbone", "image_size", "step", "way"])


def write(
    table: pd.DataFrame,
    folder: Path | None,  # of `--out`
    name: str,  # of the file
) -> None:
    "Write a table with the device that it was computed on, where a folder is given."
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        table.assign(device=_device_name()).to_csv(folder / name)


def read_changes(
    texts: list[str],  # NAME=VALUE
) -> dict[str, int | float | bool | str]:
    "Read settings from the command line."
    changes = {}
    for text in texts:
        name, _, value = text.partition("=")
        for kind in (int, float):
            try:
                value = kind(value)
                break
            except ValueError:
                continue
        changes[name] = {"true": True, "false": False}.get(value, value)
    return changes


def parse_arguments() -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the release, or in $OSTEONB_DATA")
    parser.add_argument("--out", type=Path, help="folder for finetuned.csv and throughput.csv")
    parser.add_argument("--cache", type=Path, help="folder of cached pixels and features")
    parser.add_argument("--small", action="store_true", help="synthetic tiles, a minute on a CPU")
    parser.add_argument("--minutes", type=float, default=8, help="when to stop starting trainings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting")
    return parser.parse_args()


def main() -> int:
    "Train, time, print and write."
    start = time.perf_counter()
    arguments = parse_arguments()
    scratch = Path(tempfile.mkdtemp())
    cache_dir = arguments.cache or default_cache_dir()
    if arguments.small:
        data = make_cohort(cache_dir / "synthetic-128-small", scale=0.25, size=128)
        models, sizes, n = SMALL_MODELS, [dict(backbone="test_efficientnet", image_size=64)], 16
    else:
        root = Path(os.environ.get("OSTEONB_DATA", "."))
        data = arguments.data or root / "tcia_osteosarcoma_release"
        models, n = MODELS, 128
        sizes = [dict(backbone=name, image_size=512, precision="bf16") for name in (LITE0, LITE2)]
    changes = read_changes(arguments.set)
    try:
        cohort = Cohort.read(data, 128 if arguments.small else 1024, cache_dir)
        seconds = time.perf_counter() - start
        print(f"{_device_name()}: {len(cohort.tiles)} tiles read in {seconds:.0f} s", flush=True)
        # the throughput has a minute of its own
        deadline = start + 60 * (arguments.minutes - 1)
        figures = run_models(models, cohort, changes, deadline)
        print(figures.T.round(3).to_string(), flush=True)
        write(figures.round(4), arguments.out, "finetuned.csv")
        throughput = measure_throughput(cohort, sizes, n, scratch)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(throughput.round(2).to_string())
    write(throughput.round(3), arguments.out, "throughput.csv")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
