"""Bad input by the hundred: each is read rightly, refused by an error that names the file or the setting, or left out with its reason.

The same examples every time; `OSTEONB_FUZZ=20 pytest tests/test_fuzz.py` draws twenty times as many, others each time, and makes what fails small.

What stays as it is, since nobody can see it: JPEG and TIFF have no checksum of their pixels, so a bit that flipped there gives another picture, ours and Pillow's alike; so does a PNG that was
written with too few lines and yet with the right checksums. Of several pages or frames the first is read, and a picture as it is stored, whatever its EXIF says of turning it."""
import contextlib, copy, csv, hashlib, io, json, math, os, re, select, shutil, signal, struct, subprocess, sys, warnings, zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings, strategies as st
from PIL import Image, features

from osteonb.core.cache import _RowCache, compute_table_rows
from osteonb.core.config import configure
from osteonb.core.errors import InputError
from osteonb.core.files import json_digest, read_json, write_json, write_table
from osteonb.core.labels import CLASSES, PROBABILITY_COLUMNS
from osteonb.core.runs import Run
from osteonb.data.images import _IMAGE_SUFFIXES
from osteonb.data.tcia import _SOURCE_FEATURES, RELEASE_COLUMNS, RELEASE_LABELS, _read_release_table, parse_tile_name
from osteonb.data.tiles import _read_tile_list, read_tiles
from osteonb.evaluation.metrics import evaluate
from osteonb.evaluation.tables import _evaluate_per_patient
from osteonb.experiments.grid import _setting_changes, _variant_configs, read_grid

MORE = int(os.environ.get("OSTEONB_FUZZ", "1"))
SECONDS = 30          # that one input may take, on a busy machine too
ROOM = 2 * 2**30      # bytes that it may take
REFUSED = object()


def examples(n):
    "So many, and no time for the smallest one that fails where they are the same every time."
    return settings(max_examples=n*MORE, derandomize=MORE == 1, phases=[Phase.generate] + [Phase.shrink]*(MORE > 1), deadline=None, database=None, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def in_time():
    "An error where the block takes too long."
    def late(*_): raise AssertionError(f"takes more than {SECONDS} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ours(error): return isinstance(error, InputError) or isinstance(error, OSError) and type(error).__module__ == "builtins"


def tried(call, *names):
    "What a call gives, or `REFUSED`; a refusal is one of ours and has one of the names in it, any other error passes through."
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: return call()
        except Exception as e:
            if not ours(e): raise
            assert any(str(n) in str(e) for n in names), f"names none of {names}: {e}"
            return REFUSED


# What mutates what is good.

ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, .5, -0., 1e308, math.nan, math.inf, -math.inf, "", " ", "\0", "nan", "../x", "é", "\ud800", "x"*5000, "quick", "paper", [], [[]], {}, {"a": 1}]
odd = st.sampled_from(ODD).map(copy.deepcopy)
junk = st.recursive(odd | st.integers() | st.floats() | st.text(max_size=8), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6)


@st.composite
def altered(draw, good, values=junk, most=3):
    "A copy of nested lists and dictionaries in which a few things are replaced, gone, there twice or under another name."
    box = [copy.deepcopy(good)]                                # so that the whole can be replaced too
    for _ in range(draw(st.integers(1, most))):
        at, key = box, 0
        while isinstance(at[key], (list, dict)) and at[key] and draw(st.integers(0, 4)):
            at = at[key]
            key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        how = draw(st.sampled_from(["replace", "replace", "remove", "again"]))
        if how == "replace" or at is box: at[key] = copy.deepcopy(draw(values))
        elif how == "remove": at.pop(key)
        elif isinstance(at, dict): at[draw(st.sampled_from(list(at)) | st.text(max_size=5))] = copy.deepcopy(at[key])
        else: at.append(copy.deepcopy(at[key]))
    return box[0]


@st.composite
def damaged(draw, data):
    "Bytes with a bit flipped, cut off, blotted out, doubled, or set to what no number should be."
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        if not data: break
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["flip", "flip", "cut", "blot", "double", "most", "insert"]))
        if how == "flip": data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut": del data[at:]
        elif how == "blot": data[at:at+16] = bytes(len(data[at:at+16]))
        elif how == "double": data[at:at] = data[at:at+40]
        elif how == "most": data[at:at+4] = b"\xff"*len(data[at:at+4])
        else: data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


# A second process for what may hang, crash or fill the memory.

WORKER = """
import hashlib, json, resource, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd
from PIL import Image
from osteonb.core.errors import InputError
from osteonb.core.files import read_table
from osteonb.data.images import _check_image, read_tile
warnings.simplefilter("ignore")
def named(array): return [list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
def pillow(path):
    try: return named(np.asarray(Image.open(path)))
    except Exception: return None
def predicted(path):
    from osteonb.experiments.pipeline import predict_run
    return predict_run(path).to_json()
CALLS = dict(tile=lambda p: named(read_tile(p)), pillow=pillow, check=lambda p, side: _check_image(Path(p), side)["reason"],
             table=lambda p: read_table(p).to_json(orient="split"), predicted=predicted)
if sys.argv[1:]: from osteonb.experiments.pipeline import predict_run
size = int(Path("/proc/self/statm").read_text().split()[0])*resource.getpagesize() if Path("/proc/self/statm").exists() else None
if size: resource.setrlimit(resource.RLIMIT_AS, (size + 2*%d, resource.RLIM_INFINITY))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), flush=True)
for line in sys.stdin:
    call, *args = json.loads(line)
    try: said = dict(value=CALLS[call](*args))
    except Exception as e:
        ours = isinstance(e, InputError) or isinstance(e, OSError) and type(e).__module__ == "builtins"
        said = dict(error=str(e), kind=type(e).__name__, ours=ours)
    print(json.dumps(said | dict(peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)), flush=True)
""" % ROOM


class Worker:
    "Calls in a process of its own."
    def __init__(self, *words):
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.begun = json.loads(self.process.stdout.readline())

    def __call__(self, *call, names=()):
        "As `tried`: the value, or `REFUSED`; a refusal names the file, or one of the names."
        self.process.stdin.write(json.dumps([str(c) if isinstance(c, Path) else c for c in call]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], SECONDS)[0]:
            self.process.kill()
            raise AssertionError(f"{call}: takes more than {SECONDS} s")
        said = self.process.stdout.readline()
        assert said, f"{call}: the process has died"
        said = json.loads(said)
        assert (said["peak"] - self.begun)*(1 if sys.platform == "darwin" else 1024) < ROOM, f"{call}: takes {said['peak'] - self.begun} kB"
        if "value" in said: return said["value"]
        self.said = said["error"]
        assert said["ours"], f"{call}: {said['kind']}: {said['error']}"
        assert "MemoryError" not in self.said and any(n in self.said for n in (Path(call[1]).name, *names)), self.said
        return REFUSED


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.process.kill()
    worker.process.wait()


