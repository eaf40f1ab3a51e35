#!/usr/bin/env python
"""Compare our radiomics with PyRadiomics and, where it is installed, with flash-radiomics.

    python benchmarks/compare_radiomics.py                     three synthetic tiles of 1024 pixels
    python benchmarks/compare_radiomics.py tile.jpg other.jpg  your tiles

Every implementation measures the same arrays, on one thread of one process. For each mask and each
set of features the script prints milliseconds per tile, the ratio to our time, and the largest
relative difference from PyRadiomics.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from osteonb.core import InputError
from osteonb.data.images import read_tile
from osteonb.radiomics import FEATURES, channels_and_masks, compute_features
from osteonb.radiomics.engines import _feature_differences
from osteonb.synthetic import draw_tile

try:
    import flash_radiomics
except ImportError:
    flash_radiomics = None

MASKS = ("tile", "tissue", "nuclei")
TEXTURE_CLASSES = ("glcm", "glrlm", "glszm", "gldm", "ngtdm")
PAPER_CLASSES = ("firstorder", "shape2D")
FEATURE_SETS = {"29 features": PAPER_CLASSES, "75 textures": TEXTURE_CLASSES}
BIN_WIDTH = 5  # gray levels
SYNTHETIC_TILES = {
    "Case 901 A3-8844-18245": "Viable",
    "Case 904 C11-5000-7000": "Non-Viable-Tumor",
    "Case 948 B2-1024-2048": "Non-Tumor",
}


def measure_with_flash(
    values: np.ndarray,  # (H, W), uint8, one channel
    mask: np.ndarray,  # (H, W), bool
    feature_classes: tuple,  # of `FEATURES`
) -> dict[str, float]:  # `<class>_<Feature>` -> value
    "Return the features of flash-radiomics, with the settings of PyRadiomics."
    engine = flash_radiomics.RadiomicsFeatureExtractor(
        binWidth=BIN_WIDTH, force2D=True, additionalInfo=False
    )
    engine.disableAllFeatures()
    engine.enableFeaturesByName(**{name: list(FEATURES[name]) for name in feature_classes})
    arrays = (values.astype(np.int32), mask.astype(np.uint8))
    result = engine.execute(*[sitk.GetImageFromArray(array[None]) for array in arrays])
    features = {}
    for name in feature_classes:
        for feature in FEATURES[name]:
            features[f"{name}_{feature}"] = float(result[f"original_{name}_{feature}"])
    return features


def find_implementations() -> dict[str, Callable]:  # name -> (values, mask, classes) to features
    "Return the implementations that are installed, PyRadiomics first."
    implementations = {
        "PyRadiomics": partial(compute_features, bin_width=BIN_WIDTH, engine="pyradiomics"),
        "osteonb": partial(compute_features, bin_width=BIN_WIDTH, engine="exact"),
    }
    if flash_radiomics is not None:
        logging.getLogger("flash_radiomics").setLevel(logging.ERROR)
        implementations["flash-radiomics"] = measure_with_flash
    return implementations


def time_features(
    measure: Callable,  # (values, mask, classes) to features
    arguments: tuple,  # values, mask, classes
    rounds: int,  # of which the median counts
) -> tuple[float, dict[str, float]]:  # milliseconds, features
    "Time one implementation on one tile."
    milliseconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            features = measure(*arguments)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return statistics.median(milliseconds), features


def compare_tile(
    tile: str,  # its name
    rgb: np.ndarray,  # (H, W, 3), uint8
    rounds: int,  # of our engine; the others are measured once
) -> list[dict]:  # a row for each mask, set of features and implementation
    "Measure one tile with every implementation."
    values, masks = channels_and_masks(rgb, ("grey",), MASKS)
    rows = []
    for mask_name, mask in masks.items():
        for set_name, feature_classes in FEATURE_SETS.items():
            arguments = (values["grey"], mask, feature_classes)
            reference = None
            for name, measure in find_implementations().items():
                n = rounds if name == "osteonb" else 1
                try:
                    milliseconds, features = time_features(measure, arguments, n)
                except InputError as error:  # such as a mask without pixels
                    print(f"{tile}, {mask_name}: left out, {error}")
                    break
                reference = reference or features
                differences = _feature_differences(features, reference)
                worst = max(differences, key=differences.get)
                row = dict(tile=tile, mask=mask_name, features=set_name, implementation=name)
                row |= dict(ms=milliseconds, difference=differences[worst], worst=worst)
                rows.append(row)
    return rows


def summarize(
    rows: pd.DataFrame,  # of `compare_tile`
) -> pd.DataFrame:  # indexed by mask, features and implementation
    "Return median times, median ratios tile by tile, and the largest differences."
    keys = ["mask", "features", "implementation"]
    ours = rows[rows.implementation == "osteonb"].set_index(["tile", "mask", "features"]).ms
    places = pd.MultiIndex.from_frame(rows[["tile", "mask", "features"]])
    rows = rows.assign(ratio=rows.ms.to_numpy() / ours.loc[places].to_numpy())
    groups = rows.groupby(keys, sort=False)
    worst = rows.loc[groups.difference.idxmax()].set_index(keys)
    return pd.DataFrame(
        {
            "ms per tile": groups.ms.median().round(1),
            "ratio to osteonb": groups.ratio.median().round(1),
            "largest relative difference": groups.difference.max().map("{:.1e}".format),
            "in": worst.worst.where(worst.difference > 0, "–"),
        }
    )


def main() -> None:
    "Run the comparison and print its table."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", nargs="*", help="RGB images; without them, synthetic tiles")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of our engine (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if options.tiles:
        tiles = {Path(path).name: read_tile(path) for path in options.tiles}
    else:
        tiles = {name: draw_tile(name, label) for name, label in SYNTHETIC_TILES.items()}
    if flash_radiomics is None:
        print('flash-radiomics is not installed; pip install "osteonb[benchmark]" adds it')
    rows = []
    for tile, rgb in tiles.items():
        rows += compare_tile(tile, rgb, options.rounds)
    print(f"{len(tiles)} tiles, one thread, bin width {BIN_WIDTH}")
    print(summarize(pd.DataFrame(rows)).to_string())


if __name__ == "__main__":
    main()
