"""Fit the model that comes with the package on all groups of the release, and write it to osteonb/pretrained/release.

python tools/make_release_model.py --data RELEASE --figures figures.csv --predictions grid/predictions.parquet

The model is the preset quick with five members; --config gives other settings. --figures is a table of text for the card,
its first column names the group that was held out. --predictions are those of the grid nbs/studies/release.toml, of which
the reference is taken, its seeds averaged, for the temperatures. The run folder in --work may be kept and resumed.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from osteonb.core.config import configure, read_config
from osteonb.core.files import read_table
from osteonb.core.labels import PROBABILITY_COLUMNS
from osteonb.evaluation.claims import _average_variants
from osteonb.experiments.all_groups import _fit_on_all_groups
from osteonb.experiments.pipeline import predict_tiles
from osteonb.slides.shipped_model import _write_shipped_model

ROOT = Path(__file__).parents[1]


def read_options() -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the release, or a CSV that lists tiles")
    parser.add_argument("--config", type=Path, help="settings, .toml or config.json")
    parser.add_argument("--figures", type=Path, required=True, help="a CSV of the study's held-out figures")
    parser.add_argument("--predictions", type=Path, help="predictions.parquet of the study's grid")
    parser.add_argument("--variant", default="hierarchical fusion", help="the variant of the grid that is shipped")
    parser.add_argument("--work", type=Path, default=Path("release-run"), help="the run folder with the tiles")
    parser.add_argument("--out", type=Path, default=ROOT / "osteonb" / "pretrained" / "release")
    parser.add_argument("--cache", type=Path, help="where features and embeddings are kept")
    return parser.parse_args()


def held_out_answers(path: Path, variant: str) -> pd.DataFrame:
    "Return the answers of a variant with its group held out, each tile once, seeds averaged."
    table = read_table(path)
    return _average_variants(table[table.part == "test"])[variant, "group"].assign(part="test")


def largest_change(run, shipped, data: Path, cache: Path | None) -> tuple[float, int]:
    "Compare the answers of a run and of its shipped model on its tiles: largest change, other classes."
    columns = list(PROBABILITY_COLUMNS)
    before, after = (predict_tiles(one, data, cache)[columns].to_numpy() for one in (run, shipped))
    others = before.argmax(1) != after.argmax(1)
    return float(np.abs(after - before).max()), int(others.sum())


def main() -> None:
    "Fit, write and compare; print seconds and sizes."
    options = read_options()
    config = read_config(options.config) if options.config else configure("quick", n_members=5)
    start = time.perf_counter()
    run = _fit_on_all_groups(options.work, config, options.data, options.cache)
    print(f"fitted on {len(run.tiles)} tiles in {time.perf_counter() - start:.0f} s")
    figures = pd.read_csv(options.figures, index_col=0, dtype=str)
    predictions = held_out_answers(options.predictions, options.variant) if options.predictions else None
    start = time.perf_counter()
    shipped = _write_shipped_model(run, options.out, figures, predictions, options.cache)
    print(f"written in {time.perf_counter() - start:.0f} s")
    for path in sorted(shipped.path.iterdir()):
        print(f"{path.name:24} {path.stat().st_size / 1e6:8.3f} MB")
    change, n_others = largest_change(run, shipped, options.data, options.cache)
    print(f"16 bits change a probability by at most {change:.1e}, and the most probable class of {n_others} tiles")


if __name__ == "__main__":
    main()