# Names of tiles.

spelt = st.builds(lambda *parts: "".join(parts), st.sampled_from(["Case 3", "case-48 - P5", "Case 4", "P9", "CASE_4", "Case٣", "Caſe 4", "p9 - p5"]), st.sampled_from([" ", "-", "_", " - ", "", "\n", "–"]),
                  st.sampled_from(["A10", "c21", "B٣", "ß1", "B007", "A"]), st.sampled_from(["-", " ", "_-_", "", "\0"]), st.from_regex(r"\d{1,12}", fullmatch=True), st.sampled_from(["-", " ", "--"]),
                  st.from_regex(r"[0-9]{1,12}", fullmatch=True), st.sampled_from(["", ".jpg", ".TIFF", ".bmp", " ", ".jpg.jpg", "\n"]))


@examples(300)
@given(spelt | st.text(max_size=40))
def test_names(name):
    "A name is none, or plain parts that are spelt back."
    parts = tried(lambda: parse_tile_name(name))
    if parts is None: return
    assert re.fullmatch(r"(Case-\d+|P\d+)(-P\d+)?-[A-Z]\d+-\d+-\d+", parts["tile"], re.A) and parse_tile_name(parts["tile"]) == parts
    assert parts["tile"] == f"{parts['slide']}-{parts['x']}-{parts['y']}" and parts["slide"].startswith(parts["patient"]) and max(parts["x"], parts["y"]) < 10**9
    letters = lambda text: re.sub(r"[ _-]+", "", re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"\.(jpe?g|png|tiff?)$", "", text.strip().lower())))
    assert letters(name) == letters(parts["tile"])


@pytest.mark.parametrize("name", ["Case ٣ A10-1-2", "Caſe 3 A10-1-2", "P９ B6-1-2", "Case 3 A10-" + "1"*5000 + "-2", "Case 3 A10-1-1234567890", "Case 3 A10-1\0-2"])
def test_names_that_are_none(name): assert parse_tile_name(name) is None


@pytest.mark.parametrize("name", ["Case 03 A10-1-2", "Case 3 A010-1-2", "Case 3 A10-01-002.jpg"])
def test_zeros_before_a_number(name): assert parse_tile_name(name) == parse_tile_name("Case 3 A10-1-2")


# The release's table.

NAMES = ["Case 3 A10-1-2", "Case 3 A10-3-4", "Case 4 C21-5-6", "Case 48 - P5 C13-7-8", "P9 B6-9-10"]
ROWS = [list(RELEASE_COLUMNS)] + [[str(i + 1), name, str(i + 1), *[f"{i}.5"]*8, "1", "1", str(i), "1", *[f"{i}.{j}" for j in range(53)], label]
                          for i, (name, label) in enumerate(zip(NAMES, [*RELEASE_LABELS, "Non-Tumor"]))]
CELLS = ["", "NA", "nan", "inf", "-1e400", "1e5", " 1.5 ", "1,5", "1_0", "0x10", "True", "٣", "abc", "\0", "9"*30, "é"*3000, 'a"b', "a\nb", "Viable", "Case 3 A10-1-2", "case_3_A10-01-2", "Case ٣ A10-1-2", "image.name"]
CODECS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"]


def as_csv(rows, **how):
    text = io.StringIO(newline="")
    csv.writer(text, **how).writerows(rows)
    return text.getvalue()


@st.composite
def tables(draw, rows, cells):
    "A table's bytes, with something wrong in the cells, the header, the rows, the delimiter, the encoding or the bytes."
    rows = copy.deepcopy(rows)
    for _ in range(draw(st.integers(0, 3))):
        i, how = draw(st.integers(0, len(rows) - 1)), draw(st.sampled_from(["cell", "cell", "header", "row gone", "row twice", "blank row", "column gone", "column twice", "columns swapped", "longer", "shorter", "all longer", "all"]))
        j = draw(st.integers(0, len(rows[i]) - 1)) if rows[i] else 0
        if how == "cell" and rows[i]: rows[i][j] = draw(st.sampled_from(cells) | st.text(max_size=6))
        elif how == "header": rows[0][min(j, len(rows[0]) - 1)] = draw(st.sampled_from([*rows[0], "", "area ", "Area", "tile", "x"]))
        elif how == "row gone" and len(rows) > 1: del rows[i]
        elif how == "row twice": rows.insert(i, list(rows[i]))
        elif how == "blank row": rows.insert(i, draw(st.sampled_from([[], [""], [""]*len(rows[0]), [" "]])))
        elif how == "column gone" and min(map(len, rows)) > 1: rows = [r[:(k := j % len(r))] + r[k+1:] for r in rows]
        elif how == "column twice": rows = [r + r[j:j+1] for r in rows]
        elif how == "columns swapped": rows = [r[1:] + r[:1] for r in rows]
        elif how == "longer": rows[i].append(draw(st.sampled_from(["", "1", "Viable"])))
        elif how == "shorter" and len(rows[i]) > 1: rows[i].pop(j)
        elif how == "all longer": rows[1:] = [[draw(st.sampled_from(["", "x"])), *r] if j % 2 else [*r, ""] for r in rows[1:]]
        elif how == "all": rows[1:] = [r[:j] + [draw(st.sampled_from(cells))] + r[j+1:] for r in rows[1:]]
        if not rows or not rows[0]: rows = [["a"]]
    text = as_csv(rows, delimiter=draw(st.sampled_from(",,,,,;\t|")), quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])), lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])))
    data = text.encode(draw(st.sampled_from(CODECS)), "replace")
    return draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


def by_hand(data):
    "A table's rows as Python's own reader has them: dictionaries."
    head, *rows = [r for r in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if len(r) > 1 or any(c.strip() for c in r)]
    assert all(not any(r[len(head):]) for r in rows), "cells beyond the header were dropped"
    return [dict(zip(head, r)) for r in rows], head


