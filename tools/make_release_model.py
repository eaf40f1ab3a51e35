"""Fit the model that comes with the package on all groups of the release, and write it to osteonb/pretrained/release.

python tools/make_release_model.py --data RELEASE --figures figures.csv --predictions grid/predictions.parquet

The model is the preset quick with five members; --config gives other settings. --figures is a table of text for the card,
its first column names the group that was held out. --predictions are those of the grid nbs/studies/release.toml, of which
the reference is taken, its seeds averaged, for the temperatures. The run folder in --work may be kept and resumed.

python tools/make_release_model.py --data RELEASE --digests-only

writes only the table of the tiles' digests again, from the same tiles, and the manifest.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from osteonb.core.config import configure, read_config
from osteonb.core.errors import InputError
from osteonb.core.files import read_table
from osteonb.core.labels import PROBABILITY_COLUMNS
from osteonb.core.runs import Run
from osteonb.data.tiles import read_tiles
from osteonb.evaluation.claims import _average_variants
from osteonb.experiments.all_groups import _fit_on_all_groups
from osteonb.experiments.pipeline import predict_tiles
from osteonb.slides.shipped_model import _kept_of_tiles, _write_shipped_model

ROOT = Path(__file__).parents[1]


def read_options() -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the release, or a CSV that lists tiles")
    parser.add_argument("--config", type=Path, help="settings, .toml or config.json")
    parser.add_argument("--figures", type=Path, help="a CSV of the study's held-out figures")
    parser.add_argument("--predictions", type=Path, help="predictions.parquet of the study's grid")
    parser.add_argument("--variant", default="hierarchical fusion", help="the variant of the grid that is shipped")
    parser.add_argument("--work", type=Path, default=Path("release-run"), help="the run folder with the tiles")
    parser.add_argument("--out", type=Path, default=ROOT / "osteonb" / "pretrained" / "release")
    parser.add_argument("--cache", type=Path, help="where features and embeddings are kept")
    parser.add_argument("--digests-only", action="store_true", help="fit nothing; write the digests of --out again")
    options = parser.parse_args()
    if not options.digests_only and not options.figures:
        parser.error("--figures is required, except with --digests-only")
    return options


def renew_digests(folder: Path, data: Path) -> None:
    "Write the digests of a shipped model's tiles again; raise `InputError` where these are other tiles."
    shipped = Run(folder)
    shipped.check_files()
    known = shipped.known_tiles
    settings = shipped.config.data
    tiles, _ = read_tiles(data, settings.mixed_label, settings.tile_size)
    folds = pd.DataFrame(dict(fold=known.fold.iloc[0], part="train"), tiles.index)
    kept = _kept_of_tiles(tiles, folds)
    columns = ["fold", "part", "mpp", "cohort"]
    if not kept[columns].equals(known[columns]):
        raise InputError(f"{data}: not the tiles that {folder} was trained on; name their folder")
    shipped.write("trained_on", kept)
    shipped.seal()


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
    if options.digests_only:
        renew_digests(options.out, options.data)
        return
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
