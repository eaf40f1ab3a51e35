"What thousands of tiles and large pictures cost."

import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
from PIL import Image

from osteonb.data.leakage import audit
from osteonb.data.tiles import read_tiles
from osteonb.synthetic.cohort import draw_tile

LABELS = ("Non-Tumor", "Non-Viable-Tumor", "Viable")


def list_copies(folder, n_tiles, n_files=20):
    "Write a list of links to few pictures; those of a file belong to one patient and ten slides."
    for i in range(n_files):
        picture = draw_tile(f"Case 904 C11-{1000 * i}-7000", LABELS[i % 3], size=64)
        Image.fromarray(np.asarray(picture)).save(folder / f"file{i}.png")
    rows = []
    for k in range(n_tiles):
        i, copy = k % n_files, k // n_files
        (folder / f"t{k}.png").symlink_to(folder / f"file{i}.png")
        place = dict(x=1000 * i, y=500) if i % 2 else dict(x="", y="")
        names = dict(patient=f"P{i // 2}", slide=f"S{i}-{copy % 10}")
        rows.append(dict(path=f"t{k}.png", label=LABELS[i % 3], **names, **place))
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    return folder / "list.csv"


def test_audit_of_copies(tmp_path):
    "Twenty thousand links to twenty files take less than a minute of one core, and all are found."
    tiles, _ = read_tiles(list_copies(tmp_path, 20_000), tile_size=64)
    start = time.process_time()
    found = audit(tiles, cache_dir=tmp_path / "cache")
    assert time.process_time() - start < 60
    assert found.scans.shape[0] == 20  # the ten slides of a file are one scan, with places or without
    assert 100_000 < len(found.duplicates) <= 8 * 20_000 and set(found.duplicates.kind) == {"exact"}
    linked = set(found.duplicates.tile_a) | set(found.duplicates.tile_b)
    assert len(linked) == 20_000