@examples(250)
@given(data=tables(ROWS, CELLS))
def test_release_table(data, tmp_path_factory):
    "What is accepted says of each tile what stands in its own row."
    file = tmp_path_factory.mktemp("table")/"ML_Features.csv"
    file.write_bytes(data)
    table = tried(lambda: _read_release_table(file), file.name)
    if table is REFUSED: return
    rows, head = by_hand(data)
    assert len(table) == len(rows) and set(table.label) <= set(RELEASE_LABELS.values()) and table.index.is_unique
    assert all(head.count(c) == 1 for c in RELEASE_COLUMNS[1:])
    for row, (tile, read) in zip(rows, table.iterrows()):
        assert parse_tile_name(row["image.name"])["tile"] == tile and RELEASE_LABELS[row["classification"].strip()] == read.label
        for c in _SOURCE_FEATURES:
            value = read[f"tcia_{c}"]
            if math.isnan(value): assert row.get(c, "").strip() in ("", "NA", "nan", "N/A", "n/a", "null", "NULL", "None", "NaN", "#N/A", "<NA>", "-nan", "-NaN"), (c, row.get(c))
            else: assert math.isclose(float(row[c]), value, rel_tol=1e-12) and math.isfinite(value)


@pytest.mark.parametrize("what, change", {
    "no header for the first column": lambda t: t.replace(",image.name", "image.name", 1),     # R's write.table: every label would stand one row too low
    "a column twice": lambda t: t.replace("circularity", "area", 1),
    "a word for a number": lambda t: t.replace("4.51", "four", 1),
    "a NUL byte in a number": lambda t: t.replace("4.51", "4\0", 1),
    "words for all numbers of a column": lambda t: re.sub(r"\b\d\.51\b", "True", t),
    "an infinite number": lambda t: t.replace("4.51", "inf", 1),
    "a number beyond all numbers": lambda t: t.replace("4.51", "1e999", 1),
    "a coordinate of 5000 digits": lambda t: t.replace("A10-1-2", "A10-1-" + "2"*5000),
    "rows longer than the header": lambda t: t.replace("\n", ",more\n").replace(",more", "", 1),
    "another delimiter": lambda t: t.replace(",", ";"),
}.items(), ids=lambda v: v if isinstance(v, str) else "edit")
def test_release_table_refused(what, change, tmp_path):
    (tmp_path/"t.csv").write_text(change(as_csv(ROWS, lineterminator="\n")))
    assert tried(lambda: _read_release_table(tmp_path/"t.csv"), "t.csv") is REFUSED


def test_release_table_good(tmp_path):
    (tmp_path/"t.csv").write_text(as_csv(ROWS))
    assert _read_release_table(tmp_path/"t.csv").label.tolist() == [*RELEASE_LABELS.values(), "non_tumor"]


# A release on disk.

def noise(seed, side=8): return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)//(1 + 15*(seed % 2))


def encoded(seed, kind="JPEG", side=8, **how):
    Image.fromarray(noise(seed, side)).save(data := io.BytesIO(), kind, **how)
    return data.getvalue()


def lay_out(root):
    "A release of five tiles."
    (root/"Training-Set-1"/"set1").mkdir(parents=True)
    (root/"ML_Features.csv").write_text(as_csv(ROWS))
    for i, name in enumerate(NAMES): (root/"Training-Set-1"/"set1"/f"{re.sub('[ -]+', '-', name)}.jpg").write_bytes(encoded(i))
    return root


THINGS = st.sampled_from(["gone", "empty", "text", "folder", "pipe", "nowhere", "loop", "twin", "stranger", "odd name", "hidden", "large", "grey", "second table", "same table", "no table", "locked"])


@examples(60)
@given(done=st.lists(st.tuples(THINGS, st.integers(0, 4)), min_size=1, max_size=3))
def test_release(done, tmp_path_factory):
    "Every row and every picture is among the tiles or among the exclusions."
    root = lay_out(tmp_path_factory.mktemp("release"))
    place, files = root/"Training-Set-1"/"set1", sorted((root/"Training-Set-1"/"set1").iterdir())
    for what, i in done:
        file = files[i]
        if what in ("gone", "folder", "pipe", "nowhere", "loop"): shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if what == "folder": file.mkdir()
        elif what == "pipe": os.mkfifo(file)
        elif what == "nowhere": file.symlink_to(root/"absent.jpg")
        elif what == "loop": file.symlink_to(file)
        elif what == "twin": shutil.copy(root/"ML_Features.csv", file.with_suffix(".PNG")) if (root/"ML_Features.csv").exists() else None
        elif what == "stranger": (place/f"P9-B6-77-{i}.jpg").write_bytes(encoded(0))
        elif what == "odd name": (place/["overview.jpg", "Case ٣ A10-1-2.jpg", "é\udcff.tif", "-.png", "P9-B6-9.jpg"][i]).write_bytes(b"x")
        elif what == "hidden": (place/"._P9-B6-9-10.jpg").write_bytes(b"x")
        elif what == "second table": (root/"ML_other.csv").write_text("image.name,area\n")
        elif what == "same table" and (root/"ML_Features.csv").exists(): shutil.copy(root/"ML_Features.csv", place/"copy.csv")
        elif what == "no table": (root/"ML_Features.csv").unlink(missing_ok=True)
        elif file.is_file() and what in ("empty", "text", "large", "grey"): file.write_bytes(dict(empty=b"", text=b"no picture", large=encoded(i, side=9), grey=encoded(i, kind="GIF"))[what])
    found = tried(lambda: read_tiles(root, tile_size=8, n_jobs=1), root, "ML_", "copy.csv")
    if found is REFUSED: return
    tiles, excluded = found
    rows = {parse_tile_name(n)["tile"] for n in NAMES}
    there = {parse_tile_name(p.name)["tile"] for p in place.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES and p.is_file() and p.name[0] != "."}
    assert set(tiles.index) | set(excluded.index) == rows | there and not set(tiles.index) & set(excluded.index) and (excluded.reason != "").all()
    for tile, path in tiles.path.items(): assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(io.BytesIO(encoded([parse_tile_name(n)["tile"] for n in NAMES].index(tile))))))


@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_release_of_other_things(what, tmp_path):
    "What is no file is no picture and no table: a pipe would be waited for."
    root = lay_out(tmp_path/"release")
    for path in (root/"Training-Set-1"/"set1"/"P9-B6-9-10.jpg", root/"other.csv"):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if what == "pipe" else path.mkdir()
    tiles, excluded = tried(lambda: read_tiles(root, tile_size=8, n_jobs=1))
    assert len(tiles) == 4 and excluded.reason.to_dict() == {"P9-B6-9-10": "no file"}


# Lists of own tiles.

