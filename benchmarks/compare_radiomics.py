#!/usr/bin/env python
"""Compare our radiomics with PyRadiomics, flash-radiomics, fastrad, mirp, numpyradiomics and pytorchradiomics.

    python benchmarks/compare_radiomics.py                     three synthetic tiles of 1024 pixels
    python benchmarks/compare_radiomics.py tile.jpg other.jpg  your tiles

Each other package is installed from PyPI into an environment of its own, below a temporary folder or the folder of
`--environments`, which the next run uses again. All measure the same arrays in turn, each in one process on one
thread. The script prints two tables: what each costs for each mask and set of features, and every feature that
differs from PyRadiomics by more than a millionth.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from osteonb.data.images import read_tile
from osteonb.radiomics import FEATURES, channels_and_masks
from osteonb.radiomics.engines import _feature_differences, _undefined_reason
from osteonb.synthetic import draw_tile

WORKER = Path(__file__).with_name("radiomics_worker.py")
MASKS = ("tile", "tissue", "nuclei")
FEATURE_SETS = {
    "29 features": ("firstorder", "shape2D"),
    "75 textures": ("glcm", "glrlm", "glszm", "gldm", "ngtdm"),
}
TOLERANCE = 1e-6  # relative difference from PyRadiomics that counts as one
# name -> what pip installs: the first, and what it imports without requiring it
PACKAGES = {
    "flash-radiomics": (
        "flash-radiomics==1.0.0",
        *("h5py", "numpy", "pykwalify", "PyWavelets", "scikit-learn", "scipy", "SimpleITK"),
    ),
    "fastrad": ("fastrad==1.0.0",),
    "mirp": ("mirp==2.7.0",),
    "numpyradiomics": ("numpyradiomics==0.0.5",),
    "pytorchradiomics": ("pytorchradiomics==0.0.5", "pyradiomics-bhklab", "torch"),
}
OUR_NAMES = {  # other names of features, lower case without underscores -> PyRadiomics'
    "glszm_zonesizenonuniformity": "glszm_SizeZoneNonUniformity",
    "glszm_zonesizenonuniformitynormalized": "glszm_SizeZoneNonUniformityNormalized",
    "glszm_zonesizevariance": "glszm_ZoneVariance",
}
SYNTHETIC_TILES = {
    "Case 901 A3-8844-18245": "Viable",
    "Case 904 C11-5000-7000": "Non-Viable-Tumor",
    "Case 948 B2-1024-2048": "Non-Tumor",
}
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def make_environment(
    name: str,  # of `PACKAGES`
    folder: Path,  # of environments
) -> tuple[Path | None, str]:  # its Python, or None and why there is none
    "Make the environment of a package, unless it was made before."
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"  # written last, so that an interrupted one is made again
    if done.exists():
        return python, ""
    print(f"installing {name} into {folder / name}", file=sys.stderr)
    venv.create(folder / name, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "-q", "--no-input", *PACKAGES[name]]
    finished = subprocess.run(pip, capture_output=True, text=True)
    if finished.returncode:
        errors = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")]
        return None, f"not installed: {(errors or ['pip failed'])[-1].removeprefix('ERROR: ')}"
    done.touch()
    return python, ""


@dataclass
class Worker:
    "A process that measures with one package; it is started again after an answer that took too long."

    name: str
    python: Path
    arrays: Path  # what it measures, .npz
    limit: float  # seconds for an answer
    process: subprocess.Popen | None = field(default=None, init=False)
    failure: str = field(default="", init=False)  # why the package cannot be loaded
    unread: bytes = field(default=b"", init=False)

    def start(self) -> None:
        "Start the process, wait until the package is loaded, and note why it cannot be."
        command = [self.python, WORKER, self.name, self.arrays]
        pipe = subprocess.PIPE
        environment = os.environ | ONE_THREAD
        if self.name in PACKAGES:  # nothing but its own environment
            environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0
        )
        self.unread = b""
        self.failure = self.read(300).get("error", "")

    def read(
        self,
        limit: float,  # seconds
    ) -> dict:  # the answer; with `error` where there is none
        "Read one line of JSON; end the process where it takes too long."
        while b"\n" not in self.unread:
            if not select.select([self.process.stdout], [], [], limit)[0]:
                self.close()
                return dict(error=f"more than {limit:.0f} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            if not chunk:
                self.close()
                return dict(error="its process ended, perhaps for lack of memory")
            self.unread += chunk
        line, self.unread = self.unread.split(b"\n", 1)
        return json.loads(line)

    def ask(
        self,
        **request: object,  # tile, mask, features, rounds
    ) -> dict:  # cpu, wall, features; or error
        "Measure one tile."
        if self.process is None:
            self.start()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return self.read(self.limit)

    def close(self) -> None:
        "End the process."
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def rename_features(
    features: dict[str, float],  # a package's names -> value
    wanted: list[str],  # PyRadiomics' names
) -> dict[str, float]:  # of those, the ones that the package has
    "Return a package's features by PyRadiomics' names, which differ in case and underscores."

    def plain(name: str) -> str:
        first, _, rest = name.partition("_")
        return f"{first}_{rest.replace('_', '')}".lower()

    names = {plain(name): name for name in wanted}
    found = {}
    for name, value in features.items():
        ours = OUR_NAMES.get(plain(name), names.get(plain(name)))
        if ours in wanted:
            found[ours] = value
    return found


def compare_features(
    features: dict[str, float],  # of one package
    reference: dict[str, float],  # of PyRadiomics
) -> dict[str, float]:  # feature -> relative difference
    "Return how far a package's features are from PyRadiomics'."
    common = {name: reference[name] for name in reference if name in features}
    return _feature_differences(features, common)


def measure_case(
    workers: dict[str, Worker],  # PyRadiomics first
    case: dict[str, str],  # tile, mask, features
    rounds: int,  # of an implementation that needs less than a second
) -> tuple[list[dict], list[dict]]:  # costs; differences
    "Measure one tile under one mask with all packages in turn."
    classes = FEATURE_SETS[case["features"]]
    wanted = [f"{name}_{feature}" for name in classes for feature in FEATURES[name]]
    costs = []
    differences = []
    reference = None
    for name, worker in workers.items():
        answer = worker.ask(**case, rounds=1)
        if answer.get("wall", np.inf) < 1000:
            answer = worker.ask(**case, rounds=rounds)
        row = dict(case, implementation=name, note=answer.get("error", ""))
        costs.append(row)
        print(
            *case.values(),
            name,
            row["note"] or f"{answer['wall']:.0f} ms",
            sep=", ",
            file=sys.stderr,
        )
        if row["note"]:
            continue
        features = rename_features(answer["features"], wanted)
        reference = reference or features
        apart = compare_features(features, reference)
        row |= dict(cpu=answer["cpu"], wall=answer["wall"], has=len(features))
        row["differ"] = sum(value > TOLERANCE for value in apart.values())
        for feature, value in apart.items():
            difference = dict(case, implementation=name, feature=feature, difference=value)
            difference |= dict(value=features[feature], reference=reference[feature])
            differences.append(difference)
    return costs, differences


def measure_everything(
    workers: dict[str, Worker],  # PyRadiomics first
    cases: list[tuple[str, str]],  # tile, mask
    rounds: int,  # of an implementation that needs less than a second
) -> tuple[pd.DataFrame, pd.DataFrame]:  # costs; differences
    "Measure all cases with all packages in turn."
    costs = []
    differences = []
    for tile, mask in cases:
        for set_name in FEATURE_SETS:
            case = dict(tile=tile, mask=mask, features=set_name)
            new_costs, new_differences = measure_case(workers, case, rounds)
            costs += new_costs
            differences += new_differences
    return pd.DataFrame(costs), pd.DataFrame(differences)


def summarize_costs(
    costs: pd.DataFrame,  # of `measure_everything`
) -> pd.DataFrame:  # a row for each mask, set of features and implementation
    "Return median times, ratios to ours tile by tile, and how many features differ."
    keys = ["mask", "features", "implementation"]
    costs = costs.reindex(columns=[*costs.columns, *{"cpu", "wall", "has", "differ"} - set(costs)])
    ours = costs[costs.implementation == "osteonb"].set_index(["tile", "mask", "features"]).cpu
    places = pd.MultiIndex.from_frame(costs[["tile", "mask", "features"]])
    costs = costs.assign(ratio=costs.cpu.to_numpy() / ours.loc[places].to_numpy())
    groups = costs.groupby(keys, sort=False)
    table = groups[["cpu", "wall"]].median().round(1)
    table = table.rename(columns=dict(cpu="CPU ms a tile", wall="wall ms"))
    table["CPU, ratio to osteonb"] = groups.ratio.median().round(1)
    table["features"] = groups.has.min().fillna(0).astype(int)
    table["differ"] = groups.differ.max()
    table["note"] = groups.note.agg(lambda notes: next((note for note in notes if note), ""))
    return table.astype(dict(differ="Int64"))


def summarize_differences(
    differences: pd.DataFrame,  # of `measure_everything`
) -> pd.DataFrame:  # a row for each implementation and feature that differs
    "Return every feature that differs, with the masks and the case where it differs most."
    is_other = differences.implementation != "PyRadiomics"
    some = differences[is_other & (differences.difference > TOLERANCE)]
    rows = []
    for (name, feature), group in some.groupby(["implementation", "feature"], sort=False):
        worst = group.loc[group.difference.idxmax()]
        masks = ", ".join(mask for mask in MASKS if mask in set(group["mask"]))
        rows.append((name, feature, masks, worst.difference, worst.value, worst.reference))
    columns = ["implementation", "feature", "under", "difference", "its value", "PyRadiomics"]
    return pd.DataFrame(rows, columns=columns)


def markdown_row(
    cells: Iterable,  # a value, NaN or NA for nothing
) -> str:
    "Return one line of a table in Markdown."
    return "| " + " | ".join("–" if pd.isna(cell) else str(cell) for cell in cells) + " |"


def as_markdown(
    table: pd.DataFrame,  # its index is left out
) -> str:
    "Return a table in Markdown."
    rows = table.astype(object).itertuples(index=False)
    lines = [table.columns, ["---"] * table.shape[1], *rows]
    return "\n".join(markdown_row(line) for line in lines)


def main() -> None:
    "Run the comparison and print its tables."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = parser.add_argument
    option("tiles", nargs="*", help="RGB images; without them, three synthetic tiles")
    option("--synthetic", type=int, default=3, help="synthetic tiles, where none are given (3)")
    option("--rounds", type=int, default=5, help="rounds of what takes less than a second (5)")
    option("--limit", type=float, default=120, help="seconds for one measurement (120)")
    option("--environments", type=Path, help="folder of the packages' environments; kept")
    option("--only", nargs="*", choices=PACKAGES, default=list(PACKAGES), help="these others only")
    option("--masks", nargs="+", choices=MASKS, default=list(MASKS), help="these masks only")
    option("--out", type=Path, help="folder to write costs.csv and differences.csv to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch))


def save_arrays(
    tiles: dict[str, np.ndarray],  # name -> (H, W, 3), uint8
    masks: list[str],  # of `MASKS`
    path: Path,  # .npz
) -> list[tuple[str, str]]:  # tile, mask: those that have features
    "Write the channel and the masks that all packages measure."
    arrays = {}
    cases = []
    for tile, rgb in tiles.items():
        values, regions = channels_and_masks(rgb, ("grey",), MASKS)
        arrays[f"{tile} values"] = values["grey"]
        for mask in masks:
            arrays[f"{tile} {mask}"] = regions[mask]
            if reason := _undefined_reason(regions[mask]):
                print(f"{tile}, {mask}: left out, {reason}")
            else:
                cases.append((tile, mask))
    np.savez(path, **arrays)
    return cases


def start_workers(
    names: list[str],  # of `PACKAGES`
    environments: Path,  # their folder
    arrays: Path,  # of `save_arrays`
    limit: float,  # seconds for an answer
) -> dict[str, Worker]:  # PyRadiomics and osteonb first
    "Start a process for each package that can be installed and loaded; name the others."
    workers = {}
    for name in ("PyRadiomics", "osteonb", *names):
        python = Path(sys.executable)
        failure = ""
        if name in PACKAGES:
            python, failure = make_environment(name, environments)
        if not failure:
            workers[name] = Worker(name, python, arrays, limit)
            workers[name].start()
            failure = workers[name].failure
        if failure:
            print(f"{name}: {failure}")
            if worker := workers.pop(name, None):
                worker.close()
    return workers


def run(
    options: argparse.Namespace,  # of `main`
    scratch: Path,  # an empty folder
) -> None:
    "Prepare arrays and environments, measure, and print."
    if options.tiles:
        tiles = {Path(path).stem: read_tile(path) for path in options.tiles}
    else:
        some = list(SYNTHETIC_TILES.items())[: options.synthetic]
        tiles = {name: draw_tile(name, label) for name, label in some}
    arrays = scratch / "arrays.npz"
    cases = save_arrays(tiles, options.masks, arrays)
    environments = (options.environments or scratch).resolve()
    workers = start_workers(options.only, environments, arrays, options.limit)
    try:
        costs, differences = measure_everything(workers, cases, options.rounds)
    finally:
        for worker in workers.values():
            worker.close()
    table = summarize_costs(costs).reset_index(names=["mask", "set", "implementation"])
    different = summarize_differences(differences)
    counted = "1 tile" if len(tiles) == 1 else f"{len(tiles)} tiles"
    print(f"{counted}, one thread, bin width 5\n\n{as_markdown(table)}\n")
    numbers = ["difference", "its value", "PyRadiomics"]
    shown = different.assign(**{name: different[name].map("{:.4g}".format) for name in numbers})
    print(f"Relative differences from PyRadiomics above {TOLERANCE:g}:\n\n{as_markdown(shown)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "costs.csv", index=False)
        different.to_csv(options.out / "differences.csv", index=False)


if __name__ == "__main__":
    main()