LIST = [["path", "label", "patient", "slide", "tile", "x", "y"], ["a.png", "viable", "A", "A-1", "a", "0", "5"], ["b.png", "Non-Tumor", "B", "B-1", "b", "", ""], ["sub/c.jpg", "mixed", "B", "B-2", "c", "1.5", "2"]]
WORDS = ["", " ", "viable", "Viable", "VIABLE", "A", "..", "A/B", "a.png", "../a.png", "/", ".", "\0", "a\0.png", "x"*300, "x"*5000, "é", "nan", "inf", "-inf", "1e999", "-5", "1,5", "٣", "0x10", "a\nb", '"', "=1+1"]


@examples(200)
@given(data=tables(LIST, WORDS), mixed_label=st.sampled_from(["non-viable", "viable", "drop"]))
def test_list(data, mixed_label, tmp_path_factory):
    "Every line of a list is a tile or an exclusion, and says what stands in its own line."
    root = tmp_path_factory.mktemp("list")
    (root/"sub").mkdir()
    for i, name in enumerate(["a.png", "b.png", "sub/c.jpg"]): (root/name).write_bytes(encoded(i, "PNG"))
    (root/"list.csv").write_bytes(data)
    found = tried(lambda: _read_tile_list(root/"list.csv", mixed_label, 8, 1), "list.csv", root)
    if found is REFUSED: return
    (tiles, excluded), (rows, head) = found, by_hand(data)
    assert len(tiles) + len(excluded) == len(rows) and set(tiles.label) <= set(CLASSES) and all(head.count(c) == 1 for c in LIST[0] if c in head)
    for row in rows:
        row = {k: v.strip() for k, v in row.items()}
        tile = row.get("tile", Path(row["path"]).stem)
        assert tile and (tile in tiles.index) != (tile in excluded.index)
        if tile in excluded.index: continue
        read, known = tiles.loc[tile], RELEASE_LABELS | {v: v for v in RELEASE_LABELS.values()}
        assert (read.patient, read.slide) == (row["patient"], row["slide"]) and Path(read.path) == (root/row["path"]).resolve()
        assert read.label == known[row["label"]].replace("mixed", mixed_label.replace("-", "_"))
        for c in ("x", "y"): assert math.isnan(read[c]) if not row.get(c) else math.isclose(read[c], float(row[c])) and math.isfinite(read[c])


@pytest.mark.parametrize("what, text", {
    "cells beyond the header": "path,label,patient,slide\na.png,viable,A,A-1,more\n",
    "a NUL byte in a path": "path,label,patient,slide\na\0.png,viable,A,A-1\n",
    "a path too long": f"path,label,patient,slide\n{'a'*5000},viable,A,A-1\n",
    "an infinite coordinate": "path,label,patient,slide,x\na.png,viable,A,A-1,inf\n",
    "a tile without a name": "path,label,patient,slide,tile\na.png,viable,A,A-1,\n",
    "a column twice": "path,label,label,patient,slide\na.png,viable,mixed,A,A-1\n",
    "a coordinate twice": "path,label,patient,slide,x,x\na.png,viable,A,A-1,1,2\n",
    "no line": "path,label,patient,slide\n",
}.items(), ids=lambda v: v if "\n" not in v else "text")
def test_list_refused(what, text, tmp_path):
    (tmp_path/"list.csv").write_text(text)
    (tmp_path/"a.png").write_bytes(encoded(0, "PNG"))
    assert tried(lambda: _read_tile_list(tmp_path/"list.csv", tile_size=8), "list.csv", tmp_path) is REFUSED


# Pictures.

def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, lines=b"", more=b""):
    "A PNG of lines that are packed already."
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + more + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def packed(line, times):
    "Many equal lines, packed piece by piece."
    pack, piece = zlib.compressobj(1), line*max(1, min(times, 2**20//len(line)))
    whole = [pack.compress(piece) for _ in range(times*len(line)//len(piece))]
    return b"".join(whole) + pack.compress(line*(times - len(whole)*len(piece)//len(line))) + pack.flush()


def tiff(tags, pixels=bytes(192)):
    "A little-endian TIFF: tag -> (type, count, value or place)."
    start = 8 + len(pixels)
    return struct.pack("<2sHI", b"II", 42, start) + pixels + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, *v) for t, v in sorted(tags.items())) + bytes(4)


PLAIN = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2), 273: (4, 1, 8), 277: (3, 1, 3), 278: (3, 1, 8), 279: (4, 1, 192)}


def pictures():
    "Name -> bytes, of every kind that Pillow writes."
    rgb, other = Image.fromarray(noise(1, 16)), Image.fromarray(noise(3, 16))
    def saved(image, kind, **how):
        image.save(data := io.BytesIO(), kind, **how)
        return data.getvalue()
    turned = Image.Exif(); turned[0x0112] = 6
    kinds = dict(jpeg=("JPEG", {}), progressive=("JPEG", dict(progressive=True)), turned=("JPEG", dict(exif=turned)), png=("PNG", {}), apng=("PNG", dict(save_all=True, append_images=[other])), tiff=("TIFF", {}), pages=("TIFF", dict(save_all=True, append_images=[other])),
                 lzw=("TIFF", dict(compression="tiff_lzw")), deflate=("TIFF", dict(compression="tiff_adobe_deflate")), tiff_jpeg=("TIFF", dict(compression="jpeg")), packbits=("TIFF", dict(compression="packbits")), bmp=("BMP", {}), ppm=("PPM", {}), mpo=("MPO", dict(save_all=True, append_images=[other])))
    if features.check("webp"): kinds |= dict(webp=("WEBP", dict(lossless=True)), moving_webp=("WEBP", dict(save_all=True, append_images=[other])))
    modes = dict(cmyk=("CMYK", "JPEG"), grey=("L", "JPEG"), ycc=("YCbCr", "TIFF"), palette=("P", "PNG"), bit=("1", "PNG"), la=("LA", "PNG"), rgba=("RGBA", "PNG"), rgba_tiff=("RGBA", "TIFF"), lab=("LAB", "TIFF"), float=("F", "TIFF"), gif=("P", "GIF"))
    made = {n: saved(rgb, k, **how) for n, (k, how) in kinds.items()} | {n: saved(rgb.convert(m) if m != "LAB" else Image.new("LAB", (16, 16)), k) for n, (m, k) in modes.items()}
    made["moving_gif"] = saved(rgb.convert("P"), "GIF", save_all=True, append_images=[other.convert("P")])
    made["sixteen"] = png(16, 16, 16, 2, packed(b"\0" + bytes(range(96)), 16))
    made["sixteen_tiff"] = tiff(PLAIN | {258: (3, 1, 16), 279: (4, 1, 384)}, bytes(384))
    made["key"] = png(16, 16, 8, 2, packed(b"\0" + bytes(range(48)), 16), chunk(b"tRNS", bytes(6)))
    return made | dict(empty=b"", text=b"no picture", eps=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n(%pipe%id) (r) file\n%%EOF\n")


PICTURES = pictures()
RGB = ["jpeg", "progressive", "turned", "png", "apng", "tiff", "pages", "lzw", "deflate", "tiff_jpeg", "packbits", "mpo", "key"]      # those that are tiles


@pytest.mark.parametrize("name", PICTURES)
def test_kind_of_picture(name, worker, tmp_path):
    "Every kind of picture under every ending: what is 8-bit RGB in JPEG, PNG or TIFF is read as Pillow reads it, its first page alone and as it is stored; anything else is refused."
    for ending in (*_IMAGE_SUFFIXES, ".TIFF", ".bmp", ""):
        file = tmp_path/f"tile{ending}"
        file.write_bytes(PICTURES[name])
        read = worker("tile", file)
        assert (read is not REFUSED) == (name in RGB) and worker("check", file, 16) == ("" if name in RGB else "empty file" if name == "empty" else worker.said.split(": ", 1)[1].split("; ")[0])
        if name in RGB: assert read == worker("pillow", file)


@examples(400)
@given(name=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_damaged_picture(name, data, worker, tmp_path_factory):
    "What is read is what Pillow makes of the same bytes, whole; of a PNG, the picture as it was."
    file = tmp_path_factory.mktemp("picture")/"tile.jpg"
    file.write_bytes(changed := data.draw(damaged(PICTURES[name])))
    read = worker("tile", file)
    reason = worker("check", file, 16)
    if read is REFUSED: assert reason
    else:
        assert read == worker("pillow", file) and len(read[0]) == 3 and read[0][2] == 3 and (reason == "") == (read[0][:2] == [16, 16])
        if changed[:4] == b"\x89PNG" or PICTURES[name].startswith(changed):     # cut off, and yet whole
            file.write_bytes(PICTURES[name])
            assert read == worker("tile", file)


@pytest.mark.parametrize("name", RGB)
def test_cut_off_picture(name, worker, tmp_path):
    "Cut at every seventh byte, a picture is refused, or nothing of its pixels is lacking."
    whole = PICTURES[name]
    (tmp_path/"whole.jpg").write_bytes(whole)
    good = worker("tile", tmp_path/"whole.jpg")
    for end in range(0, len(whole), max(7, len(whole)//60)):
        (tmp_path/"cut.jpg").write_bytes(whole[:end])
        assert worker("tile", tmp_path/"cut.jpg") in (REFUSED, good)


HUGE = {
    "60000×60000, claimed": (png(60000, 60000, lines=packed(bytes(100), 2)), "million pixels"),
    "20000×20000, one bit": (png(20000, 20000, 1, 0, packed(bytes(2501), 20000)), "million pixels"),
    "20000×20000, palette": (png(20000, 20000, 1, 3, packed(bytes(2501), 20000), chunk(b"PLTE", bytes(6))), "million pixels"),
    "10000×10000, palette": (png(10000, 10000, 1, 3, packed(bytes(1251), 10000), chunk(b"PLTE", bytes(6))), "not 8-bit RGB (P)"),
    "13000×13000, cut off": (png(13000, 13000, lines=packed(bytes(39001), 20))[:-40], "wrong size"),
    "2³¹×1": (png(2**31 - 1, 1), "million pixels"),
    "0×0": (png(0, 0), "picture"),
    "TIFF of 60000×60000": (tiff(PLAIN | {256: (4, 1, 60000), 257: (4, 1, 60000)}), "million pixels"),
    "TIFF of 13000×13000": (tiff(PLAIN | {256: (4, 1, 13000), 257: (4, 1, 13000)}), "wrong size"),
    "TIFF with 2³² strips": (tiff(PLAIN | {273: (4, 2**32 - 1, 8), 279: (4, 2**32 - 1, 8)}), "picture"),
    "TIFF with 65535 samples": (tiff(PLAIN | {277: (3, 1, 65535)}), "picture"),
    "TIFF with 2³² bits": (tiff(PLAIN | {258: (4, 2**32 - 1, 8)}), "picture"),
    "TIFF of an unknown packing": (tiff(PLAIN | {259: (3, 1, 65000)}), "picture"),
    "TIFF whose strip lies beyond its end": (tiff(PLAIN | {273: (4, 1, 2**31)}), "picture"),
    "TIFF that is its own next page": (struct.pack("<2sHIHI", b"II", 42, 8, 0, 8), "picture"),
    "text of 64 MiB, packed": (png(16, 16, lines=packed(bytes(49), 16), more=chunk(b"zTXt", b"a\0\0" + packed(b"x"*1024, 65536))), "picture"),
    "flipped bit in a PNG": (PICTURES["png"][:-25] + bytes([PICTURES["png"][-25] ^ 1]) + PICTURES["png"][-24:], "damaged"),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_or_absurd_picture(name, worker, tmp_path):
    data, reason = HUGE[name]
    (tmp_path/"tile.png").write_bytes(data)
    assert reason in worker("check", tmp_path/"tile.png", 8 if "TIFF" in name and "picture" in reason else 16)
    assert worker("tile", tmp_path/"tile.png") is REFUSED


def test_smallest_picture(worker, tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path/"tile.png")
    assert worker("tile", tmp_path/"tile.png")[0] == [1, 1, 3] and worker("check", tmp_path/"tile.png", 1) == ""


# Settings.

FIELDS = {"preset": "quick", **configure().flat()}


def check_config(config, folder):
    "A configuration that was accepted is of the right types, finite, and the same after it was written and read."
    for name, default in FIELDS.items():
        value = config.preset if name == "preset" else config.flat()[name]
        assert type(value) is type(default) and (not isinstance(value, float) or math.isfinite(value)), name
        assert not isinstance(value, tuple) or value and all(type(v) is str for v in value), name
    assert 0 <= config.training.seed < 2**32 and max(config.model.width, config.model.gate_width, config.model.image_size) <= 10**4 and max(config.data.tile_size, config.training.batch_size) <= 10**6
    write_json(config.to_dict(), folder/"config.json")
    assert Run(folder).config == config




@pytest.mark.parametrize("name", FIELDS)
def test_odd_setting(name, tmp_path):
    "Every odd value for every setting."
    for value in [*ODD, (), ("grey", 1), [""], ["grey", "grey"], "fusion", "\n", 0.5, 16.0]:
        config = tried(lambda: configure(**{name: value}), "setting", "preset")
        if config is not REFUSED: check_config(config, tmp_path)


@examples(250)
@given(changed=st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=6), junk, min_size=1, max_size=3))
def test_configure(changed, tmp_path_factory):
    assume("" not in changed)
    config = tried(lambda: configure(**changed), *map(repr, changed), "preset", "setting")
    if config is not REFUSED: check_config(config, tmp_path_factory.mktemp("config"))


@examples(200)
@given(text=(altered(configure().to_dict()) | altered({"preset": "quick", **configure().flat()})).map(lambda v: json.dumps(v).encode()) | damaged(json.dumps(configure().to_dict()).encode()) | st.binary(max_size=30))
def test_run_config(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder/"config.json").write_bytes(text)
    config = tried(lambda: Run(folder).config, "config.json", "setting", "preset")
    if config is not REFUSED: check_config(config, folder)


@pytest.mark.parametrize("text", [
    '{"preset": []}', '{"preset": {"a": 1}}', f'{{"lr": 1{"0"*400}}}', '{"weight_decay": NaN}', '{"weight_decay": -1}', '{"lambda_lr": Infinity}', '{"seed": -1}', f'{{"seed": {2**64}}}', '{"channels": []}', '{"channels": [{}]}', '{"masks": [1]}',
    '{"classes": [["objects"]]}', '{"test_patient": "\\ud800"}', '{"width": 1000000000}', '{"image_size": 1000000000}', '{"tile_size": 1000000000}', "["*100000, '{"a":'*100000], ids=lambda t: t[:28])
def test_config_refused(text, tmp_path):
    (tmp_path/"config.json").write_text(text)
    assert tried(lambda: Run(tmp_path).config, "config.json", "setting", "preset") is REFUSED


# Grids.

GRID = dict(name="a grid", base=dict(modality="radiomics", feature_source="release"), variants={"chained": {}, "flat": dict(head="flat"), "logistic": dict(estimator="logistic", against="flat"), "nested": dict(candidates=[dict(n_features=20), {}])},
            reference="chained", claims=dict(hierarchical=["chained", "flat"]), splits=["patient", "tile"], folds=3, seeds=[0, 1], draws=10)


def as_toml(value):
    "A value in TOML, tables within a line."
    if isinstance(value, dict): return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list): return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float): return str(value) if "e" not in str(value) else repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_grid(grid):
    "A grid that was accepted can be written out to its last cell."
    assert grid.splits and grid.seeds and grid.comparisons is not None and grid.reference in grid.variants and len(set(grid.seeds)) == len(grid.seeds)
    for name in grid.variants:
        for seed in grid.seeds: assert all(c.training.seed == seed for c in _variant_configs(grid, name, seed))
    for a, b in grid.comparisons: assert a != b and all(isinstance(c, str) for c in _setting_changes(grid, a, b))


@examples(250)
@given(raw=altered(GRID, odd | st.sampled_from(["chained", "flat", ["chained", "flat"], dict(head="flat"), dict(seed=1), [dict(C=1)], [0, 0], ["tile"]])))
def test_grid(raw, tmp_path_factory):
    "As dictionaries, and through a file where TOML can say it."
    if isinstance(raw, dict):
        grid = tried(lambda: read_grid(raw), "grid", "setting")
        if grid is not REFUSED: check_grid(grid)
    if "null" in (text := "\n".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in raw.items()) if isinstance(raw, dict) else as_toml(raw)): return
    file = tmp_path_factory.mktemp("grid")/"g.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    again = tried(lambda: read_grid(file), "g.toml")
    if isinstance(raw, dict) and REFUSED not in (again, grid): assert again == grid


@examples(100)
@given(data=damaged("\n".join(f"{k} = {as_toml(v)}" for k, v in GRID.items()).encode()) | st.binary(max_size=40))
def test_damaged_grid(data, tmp_path_factory):
    file = tmp_path_factory.mktemp("grid")/"g.toml"
    file.write_bytes(data)
    grid = tried(lambda: read_grid(file), "g.toml")
    if grid is not REFUSED: check_grid(grid)


@pytest.mark.parametrize("change", [dict(base=3), dict(base=[]), dict(variants=3), dict(variants=dict(flat=3)), dict(variants=dict(flat="ab")), dict(variants=dict(flat=dict(against=["x"]))), dict(variants=dict(flat=dict(against=""))),
    dict(variants=dict(flat=dict(candidates=3))), dict(variants=dict(flat=dict(candidates=[3]))), dict(claims=3), dict(claims=dict(radiomics=3)), dict(claims=dict(radiomics=[["chained"], "flat"])), dict(claims=dict(radiomics=["flat", "flat"])),
    dict(reference=["flat"]), dict(splits=3), dict(splits="tile"), dict(splits=[]), dict(splits=["tile", "tile"]), dict(splits=[[]]), dict(seeds=3), dict(seeds=[0, 0]), dict(seeds=[2**32]), dict(seeds=[True]), dict(folds=10**12), dict(draws=10**12),
    dict(name=[]), dict(name={}), dict(base=dict(preset=[])), dict(base=dict(lr=10**400))], ids=lambda c: str(c)[:60])
def test_grid_refused(change):
    assert tried(lambda: read_grid({**GRID, **change}), "grid") is REFUSED


@pytest.mark.parametrize("text", ["a = " + "["*100000, "a = " + "{a=" * 100000, "a" + ".a"*100000 + " = 1", "\ufeffname = 'x'", "[variants.a]\n[variants.a]\n", "[variants]\na = 1979-05-27\n"], ids=lambda t: t[:12].strip())
def test_toml_refused(text, tmp_path):
    (tmp_path/"g.toml").write_text(text)
    assert tried(lambda: read_grid(tmp_path/"g.toml"), "g.toml") is REFUSED


# Values that were kept.

TILES = pd.DataFrame(dict(sha256=[f"{i:064x}" for i in (0, 1, 2, 3, 4, 4)]), index=list("abcdef"))


def measured(tiles, groups): return {g: pd.DataFrame(dict(value=[int(s, 16)*2. for s in tiles.sha256], word=list(tiles.sha256)), tiles.index) for g in groups}


def cached(folder): return compute_table_rows(folder, dict(group=dict(version=1)), TILES, measured, block=2)["group"]


@examples(80)
@given(data=st.data())
def test_cache(data, tmp_path_factory):
    "Whatever happens to a cache, the values are right, twice in a row."
    cache_dir = tmp_path_factory.mktemp("cache")
    good = cached(cache_dir)
    parts = sorted((cache_dir/json_digest(dict(version=1))).iterdir())
    for _ in range(data.draw(st.integers(1, 3))):
        part, how = data.draw(st.sampled_from(parts)), data.draw(st.sampled_from(["damage", "damage", "gone", "renamed", "another's", "foreign", "settings", "empty"]))
        if how == "foreign": (part.parent/"foreign.parquet").write_bytes(data.draw(st.binary(max_size=20)))
        elif not part.exists(): continue
        elif how == "damage": part.write_bytes(data.draw(damaged(part.read_bytes())))
        elif how == "gone": part.unlink()
        elif how == "renamed": part.rename(part.with_name(f"{'0'*16}.parquet"))
        elif how == "another's": part.write_bytes(parts[0].read_bytes() if parts[0].exists() else b"")
        elif how == "settings": (part.parent/"settings.json").write_text(data.draw(st.text(max_size=10)))
        elif how == "empty": part.write_bytes(b"")
    for _ in range(2): pd.testing.assert_frame_equal(tried(lambda: cached(cache_dir)), good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(cached(cache_dir), good)                # and nothing is left to be reported
    assert set(_RowCache(cache_dir, dict(version=1)).load().index) == set(TILES.sha256)


# Run folders.

def run_folder(folder, **settings):
    "A run folder that is complete but for its training: a network as it was drawn."
    import torch
    from osteonb.models.backbone import make_backbone
    from osteonb.models.checkpoint import save_model
    from osteonb.models.fusion import TrainedModel, make_network
    from osteonb.models.scaling import fit_scaler
    random = np.random.default_rng(0)
    config = configure(width=8, gate_width=4, feature_scaling="rank", test_group="C", backbone="test_efficientnet", pretrained_weights="none", image_size=32, **settings)
    index = pd.Index([f"t{i}" for i in range(12)], name="tile")
    paths = [folder.parent/f"{t}.png" for t in index]
    for path in paths: Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    sums = [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
    tiles = pd.DataFrame(dict(path=[str(p) for p in paths], patient=list("AAAABBBBCCCC"), slide=list("aabbccddeeff"), x=0., y=0., label=list(CLASSES)*4, cohort="own", sha256=sums), index)
    folds = pd.DataFrame(dict(fold="C", part=["train"]*4 + ["valid"]*4 + ["test"]*4), index)
    features = None if config.model.modality == "image" else pd.DataFrame(random.normal(size=(12, 4)), index, ["f1", "f2", "f3", "f4"])
    s = None if features is None else fit_scaler(features, index[:4], "rank")
    torch.manual_seed(0)
    backbone = make_backbone(config)
    trained = TrainedModel(config, make_network(config, backbone, s).eval(), s, backbone)
    write_json(config.to_dict(), folder/"config.json")
    tables = {k: v for k, v in {"tiles.parquet": tiles, "folds.parquet": folds, "features.parquet": features}.items() if v is not None}
    for name, table in tables.items(): write_table(table, folder/name)
    save_model(trained, folder, tables)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "One that looks at features alone."
    return run_folder(tmp_path_factory.mktemp("good")/"run", modality="radiomics")


@pytest.fixture(scope="module", params=[dict(modality="radiomics"), dict(), dict(modality="image", freeze_backbone=False)], ids=["radiomics", "fusion", "image, trained along"])
def any_run(request, tmp_path_factory):
    "One of each kind."
    return run_folder(tmp_path_factory.mktemp("any")/"run", **request.param)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSTEONB_CACHE", str(tmp_path_factory.mktemp("cache")))
        worker = Worker("experiment")
    yield worker
    worker.process.kill()
    worker.process.wait()


READ = ["config.json", "tiles.parquet", "folds.parquet", "features.parquet", "scaler.json", "model.safetensors"]


@examples(130)
@given(data=st.data())
def test_run_folder(data, any_run, runner, tmp_path_factory):
    "A run with a file that is damaged, cut off, absent or another's predicts what it did, or says which file it is."
    folder = tmp_path_factory.mktemp("runs")/"run"
    shutil.copytree(any_run, folder)
    good = runner("predicted", any_run)
    read = [name for name in READ if (folder/name).exists()]
    name, how = data.draw(st.sampled_from(read)), data.draw(st.sampled_from(["damage", "damage", "damage", "gone", "another's", "text", "folder", "fewer columns", "other rows", "json"]))
    file = folder/name
    if how == "damage": file.write_bytes(data.draw(damaged(file.read_bytes())))
    elif how == "another's": shutil.copy(folder/data.draw(st.sampled_from(read)), file.with_name("copy")); os.replace(file.with_name("copy"), file)
    elif how == "text": file.write_bytes(data.draw(st.binary(max_size=20)))
    elif how == "json" and name.endswith(".json"): file.write_text(json.dumps(data.draw(altered(read_json(file)))))
    elif how in ("gone", "folder"): file.unlink(); how == "folder" and file.mkdir()
    elif name.endswith(".parquet") and how in ("fewer columns", "other rows"):
        table = pd.read_parquet(file)
        write_table(table.drop(columns=data.draw(st.sampled_from(list(table)))) if how == "fewer columns" else data.draw(st.sampled_from([table[::-1], table[3:], table.rename(index=str.upper), pd.concat([table, table]), table.reset_index(drop=True), table[:0]])), file)
    said = runner("predicted", folder, names=("setting", "preset", "features: ", "weights", "backbone", ".png"))
    if said is REFUSED: return
    if name in ("config.json", "features.parquet", "tiles.parquet") and how in ("json", "other rows", "damage"): return     # other settings, other tiles: a good run of its own
    assert json.loads(said) == json.loads(good)


STANDARDISER = dict(mean=dict(f1=0., f2=0.), std=dict(f1=1., f2=2.), constant=["f3"], unselected=[], quantiles=None)
DAMAGED = {"mean is a list": dict(mean=[0, 0]), "mean is a number": dict(mean=3), "mean is a word": dict(mean="abc"), "mean of nothing": dict(mean=dict(f1=None, f2=0.)), "mean is words": dict(mean=dict(f1="a", f2="b")), "std of other features": dict(std=dict(f1=1., f9=2.)),
           "std of one less": dict(std=dict(f1=1.)), "std of zero": dict(std=dict(f1=0., f2=1.)), "std below zero": dict(std=dict(f1=-1., f2=1.)), "std of nothing": dict(std=dict(f1=None, f2=1.)), "constant is a number": dict(constant=3), "constant is a word": dict(constant="f3"),
           "constant holds a list": dict(constant=[[]]), "unselected is a number": dict(unselected=3), "quantiles are a list": dict(quantiles=[1]), "quantiles are a number": dict(quantiles=3), "quantiles too few": dict(quantiles=dict(f1=[1], f2=[2])),
           "quantiles of one less": dict(quantiles=dict(f1=[0.]*101)), "quantiles of words": dict(quantiles=dict(f1=["a"]*101, f2=["b"]*101)), "quantiles that fall": dict(quantiles=dict(f1=[float(-i) for i in range(101)], f2=[0.]*101)), "mean beyond all numbers": dict(mean=dict(f1=10**400, f2=0.))}


@pytest.mark.parametrize("what", DAMAGED)
def test_standardiser_refused(what, tmp_path):
    from osteonb.models.checkpoint import _read_scaler
    (tmp_path/"scaler.json").write_text(json.dumps({**STANDARDISER, **DAMAGED[what]}))
    assert tried(lambda: _read_scaler(tmp_path/"scaler.json"), "scaler.json") is REFUSED


def test_weights_with_a_flipped_bit(run, tmp_path):
    "Every byte of the file counts: names, shapes and numbers."
    import torch
    from osteonb.models.checkpoint import load_model
    folder = tmp_path/"run"
    shutil.copytree(run, folder)
    good = load_model(folder).net.state_dict()
    whole = (folder/"model.safetensors").read_bytes()
    for at in range(0, len(whole), max(1, len(whole)//100)):
        (folder/"model.safetensors").write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at+1:])
        read = tried(lambda: load_model(folder), "model.safetensors", "scaler.json")
        assert read is REFUSED or all(torch.equal(v, good[k]) for k, v in read.net.state_dict().items()), at


@pytest.mark.parametrize("name", ["tiles.parquet", "folds.parquet", "features.parquet"])
def test_table_with_a_flipped_bit(name, run, worker, tmp_path):
    "What is read under a name that was written is what was written; a name that changed is a column that lacks."
    def columns(said):
        table = json.loads(said)
        return {c: [row[i] for row in table["data"]] for i, c in enumerate(table["columns"]) if table["columns"].count(c) == 1}
    whole, file = (run/name).read_bytes(), tmp_path/name
    good = columns(worker("table", run/name))
    for at in range(0, len(whole), max(1, len(whole)//100)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at+1:])
        said = worker("table", file)
        assert said is REFUSED or all(values == good.get(c, values) for c, values in columns(said).items()), at


@pytest.mark.parametrize("name, change", {"tiles.parquet": lambda t: t.drop(columns="label"), "folds.parquet": lambda t: t.drop(columns="part"), "features.parquet": lambda t: t[2:]}.items(), ids=["tiles without labels", "folds without parts", "features of fewer tiles"])
def test_run_with_another_table(name, change, run, runner, tmp_path):
    shutil.copytree(run, tmp_path/"run")
    write_table(change(pd.read_parquet(run/name)), tmp_path/"run"/name)
    assert runner("predicted", tmp_path/"run") is REFUSED


# Predictions that are handed to evaluate.

def predictions():
    random = np.random.default_rng(0)
    p = random.dirichlet([1, 1, 1], 24)
    table = pd.DataFrame(p, [f"t{i}" for i in range(24)], list(PROBABILITY_COLUMNS)).rename_axis("tile")
    return table.assign(fold="C", seed=0, part=["valid"]*9 + ["test"]*15, patient=["A"]*9 + ["C"]*15, slide="s", label=list(CLASSES)*8)


VALUES = [None, math.nan, math.inf, -1., 2., 1e308, 0, 1, True, "", "test", "valid", "train", "viable", "Viable", "A", b"x", (1, 2), pd.NA, pd.NaT, pd.Timestamp(0), 10**400, 1j]
KINDS = [object, "string", "category", "Float64", "float32", "float16", "complex128", "boolean", bool, "Int64", "datetime64[ns]"]


@st.composite
def wrong_predictions(draw):
    "A table of predictions, with something wrong in cells, columns, rows, types or index."
    t = predictions()
    for _ in range(draw(st.integers(1, 3))):
        how, c, i = draw(st.sampled_from(["cell", "cell", "column", "gone", "twice", "type", "rows", "index", "again", "name"])), draw(st.sampled_from(list(t) or ["fold"])), draw(st.integers(0, max(0, len(t) - 1)))
        if c not in t or not isinstance(t[c], pd.Series): continue
        if how == "cell" and len(t): t[c] = pd.Series([*t[c][:i], draw(st.sampled_from(VALUES)), *t[c][i+1:]], t.index, dtype=object).infer_objects()
        elif how == "column": t[c] = pd.Series([draw(st.sampled_from(VALUES))]*len(t), t.index, dtype=object).infer_objects()
        elif how == "gone": t = t.drop(columns=c)
        elif how == "twice": t = pd.concat([t, t[[c]]], axis=1)
        elif how == "rows": t = t[draw(st.sampled_from([slice(0), slice(9), slice(9, None), slice(0, 1), slice(9, 10), slice(None, None, -1), slice(0, None, 3)]))]
        elif how == "index": t.index = draw(st.sampled_from([[math.nan]*len(t), [0]*len(t), pd.MultiIndex.from_arrays([range(len(t))]*2), range(len(t))]))
        elif how == "again": t = pd.concat([t, t.iloc[i:i+1]])
        elif how == "name": t = t.rename(columns={c: draw(st.sampled_from([str(c).upper(), "", 0, "label"]))})
        elif how == "type":
            with contextlib.suppress(Exception): t = t.astype({c: draw(st.sampled_from(KINDS))})
    return t


@examples(150)
@given(table=wrong_predictions())
def test_predictions(table):
    "Every figure is a number in its range or says why not, and accuracy is what a count gives."
    metrics = tried(lambda: evaluate(table), "predictions")
    if metrics is REFUSED: return
    assert tried(lambda: _evaluate_per_patient(table)) is not REFUSED
    assert (metrics.value.isna() == (metrics.reason != "")).all() and ((metrics.value >= 0) | metrics.value.isna()).all() and np.isfinite(metrics.value.dropna()).all()
    test = table[table.part == "test"]
    found = metrics[(metrics.scope == "classes") & (metrics.metric == "accuracy")].value.iloc[0]
    if not math.isnan(found): assert math.isclose(found, np.mean([CLASSES[int(np.argmax([float(r[p]) for p in PROBABILITY_COLUMNS]))] == r.label for _, r in test.iterrows()]))


@examples(100)
@given(data=damaged(predictions().to_csv().encode()))
def test_damaged_predictions(data, tmp_path_factory):
    "From a CSV whose bytes are damaged."
    from osteonb.core.files import read_table
    file = tmp_path_factory.mktemp("predictions")/"p.csv"
    file.write_bytes(data)
    metrics = tried(lambda: evaluate(read_table(file)), "p.csv", "predictions")
    if metrics is not REFUSED: assert (metrics.value.isna() == (metrics.reason != "")).all()
