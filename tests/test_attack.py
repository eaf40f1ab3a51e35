"""Hostile files, names and machines: every attempt ends in one clear line, or does no harm and gives the right numbers.

Each attempt is counted by its kind; the last test prints the counts. *Silent* would be a wrong number, code or a script
of the attacker that ran, or a file outside of the folders that were named. There must be none.
"""

import contextlib
import html.parser
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbconvert.filters import markdown2html
from PIL import Image

from osteonb.core import cache, files
from osteonb.core.cache import compute_array_rows, compute_table_rows
from osteonb.core.config import read_config
from osteonb.core.errors import InputError
from osteonb.core.files import read_table, write_table
from osteonb.core.runs import Run
from osteonb.data.images import _check_image, read_tile
from osteonb.data.leakage import audit
from osteonb.data.tiles import read_tiles, read_unlabeled_tiles
from osteonb.experiments.fixtures import small_run
from osteonb.experiments import pipeline
from osteonb.experiments.grid import read_grid
from osteonb.experiments.grid_runs import run_grid
from osteonb.experiments.pipeline import predict_run
from osteonb.explain import explain_tiles
from osteonb.models.backbone import make_backbone
from osteonb.models.checkpoint import load_model, provenance_warnings
from osteonb.radiomics.masked_images import extract_masked
from osteonb.radiomics.parameters import read_parameters
from osteonb.reports.audit_page import audit_report
from osteonb.reports.model_card import write_model_card
from osteonb.reports.run_page import run_report
from osteonb.slides.analysis import analyze_slide
from osteonb.slides.reader import open_slide
from osteonb.slides.tiling import _make_cell_grid, _read_overview
from osteonb.synthetic.fixtures import small_cohort
from osteonb.synthetic.slides import draw_slide

SECONDS = 30  # that an attempt may take
ROOM = 4 * 2**30  # bytes of address space that an attempt may add
LONGEST_LINE = 10_000  # characters of a message
COUNTS: dict[str, Counter] = {}  # kind -> how often tried, refused, harmless, silent
few = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


# The referee.


@contextlib.contextmanager
def limits():
    "Bound the time and the memory of an attempt."

    def late(*_):
        raise AssertionError(f"takes more than {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def is_clear(text):
    "Return whether a message is one line without control characters; lists of rows may follow, indented."
    first, *rows = text.split("\n")
    is_list = all(row.startswith("  ") for row in rows)
    return is_list and all(len(line) <= LONGEST_LINE and line.isprintable() for line in (first, *rows))


def attempt(kind, call, is_right=lambda result: False):
    "Count how an attempt ends; fail where it is neither refused in one clear line nor harmless."
    counts = COUNTS.setdefault(kind, Counter())
    counts["tried"] += 1
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call()
        except (InputError, OSError) as error:
            assert isinstance(error, InputError) or type(error).__module__ == "builtins", repr(error)
            assert is_clear(str(error)), f"no clear line: {str(error)[:2000]!r}"
            counts["refused"] += 1
            return
    if not is_right(result):
        counts["silent"] += 1
        raise AssertionError(f"{kind}: accepted, and not right: {str(result)[:500]}")
    counts["harmless"] += 1


def refused(kind, call):
    "Count an attempt that has to be refused."
    attempt(kind, call)
    return True


def apart(call):
    "Return a call that works in a forked process, for libraries in C that may end their process."
    fork = multiprocessing.get_context("fork")

    def answer(sender):
        with limits():
            try:
                sender.send((call(), None))
            except Exception as error:
                sender.send((None, error))

    def call_apart():
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=answer, args=(sender,))
        child.start()
        sender.close()
        try:
            result, error = receiver.recv()
        except EOFError:
            result, error = None, AssertionError("the process died")
        child.join()
        if error is not None:
            raise error
        return result

    return call_apart


class Trap:
    "Make a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def trap(tmp_path):
    "Give an object that betrays whoever unpickles it, and check that nobody did."
    sprung = tmp_path / "sprung"
    yield Trap(sprung)
    assert not sprung.exists(), "the code of a pickle was run"


@pytest.fixture(scope="module")
def run():
    "Return a small finished run; read-only."
    return small_run()


@pytest.fixture
def own_run(run, tmp_path):
    "Return a copy of the small run that may be changed."
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def good(run):
    "Return what the small run predicts."
    return predict_run(run)


def noise(seed=0, side=16):
    "Return the pixels of a tile."
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encode(pixels, kind="PNG", **how):
    "Return an image file's bytes."
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **how)
    return data.getvalue()


# Pictures.


def chunk(kind, data):
    "Return a chunk of a PNG."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, lines=b"", *more, depth=8, color=2, interlaced=0):
    "Return a PNG of lines that are compressed already."
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", lines), chunk(b"IEND", b"")])


def zeros(n_bytes):
    "Return so many zeros, compressed."
    pack = zlib.compressobj(1)
    piece = bytes(2**20)
    parts = [pack.compress(piece) for _ in range(n_bytes // 2**20)]
    return b"".join([*parts, pack.compress(bytes(n_bytes % 2**20)), pack.flush()])


def tiff(tags, pixels=bytes(768)):
    "Return a little-endian TIFF: tag -> (type, count, value or offset)."
    entries = [struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items())]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
    return head + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


PLAIN_TIFF = {256: (3, 1, 16), 257: (3, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2)}
PLAIN_TIFF |= {273: (4, 1, 8), 277: (3, 1, 3), 278: (3, 1, 16), 279: (4, 1, 768)}


def lying_jpeg(width, height):
    "Return a JPEG of 16 x 16 pixels whose header states another size."
    data = encode(noise(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def many_scans(n):
    "Return a progressive JPEG whose last scan is repeated."
    data = encode(noise(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * n + data[-2:]


def zip_of(name, data):
    "Return a zip file with one highly compressed member."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


SVG = b"""<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY x SYSTEM "file:///etc/passwd">]>
<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"><script>alert(1)</script><text>&c;&x;</text></svg>"""
BOMBS = {
    "PNG that claims 60000 x 60000": png(60000, 60000, zeros(1000)),
    "PNG that claims 2^31 x 1": png(2**31 - 1, 1),
    "PNG of 20000 x 20000 in one bit": png(20000, 20000, zeros(2501 * 20000), depth=1, color=0),
    "PNG of 5000 x 5000": png(5000, 5000, zeros(15001 * 5000)),
    "PNG of 13000 x 13000, interlaced and cut off": png(13000, 13000, zeros(10**6), interlaced=1),
    "PNG followed by a gigabyte of zeros": png(16, 16, zeros(2**30)),
    "PNG with 64 MiB of packed text": png(16, 16, zeros(784), chunk(b"zTXt", b"a\0\0" + zeros(2**26))),
    "PNG with a packed color profile": png(16, 16, zeros(784), chunk(b"iCCP", b"a\0\0" + zeros(2**28))),
    "TIFF that claims 60000 x 60000": tiff(PLAIN_TIFF | {256: (4, 1, 60000), 257: (4, 1, 60000)}),
    "TIFF that claims 13000 x 13000": tiff(PLAIN_TIFF | {256: (4, 1, 13000), 257: (4, 1, 13000)}),
    "TIFF, deflated, of a gigabyte": tiff(PLAIN_TIFF | {259: (3, 1, 8), 279: (4, 1, 10**6)}, zeros(2**30)),
    "TIFF with 2^32 strips": tiff(PLAIN_TIFF | {273: (4, 2**32 - 1, 8), 279: (4, 2**32 - 1, 8)}),
    "TIFF with 65535 samples": tiff(PLAIN_TIFF | {277: (3, 1, 65535)}),
    "TIFF whose strip lies beyond its end": tiff(PLAIN_TIFF | {273: (4, 1, 2**31)}),
    "TIFF that is its own next page": struct.pack("<2sHIHI", b"II", 42, 8, 0, 8),
    "JPEG that claims 65535 x 65535": lying_jpeg(65535, 65535),
    "JPEG that claims 5000 x 5000": lying_jpeg(5000, 5000),
    "JPEG that claims 0 x 0": lying_jpeg(0, 0),
    "JPEG of 2000 scans": many_scans(2000),
}
DISGUISED = {
    "SVG": SVG,
    "zip": zip_of("tile.png", bytes(10**7)),
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n(%pipe%id) (r) file\n%%EOF\n",
    "PDF": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n",
    "pickle": pickle.dumps(dict(a=1)),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(6) + zeros(10**7),
}


def as_pillow_reads(path):
    "Return a check that an array is what Pillow makes of a file."

    def is_right(array):
        Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
        try:
            return np.array_equal(array, np.asarray(Image.open(path)))
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    return is_right


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name, tmp_path):
    for suffix in (".png", ".jpg", ".tif"):
        path = tmp_path / f"tile{suffix}"
        path.write_bytes(BOMBS[name])
        attempt("decompression bombs", lambda: read_tile(path), as_pillow_reads(path))

        def is_right(found):
            return bool(found["reason"]) or read_tile(path).shape == (16, 16, 3)

        attempt("decompression bombs", lambda: _check_image(path, 16), is_right)


@pytest.mark.parametrize("name", DISGUISED)
def test_what_is_no_picture(name, tmp_path):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for suffix in (".png", ".jpg", ".tif"):
        path = folder / f"tile{suffix}"
        path.write_bytes(DISGUISED[name])
        refused("SVG, zip and others as pictures", lambda: read_tile(path))
        shutil.copy(path, tmp_path / "slide.svs")
        refused("SVG, zip and others as pictures", lambda: open_slide(tmp_path / "slide.svs", 0.5))
        refused("SVG, zip and others as pictures", lambda: open_slide(path, 0.5))
    refused("SVG, zip and others as pictures", lambda: read_unlabeled_tiles(folder, 16, 1))


VOLUMES = {
    "image.mha": b"ObjectType = Image\nNDims = 2\nDimSize = 2000000 2000000\n"
    b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(100),
    "image.nrrd": b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2000000 2000000\nencoding: gzip\n\n" + zeros(1000),
    "image.nii": struct.pack("<i", 348) + bytes(36) + struct.pack("<8h", 2, 32767, 32767, 1, 1, 1, 1, 1) + bytes(292),
    "image.mhd": b"ObjectType = Image\nNDims = 2\nDimSize = 16 16\n"
    b"ElementType = MET_UCHAR\nElementDataFile = ../absent.raw\n",
}


@pytest.mark.parametrize("name", VOLUMES)
def test_lying_medical_images(name, tmp_path):
    (tmp_path / name).write_bytes(VOLUMES[name])
    Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "list.csv").write_text(f"Image,Mask\n{name},mask.png\n")
    refused("decompression bombs", lambda: extract_masked(tmp_path / "list.csv"))


# Slides.


def entry(tag, kind, count, value):
    "Return an entry of a TIFF's directory."
    return struct.pack("<HHII", tag, kind, count, value)


def page(width, height, side, *more, following=0, pixels=b"", at=8):
    "Return a directory of a tiled TIFF at a place in the file, its one tile and its resolution before it."
    where = at + 16
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2)}
    entries |= {277: (3, 1, 3), 282: (5, 1, at), 283: (5, 1, at + 8), 296: (3, 1, 3)}
    entries |= {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, where), 325: (4, 1, len(pixels))}
    entries |= dict(more)
    directory = b"".join(entry(tag, *value) for tag, value in sorted(entries.items()))
    scale = struct.pack("<IIII", 10000, 1, 10000, 1)  # 1 µm a pixel
    body = scale + pixels + struct.pack("<H", len(entries)) + directory + struct.pack("<I", following)
    return struct.pack("<2sHI", b"II", 42, at + 16 + len(pixels)) + body


TILE = bytes(range(256)) * 3  # 16 x 16 pixels
LIES = {
    "of 2^31 pixels": page(2**31 - 1, 2**31 - 1, 16, pixels=TILE),
    "of 400000 x 400000 pixels": page(400000, 400000, 16, pixels=TILE),
    "of no width": page(0, 16, 16, pixels=TILE),
    "with tiles of no side": page(16, 16, 0, pixels=TILE),
    "with tiles of 2^31 pixels": page(2**31 - 1, 2**31 - 1, 2**31 - 1, pixels=TILE),
    "with a tile beyond the end": page(16, 16, 16, (324, (4, 1, 2**31)), pixels=TILE),
    "with a tile of 4 GB": page(16, 16, 16, (325, (4, 1, 2**32 - 1)), pixels=TILE),
    "with 2^32 tiles": page(4096, 4096, 16, (324, (4, 2**32 - 1, 8)), (325, (4, 2**32 - 1, 8)), pixels=TILE),
    "with 65535 samples": page(16, 16, 16, (277, (3, 1, 65535)), pixels=TILE),
    "with a text as its width": page(16, 16, 16, (256, (2, 4, 0x41414141)), pixels=TILE),
    "with a text as its unit": page(16, 16, 16, (296, (2, 4, 0x41414141)), pixels=TILE),
    "with a text as its resolution": page(16, 16, 16, (282, (2, 4, 0x41414141)), pixels=TILE),
    "with a whole number as its resolution": page(16, 16, 16, (282, (4, 1, 7)), pixels=TILE),
    "with many resolutions": page(16, 16, 16, (282, (5, 1000, 8)), pixels=TILE),
    "with a resolution of 0/0": page(16, 16, 16, (282, (5, 1, 100000)), pixels=TILE),
    "with an unknown compression": page(16, 16, 16, (259, (3, 1, 65000)), pixels=TILE),
    "with JPEG that is none": page(16, 16, 16, (259, (3, 1, 7)), pixels=TILE),
    "whose next page is itself": page(16, 16, 16, following=24 + len(TILE), pixels=TILE),
    "whose next page lies beyond its end": page(16, 16, 16, following=2**31, pixels=TILE),
    "with itself as its pyramid": page(16, 16, 16, (330, (4, 1, 24 + len(TILE))), pixels=TILE),
    "with a bomb as its description": page(16, 16, 16, (270, (2, len(SVG), 24)), pixels=SVG + TILE),
    "with 4 GB of description": page(16, 16, 16, (270, (2, 2**32 - 1, 8)), pixels=TILE),
    "cut off": page(16, 16, 16, pixels=TILE)[:-30],
    "of nothing": b"",
    "BigTIFF of nothing": b"II\x2b\0\x08\0\0\0" + b"\xff" * 8,
}


def look_at(path):
    "Open a slide and read all that is read of it before any tile."
    slide = open_slide(path)
    grid = _make_cell_grid(slide, 8.0)
    with contextlib.suppress(InputError):  # a piece may be damaged
        assert slide.read(0, 0, 0, 16, 16).shape == (16, 16, 3)
    return _read_overview(slide, grid), grid


def is_overview(result):
    "Return whether an overview has the size that its grid states."
    picture, grid = result
    return picture.shape == (16 * grid.rows, 16 * grid.columns, 3)


@pytest.mark.parametrize("name", LIES)
def test_lying_slides(name, tmp_path):
    for suffix in (".tif", ".svs"):
        path = tmp_path / f"slide{suffix}"
        path.write_bytes(LIES[name])
        attempt("lying slides", apart(lambda: look_at(path)), is_overview)


HONEST = page(64, 64, 64, pixels=bytes(range(256)) * 48)


def test_an_honest_slide(tmp_path):
    (tmp_path / "slide.tif").write_bytes(HONEST)
    assert is_overview(look_at(tmp_path / "slide.tif"))


@few
@given(
    at=st.integers(0, 13 * 12 - 1).map(lambda n: len(HONEST) - 4 - n),
    value=st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]),
    width=st.integers(1, 4),
)
def test_slides_with_lying_entries(at, value, width, tmp_path_factory):
    data = HONEST[:at] + bytes([value]) * width + HONEST[at + width :]
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    path.write_bytes(data)
    attempt("lying slides", apart(lambda: look_at(path)), is_overview)


# Weights.


def safetensors(header, data=b"", length=None):
    "Return a safetensors file: the header's length, the header, the data."
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, start, end, dtype="F32"):
    "Return what a header says of a tensor."
    return dict(dtype=dtype, shape=shape, data_offsets=[start, end])


WEIGHTS = {
    "a header of 2^63 bytes": safetensors({}, length=2**63),
    "a header of 99 MB": safetensors(b'{"a":"' + b" " * 99_000_000 + b'"}'),
    "a header of 200 MB": safetensors(b"{" + b" " * 200_000_000 + b"}"),
    "a header of 100000 brackets": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a header of many tensors": safetensors({f"t{i}": tensor([0], 0, 0) for i in range(20_000)}),
    "a tensor of 2^63 numbers": safetensors(dict(a=tensor([2**31, 2**32], 0, 4)), bytes(4)),
    "a tensor beyond the end": safetensors(dict(a=tensor([2**30], 0, 2**32)), bytes(4)),
    "a tensor that ends before it begins": safetensors(dict(a=tensor([1], 4, 0)), bytes(4)),
    "a tensor of a negative size": safetensors(dict(a=tensor([-1], 0, 4)), bytes(4)),
    "two tensors at one place": safetensors(dict(a=tensor([1], 0, 4), b=tensor([1], 0, 4)), bytes(4)),
    "a hole between two tensors": safetensors(dict(a=tensor([1], 0, 4), b=tensor([1], 8, 12)), bytes(12)),
    "an unknown type": safetensors(dict(a=tensor([1], 0, 4, "OBJECT")), bytes(4)),
    "the same name twice": safetensors(b'{"a":1,"a":2}'),
    "no JSON": safetensors(b"\xff\xfe"),
    "digests of 100000 brackets": safetensors({"__metadata__": dict(inputs="[" * 100_000)}),
    "digests that are a number": safetensors({"__metadata__": dict(inputs="3")}),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_lying_weights(name, own_run, tmp_path):
    (own_run / "model.safetensors").write_bytes(WEIGHTS[name])
    refused("lying safetensors", lambda: load_model(own_run))
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(WEIGHTS[name])
    config = Run(own_run).config.replace(pretrained_weights=str(path))
    refused("lying safetensors", lambda: make_backbone(config))


@few
@given(at=st.floats(0, 0.999), value=st.sampled_from([0, 0xFF, ord("9"), ord("["), ord('"')]), width=st.integers(1, 8))
def test_weights_with_a_changed_header(at, value, width, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "run"
    shutil.copytree(run, folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n_header = 8 + struct.unpack("<Q", data[:8])[0]
    start = int(at * n_header)
    path.write_bytes(data[:start] + bytes([value]) * width + data[start + width :])
    expected = load_model(run).net.state_dict()

    def is_right(found):
        state = found.net.state_dict()
        return all(torch.equal(state[name], values) for name, values in expected.items())

    attempt("lying safetensors", lambda: load_model(folder), is_right)


def pickles(trap):
    "Return a trap in every wrapping: file's name -> bytes."
    torch.save(trap, whole := io.BytesIO())
    torch.save(trap, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    np.save(array := io.BytesIO(), np.array([trap], dtype=object), allow_pickle=True)
    joblib.dump(trap, dumped := io.BytesIO())
    files = dict(pickle=pickle.dumps(trap), torch=whole.getvalue(), old=old.getvalue())
    return files | dict(numpy=array.getvalue(), joblib=dumped.getvalue())


def test_pickles_as_weights(trap, own_run, tmp_path):
    for wrapping, data in pickles(trap).items():
        for name in ("weights.pt", "pytorch_model.bin", "weights.pkl", "weights.safetensors"):
            path = tmp_path / name
            path.write_bytes(data)
            config = Run(own_run).config.replace(pretrained_weights=str(path))
            refused("pickles", lambda: make_backbone(config))
        (own_run / "model.safetensors").write_bytes(data)
        refused("pickles", lambda: load_model(own_run))
        for name in ("config.json", "scaler.json", "tiles.parquet", "folds.parquet", "features.parquet"):
            shutil.copytree(small_run(), folder := tmp_path / f"{wrapping} as {name}")
            (folder / name).write_bytes(data)
            refused("pickles", lambda: predict_run(folder))


def test_pickles_as_checkpoints(trap, own_run):
    "A run that was sent unfinished is resumed from its checkpoints."
    from osteonb.experiments.pipeline import train_run

    (own_run / "model.safetensors").unlink()
    (own_run / "checkpoints").mkdir()
    for data in pickles(trap).values():
        for name in ("last.ckpt", "best.ckpt"):
            (own_run / "checkpoints" / name).write_bytes(data)
        refused(
            "pickles", lambda: train_run(own_run, Run(own_run).config, small_cohort(0.25, 64), own_run / "cache", 1)
        )


def table_rows(tiles, groups):
    "Compute what the cache keeps in these tests: a number made from each digest."
    return {
        group: pd.DataFrame(dict(value=[int(d[:8], 16) * 2.0 for d in tiles.sha256]), tiles.index) for group in groups
    }


def array_rows(tiles):
    "Compute an array for each tile."
    return np.array([[int(digest[:8], 16) + i for i in range(64)] for digest in tiles.sha256], dtype=float)


CACHED = pd.DataFrame(dict(sha256=[f"{i * 7919:08x}".ljust(64, "0") for i in range(40)])).rename(index=str)


def cached_table(folder):
    "Return the table through a cache."
    return compute_table_rows(folder, dict(group=dict(version=1)), CACHED, table_rows, 7)["group"]


def cached_array(folder):
    "Return the arrays through a cache."
    return compute_array_rows(folder, dict(version=1), CACHED, array_rows, 7)[list(range(len(CACHED)))]


def is_table(table):
    "Return whether a table through the cache is right."
    return table.equals(table_rows(CACHED, ["group"])["group"])


def is_array(array):
    "Return whether arrays through the cache are right."
    return np.array_equal(array, array_rows(CACHED))


def test_pickles_in_the_cache(trap, tmp_path):
    for suffix, read, is_right in (("npy", cached_array, is_array), ("parquet", cached_table, is_table)):
        read(tmp_path / suffix)
        [folder] = (tmp_path / suffix).iterdir()
        for data in pickles(trap).values():
            part = folder / f"{cache._part_digest(data)}.{suffix}"
            part.write_bytes(data)
            attempt("pickles", lambda: read(tmp_path / suffix), is_right)
            part.unlink(missing_ok=True)


# Text files.


DEEP = 100_000
HOSTILE_JSON = {
    "brackets": "[" * DEEP,
    "nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "closed brackets": "[" * DEEP + "]" * DEEP,
    "a number of 100000 digits": '{"seed": ' + "1" * DEEP + "}",
    "a list of a million numbers": "[" + "0," * 10**6 + "0]",
    "a text of 20 MB": '{"preset": "' + "a" * (20 * 2**20) + '"}',
    "half a million keys": "{" + ",".join(f'"k{i}": 0' for i in range(500_000)) + "}",
    "numbers that are none": '{"lr": NaN, "seed": Infinity}',
    "half a surrogate": '{"preset": "\\ud800"}',
    "NUL": '{"preset": "\\u0000"}\0',
    "a text": '"quick"',
    "nothing": "",
    "null": "null",
    "an escape sequence": '{"preset": "\x1b[2J"}',
}


def same_predictions(good):
    "Return a check that predictions are those of the untouched run."
    columns = ["p_non_tumor", "p_non_viable", "p_viable"]
    return lambda found: np.array_equal(found[columns].to_numpy(), good.loc[found.index, columns].to_numpy())


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json(name, own_run, good, tmp_path):
    def put(file):
        "Write the hostile text in the place of a file, and the file of before back."
        if previous:
            (own_run / previous[0]).write_bytes(previous[1])
        previous[:] = file, (own_run / file).read_bytes()
        (own_run / file).write_text(HOSTILE_JSON[name])

    previous = []
    put("made_with.json")
    attempt("JSON", lambda: provenance_warnings(own_run), lambda found: all(map(str.isprintable, found)))
    attempt("JSON", lambda: predict_run(own_run), same_predictions(good))
    put("metrics.json")
    attempt(
        "JSON",
        lambda: Run(own_run).metrics,
        lambda found: found == json.loads(HOSTILE_JSON[name]) or "nan" in str(found),
    )
    put("scaler.json")
    refused("JSON", lambda: predict_run(own_run))
    put("config.json")
    refused("JSON", lambda: predict_run(own_run))
    refused("JSON", lambda: run_report(own_run))
    (own_run / "manifest.json").write_text(HOSTILE_JSON[name])
    refused("JSON", lambda: predict_run(own_run))
    (tmp_path / "settings.json").write_text(HOSTILE_JSON[name])
    refused("JSON", lambda: read_config(tmp_path / "settings.json"))


@pytest.mark.parametrize("name", ["brackets", "a list of a million numbers", "null"])
def test_json_in_a_card(name, own_run):
    (own_run / "made_with.json").write_text(HOSTILE_JSON[name])
    refused("JSON", lambda: write_model_card(own_run))


@few
@given(
    name=st.sampled_from(["versions", "data"]),
    value=st.sampled_from([None, 3, "x", [], [1], {"torch": []}, {"../../../etc/passwd": "0"}, {"tiles.parquet": 3}]),
)
def test_odd_provenance(name, value, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    shutil.copytree(run, folder)
    made_with = json.loads((folder / "made_with.json").read_text()) | {name: value}
    (folder / "made_with.json").write_text(json.dumps(made_with))
    attempt("JSON", lambda: provenance_warnings(folder), lambda found: isinstance(found, list))


HOSTILE_TOML = {
    "brackets": "a = " + "[" * DEEP,
    "tables within tables": "a = " + "{a=" * DEEP,
    "a key of 20000 parts": "a" + ".a" * 20_000 + " = 1",
    "a table of 20000 parts": "[a" + ".a" * 20_000 + "]",
    "10000 tables": "\n".join(f"[variants.v{i}]" for i in range(10_000)),
    "a number of 100000 digits": "folds = " + "1" * DEEP,
    "seeds by the million": "seeds = [" + ", ".join(map(str, range(10**6))) + "]",
    "draws without end": "draws = 1000000000000",
    "a date": "name = 1979-05-27",
    "a script": "name = '<script>'\n[variants.'../../x']\nhead = '<script>'",
    "an escape sequence": 'name = "\\u001b[2J"',
    "not UTF-8": "name = '\udcff'",
    "the same table twice": "[variants.a]\n[variants.a]",
}


@pytest.mark.parametrize("name", HOSTILE_TOML)
def test_toml(name, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_bytes(HOSTILE_TOML[name].encode("utf-8", "surrogateescape"))
    attempt("TOML and YAML", lambda: read_grid(path))
    attempt("TOML and YAML", lambda: read_config(path))


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
)
HOSTILE_YAML = {
    "code": "setting: !!python/object/apply:os.system ['touch sprung']\n",
    "code, tagged": "setting: !!python/name:os.system\n",
    "a billion laughs": LAUGHS + "setting: *j\n",
    "a billion laughs as a value": LAUGHS + "setting:\n  binWidth: *j\n",
    "itself": "&a [*a]\n",
    "itself as a setting": "setting: &a\n  binWidth: *a\n",
    "brackets": "[" * 2000,
    "a merge of itself": "setting: &a\n  <<: *a\n",
    "bytes": "setting: !!binary gICA\n",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parameters.yaml").write_text(HOSTILE_YAML[name])
    defaults = read_parameters({"setting": {}})  # nothing is stated by a merge of itself
    attempt("TOML and YAML", lambda: read_parameters(tmp_path / "parameters.yaml"), lambda found: found == defaults)
    assert not (tmp_path / "sprung").exists()


# Tables.


class Unpickled(pa.ExtensionType):
    "Be an extension type whose name Arrow once unpickled."

    def __init__(self, data):
        self.data = data
        super().__init__(pa.int64(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self):
        return self.data

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(serialized)


def as_parquet(table, **how):
    "Return a table's bytes."
    pq.write_table(table, data := io.BytesIO(), **how)
    return data.getvalue()


def with_metadata(data, **metadata):
    "Return a Parquet table with other metadata for pandas."
    table = pq.read_table(io.BytesIO(data))
    return as_parquet(table.replace_schema_metadata({"pandas": json.dumps(metadata)}))


def hostile_tables(data, trap):
    "Return what a table of a run may be replaced with: name -> bytes."
    table = pq.read_table(io.BytesIO(data))
    n = len(table)
    first = table.column_names[0]
    extension = pa.ExtensionArray.from_storage(Unpickled(pickle.dumps(trap)), pa.array(range(n)))
    deep = json.loads("[" * 500 + "]" * 500)
    same = pa.DictionaryArray.from_arrays(np.zeros(10**6, np.int32), ["a" * 1000])
    bomb = pa.table(dict(path=same))
    return {
        "a pickled type": as_parquet(table.append_column("x", extension)),
        "a column of lists": as_parquet(table.set_column(0, first, pa.array([[1]] * n))),
        "a column of structures": as_parquet(table.set_column(0, first, pa.array([dict(a=1)] * n))),
        "a column of bytes": as_parquet(table.set_column(0, first, pa.array([b"\xff"] * n))),
        "a column of nothing": as_parquet(table.set_column(0, first, pa.nulls(n))),
        "a column twice": as_parquet(pa.Table.from_arrays([*table.columns, table[0]], [*table.column_names, first])),
        "a million rows in a kilobyte": as_parquet(bomb, compression="zstd"),
        "another index": with_metadata(data, index_columns=["absent"], columns=[], column_indexes=[]),
        "an index of no end": with_metadata(data, index_columns=[dict(kind="range", start=0, stop=2**62, step=1)]),
        "deep metadata": with_metadata(data, index_columns=deep, columns=deep, column_indexes=deep),
        "metadata that are no JSON": as_parquet(table.replace_schema_metadata({"pandas": "[" * DEEP})),
        "a CSV": b"tile,path\na,b\n",
        "cut off": data[:-9],
        "a footer of 2 GB": data[:-8] + b"\xff\xff\xff\x7fPAR1",
        "nothing but its mark": b"PAR1PAR1",
    }


@pytest.mark.parametrize("name", ["tiles.parquet", "folds.parquet", "features.parquet"])
def test_parquet(name, own_run, good, trap):
    data = (own_run / name).read_bytes()
    for hostile in hostile_tables(data, trap).values():
        (own_run / name).write_bytes(hostile)
        attempt("Parquet", lambda: read_table(own_run / name), lambda table: len(table) <= 10**6)
        attempt("Parquet", lambda: predict_run(own_run), same_predictions(good))
    (own_run / "predictions.parquet").write_bytes(hostile)
    refused("Parquet", lambda: run_report(own_run))


# Pages.

CODE = "window.pwned=1"
NAMES = [
    f"<script>{CODE}</script>",
    f'"><img src=x onerror={CODE}>',
    f"'><svg onload={CODE}>",
    f"</title></style><script>{CODE}</script>",
    f"<a href=javascript:{CODE}>",
    f"--><!-- ]]><script>{CODE}</script>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{$ | `a` | [x](javascript:alert(1))",
    "&lt;script&gt;&#x3c;b&#62;",
]


class Inspector(html.parser.HTMLParser):
    "Collect what could run or load something in a page."

    forbidden = {"script", "iframe", "object", "embed", "form", "base", "link", "applet", "foreignobject"}

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            target = re.sub(r"\s", "", value or "").lower()
            leads_out = name in ("src", "xlink:href") and not target.startswith(("data:image/", "#"))
            if name.startswith("on") or target.startswith(("javascript:", "vbscript:", "data:text")) or leads_out:
                self.found.append(f"{tag} {name}={value}")
        if tag in self.forbidden or (tag == "meta" and "http-equiv" in dict(attributes)):
            self.found.append(tag)


def is_harmless_html(text):
    "Return whether nothing in a page can run."
    return not Inspector(text).found


def as_html(markdown):
    "Return Markdown as a viewer shows that leaves HTML in it as it is."
    return markdown2html(markdown)


def write_hostile_list(folder, tiles):
    "Write a list of tiles in which tiles, slides, scans and groups have hostile names; return it."
    names = dict(zip(tiles.slide.unique(), (f"{NAMES[i % len(NAMES)]} {i}" for i in range(100))))
    groups = dict(zip(tiles.group.unique(), NAMES))
    table = pd.DataFrame(dict(path=tiles.path, label=tiles.label, patient=tiles.patient))
    table["slide"] = tiles.slide.map(names)
    table["scan"] = tiles.scan.map(lambda scan: f"{scan} {NAMES[0]}")
    table["group"] = tiles.group.map(groups)
    table["tile"] = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(len(tiles))]
    table.to_csv(folder / "list.csv", index=False)
    return folder / "list.csv"


@pytest.fixture(scope="module")
def hostile(run, tmp_path_factory):
    "Return a list of tiles with hostile names, and an honest run on it."
    folder = tmp_path_factory.mktemp("hostile")
    tiles = Run(run).tiles
    tiles_list = write_hostile_list(folder, tiles)
    held_out = pd.read_csv(tiles_list).set_index("tile").group[Run(run).folds.part.to_numpy() == "test"].iloc[0]
    config = Run(run).config.replace(test_group=held_out)
    pipeline.run(folder / "run", config, tiles_list, folder / "cache", 1)
    return folder


PAGES = []  # that were written, for the browser


def pages_are_harmless(paths):
    "Return whether no page can run anything, and keep the pages for the browser."
    paths = list(paths)
    PAGES.extend(paths)
    return bool(paths) and all(is_harmless_html(path.read_text(encoding="utf-8")) for path in paths)


def test_inspector():
    for name in NAMES[:6]:
        assert not is_harmless_html(f"<title>{name}</title><p title='{name}'>{name}")


def test_names_in_the_report(hostile):
    attempt("scripts in pages", lambda: [run_report(hostile / "run")], pages_are_harmless)


def test_names_in_the_card(hostile):
    attempt("scripts in pages", lambda: as_html(write_model_card(hostile / "run")), is_harmless_html)


def test_names_in_explanations(hostile):
    def explain():
        tiles = pd.read_csv(hostile / "list.csv").iloc[: len(NAMES)]
        tiles.to_csv(hostile / "few.csv", index=False)
        explain_tiles(hostile / "run", hostile / "few.csv", hostile / "explained", hostile / "cache", 1, check=2)
        return (hostile / "explained").glob("*.html")

    attempt("scripts in pages", explain, pages_are_harmless)


def test_names_in_the_audit(hostile):
    def audit_list():
        tiles, _ = read_tiles(hostile / "list.csv", tile_size=64, n_jobs=1)
        found = audit(tiles, footprint=64, cache_dir=hostile / "cache")
        return [audit_report(found._asdict(), hostile / "audit.html", tiles=tiles)]

    attempt("scripts in pages", audit_list, pages_are_harmless)


def test_names_in_a_grid(hostile):
    base = Run(hostile / "run").config.flat() | dict(modality="radiomics", max_epochs=2, min_epochs=1)
    base = {name: list(value) if isinstance(value, tuple) else value for name, value in base.items()}
    base = {name: value for name, value in base.items() if name not in ("test_group", "seed")}
    variants = {NAMES[0]: {}, NAMES[1]: dict(head="flat", against=NAMES[0])}
    grid = dict(name=NAMES[3], base=base, variants=variants, reference=NAMES[0], splits=["tile"], folds=2, draws=5)
    source = hostile / "list.csv"
    attempt(
        "scripts in pages", lambda: [run_grid(hostile / "grid", grid, source, hostile / "cache", 1)], pages_are_harmless
    )


def test_names_of_slides(hostile, run):
    for i, name in enumerate([NAMES[1], NAMES[2], "$\\frac{$ {{ 7 * 7 }} &lt;b&#62;"]):
        slide = hostile / f"{name}.tif"
        draw_slide(slide, ratio=0.4, seed=1, cells=4, size=64)

        def analyze():
            analyze_slide(slide, run, hostile / f"slide {i}", tile_mpp=1.0, overlap=0.0, cache_dir=hostile / "cache")
            return (hostile / f"slide {i}").glob("*.html")

        attempt("scripts in pages", analyze, pages_are_harmless)


def test_altered_tables_in_the_report(run, tmp_path):
    "A run folder that was sent can hold any text in any table."
    for number, name in enumerate([NAMES[0], "".join(NAMES)]):
        folder = Path(shutil.copytree(run, tmp_path / f"run {number}"))
        for file in ("tiles", "folds", "predictions", "features"):
            table = pd.read_parquet(folder / f"{file}.parquet").rename(index=lambda tile: f"{tile}{name}")
            texts = [column for column in table if column in ("patient", "slide", "scan", "group", "fold")]
            for column in texts:
                table[column] = table[column].astype(str) + name
            if file == "features":
                table = table.rename(columns=lambda column: column + name)
            write_table(table, folder / f"{file}.parquet")
        attempt("scripts in pages", lambda: [run_report(folder)], pages_are_harmless)


def test_pages_in_a_browser():
    "No script runs in the pages that were written above."
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not executable or not PAGES:
        pytest.skip("no browser, or no page")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        tab = browser.new_page()
        said = []
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        for path in PAGES:
            tab.goto(path.resolve().as_uri())
            ran = tab.evaluate("window.pwned")
            attempt("scripts in pages", lambda: (ran, said), lambda result: result == (None, []))
        browser.close()


# Paths.

ESCAPES = [
    "../tile.png",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a\0.png",
    "a" * 5000,
    "~/.ssh/id_rsa",
    ".",
]
BACKBONES = ["hf-hub:someone/model", "local-dir:/tmp", "../../x", "torchvision.models.resnet18", "os.system"]


def everything(folder):
    "Return the content of every file below a folder, and where every link leads."
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = path.read_bytes()
    return found


@pytest.fixture
def outside(tmp_path):
    "Give a folder in which nothing may change."
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep me")
    (folder / "tile.png").write_bytes(encode(noise(1, 64)))
    before = everything(folder)
    yield folder
    assert everything(folder) == before, "a file outside of the folders that were named has changed"


def test_paths_in_a_list(outside, tmp_path):
    "A list may name pictures anywhere, which are only read; what is no picture is left out."
    folder = tmp_path / "tiles"
    folder.mkdir()
    (folder / "good.png").write_bytes(encode(noise(0, 64)))
    (folder / "link.png").symlink_to("/etc/passwd")
    for path in [*ESCAPES, "link.png", str(outside / "precious.txt")]:
        table = pd.DataFrame(dict(path=["good.png", path], label="viable", patient="A", slide="A-1", tile=["a", "b"]))
        table.to_csv(folder / "list.csv", index=False)
        attempt(
            "paths and links",
            lambda: read_tiles(folder / "list.csv", tile_size=64, n_jobs=1)[0],
            lambda t: list(t.index) == ["a"],
        )


@pytest.mark.parametrize("name", ["../x", "/x", "..", "\0"], ids=repr)
def test_names_that_are_paths(name, hostile_names, outside, tmp_path):
    "No name in a list or a grid leads a file out of the folder that was named."
    out = tmp_path / "out"

    def elsewhere():
        known = {path for path in everything(tmp_path) if path.name != "list.csv"}
        return known - set(everything(out)) - set(everything(tmp_path / "cache"))

    before = elsewhere()
    for column in ("tile", "slide"):
        listed = hostile_names(column, name)
        attempt(
            "paths and links",
            lambda: explain_tiles(small_run(), listed, out, tmp_path / "cache", 1, check=0),
            lambda page: page.parent == out,
        )
    for column in ("group", "scan", "patient"):
        listed = hostile_names(column, name)
        attempt("paths and links", lambda: read_tiles(listed, tile_size=64, n_jobs=1), lambda found: len(found[0]) == 2)
    assert elsewhere() == before


@pytest.fixture
def hostile_names(run, tmp_path):
    "Give a function that writes a list of two tiles, one with a name in a column."

    def write(column, name):
        tiles = Run(run).tiles[:2]
        table = pd.DataFrame(dict(path=tiles.path, label=tiles.label, patient="A", slide="A-1", tile=["a", "b"]))
        table[["group", "scan"]] = "A"
        if column in ("slide", "group", "scan", "patient"):
            table[column] = name
        else:
            table[column] = [name, "b"]
        table.to_csv(tmp_path / "list.csv", index=False)
        return tmp_path / "list.csv"

    return write


def test_backbones_that_are_code(own_run):
    for name in BACKBONES:
        config = json.loads((own_run / "config.json").read_text())
        config["model"]["backbone"] = name
        (own_run / "config.json").write_text(json.dumps(config))
        refused("pickles", lambda: predict_run(own_run))
        refused("pickles", lambda: make_backbone(Run(own_run).config))


def test_links_out_of_a_run(outside, own_run, run, tmp_path):
    "What of a run is a link out of it is neither followed nor written through."
    config = Run(run).config
    for file in sorted(path.name for path in run.iterdir()):
        (own_run / file).unlink()
        (own_run / file).symlink_to(outside / file)
        attempt("paths and links", lambda: predict_run(own_run), lambda found: True)
        if file in ("report.html", "predictions.parquet"):
            attempt("paths and links", lambda: run_report(own_run), lambda page: True)
        if file in ("model.safetensors", "scaler.json", "history.csv", "config.json"):
            data = small_cohort(0.25, 64)
            attempt(
                "paths and links",
                lambda: pipeline.train_run(own_run, config, data, tmp_path / "cache", 1),
                lambda found: True,
            )
        (own_run / file).unlink()
        shutil.copy(run / file, own_run / file)


def test_folders_that_lead_out(outside, own_run, run, tmp_path):
    "A folder within a result that is a link is not followed when files are written or removed."
    (own_run / "checkpoints").symlink_to(outside)
    (own_run / "model.safetensors").unlink()
    attempt(
        "paths and links",
        lambda: pipeline.train_run(own_run, Run(own_run).config, small_cohort(0.25, 64), tmp_path / "cache", 1),
        lambda found: True,
    )
    draw_slide(tmp_path / "slide.tif", ratio=0.4, seed=1, cells=4, size=64)
    slide = tmp_path / "slide"
    slide.mkdir()
    (slide / "batches").symlink_to(outside)
    attempt(
        "paths and links",
        lambda: analyze_slide(tmp_path / "slide.tif", run, slide, overlap=0.0),
        lambda found: True,
    )
    analyze_slide(tmp_path / "slide.tif", run, tmp_path / "begun", overlap=0.0)
    (tmp_path / "begun" / "slide.json").unlink()
    (tmp_path / "begun" / "slide.html").unlink()
    (tmp_path / "begun" / "slide.html").symlink_to(outside / "precious.txt")
    attempt(
        "paths and links",
        lambda: analyze_slide(tmp_path / "slide.tif", run, tmp_path / "begun", overlap=0.0),
        lambda found: True,
    )


def test_messages_in_a_terminal(tmp_path):
    "Names with escape sequences and line breaks do not reach the terminal as such."
    table = pd.DataFrame(dict(path=["\x1b[2J\x1b]0;owned\x07.png"], label="\x1b[31m\nviable", patient="A", slide="A-1"))
    table.to_csv(tmp_path / "list.csv", index=False)
    (tmp_path / "\x1b[2J.toml").write_text("a = ")
    for words in (["features", "list.csv", "--out", "f.csv"], ["experiment", "\x1b[2J.toml", "--out", "grid"]):
        done = subprocess.run([sys.executable, "-m", "osteonb", *words], capture_output=True, text=True, cwd=tmp_path)
        counts = COUNTS.setdefault("escape sequences", Counter())
        counts["tried"] += 1
        assert (
            done.returncode not in (0, 3) and "\x1b" not in done.stderr + done.stdout and is_clear(done.stderr.strip())
        ), done.stderr
        counts["refused"] += 1


# Machines.


def wait_for_all(calls):
    "Run calls in threads at once, and return their results; an error is a result."
    results = [None] * len(calls)

    def answer(number, call):
        try:
            results[number] = call()
        except (InputError, OSError) as error:
            results[number] = error

    threads = [threading.Thread(target=answer, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


LOCKS = {
    "always granted": lambda descriptor, blocking=True: True,
    "never granted": lambda descriptor, blocking=True: False,
    "granted now and then": lambda descriptor, blocking=True: time.perf_counter_ns() // 1000 % 2 == 0,
    "not known to the disk": lambda descriptor, blocking=True: (_ for _ in ()).throw(OSError(37, "No locks available")),
}


def use_cache(folder, lock, is_for_table, repeats=8):
    "Read and write a cache again and again in this process, with locks that lie; return whether all was right."
    files.lock_descriptor = LOCKS[lock]
    for _ in range(repeats):
        right = is_table(cached_table(folder)) if is_for_table else is_array(cached_array(folder))
        if not right:
            return False
        for part in folder.glob("*/*.*"):  # the next turn has something to do
            if part.suffix in (".parquet", ".npy") and os.getpid() % 2:
                part.unlink(missing_ok=True)
    return True


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_that_lie(lock, tmp_path):
    "Two processes on one cache, where the disk's locks mean nothing."
    for is_for_table in (True, False):
        folder = tmp_path / f"cache {is_for_table}"
        both = [apart(lambda: use_cache(folder, lock, is_for_table))] * 2
        for result in wait_for_all(both):

            def give(result=result):
                if isinstance(result, Exception):
                    raise result
                return result

            attempt("locks that lie", give, bool)
        assert is_table(cached_table(folder)) if is_for_table else is_array(cached_array(folder))


@pytest.mark.parametrize("seconds", [0.0, 2.0**33])
def test_the_clock_goes_back(seconds, own_run, run, good, tmp_path, monkeypatch):
    "Times of files and of the system decide nothing."
    cached_table(tmp_path / "tables")
    cached_array(tmp_path / "arrays")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: seconds)
        patch.setattr(time, "time_ns", lambda: int(seconds * 1e9))
        for path in [*own_run.rglob("*"), *tmp_path.rglob("*.parquet"), *tmp_path.rglob("*.npy")]:
            os.utime(path, (max(0.0, seconds), max(0.0, seconds)))
        attempt("the clock goes back", lambda: predict_run(own_run), same_predictions(good))
        attempt("the clock goes back", lambda: cached_table(tmp_path / "tables"), is_table)
        attempt("the clock goes back", lambda: cached_array(tmp_path / "arrays"), is_array)
        attempt(
            "the clock goes back",
            lambda: run_report(own_run),
            lambda page: page.read_bytes() == (run / "report.html").read_bytes(),
        )


def flip(path, at, bit=64):
    "Flip a bit of a file in place."
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        if byte:
            file.seek(at)
            file.write(bytes([byte[0] ^ bit]))


def test_flipped_after_it_was_found(tmp_path):
    "A byte of an array flips between the look into the cache and the use of the array."
    for at in range(200, 3000, 250):
        folder = tmp_path / str(at)
        cached_array(folder)
        arrays = compute_array_rows(folder, dict(version=1), CACHED, array_rows, 7)
        for part in folder.glob("*/*.npy"):
            flip(part, at)
        attempt("flips under load", lambda: arrays[list(range(len(CACHED)))], is_array)


def test_flipped_under_load(tmp_path):
    "One process flips bytes without a pause, another reads."
    for number, (read, is_right) in enumerate([(cached_table, is_table), (cached_array, is_array)]):
        folder = tmp_path / str(number)
        read(folder)
        stop = threading.Event()

        def flip_on(folder=folder, stop=stop):
            random = np.random.default_rng(0)
            while not stop.is_set():
                parts = list(folder.glob("*/*.parquet")) + list(folder.glob("*/*.npy"))
                for part in parts:
                    flip(part, int(random.integers(0, 4000)), 1 << int(random.integers(0, 8)))

        flipping = threading.Thread(target=flip_on)
        flipping.start()
        try:
            for _ in range(20):
                attempt("flips under load", lambda: read(folder), is_right)
        finally:
            stop.set()
            flipping.join()
        attempt("flips under load", lambda: read(folder), is_right)


def workers_of(process):
    "Return the numbers of loky's workers below a process."
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            number, rest = int(status.parent.name), status.read_text().rpartition(")")[2].split()
            words = (status.parent / "cmdline").read_bytes()
            if int(rest[1]) == process.pid and b"loky" in words and b"resource_tracker" not in words:
                found.append(number)
    return found


def test_a_worker_killed_for_memory(run, tmp_path):
    "The system kills a worker: the command says so in one line, and a second one gives the right table."
    words = [
        sys.executable,
        "-m",
        "osteonb",
        "features",
        str(small_cohort(0.25, 64)),
        "--tile-size",
        "64",
        "--jobs",
        "2",
    ]
    whole = subprocess.run(
        [*words, "--out", "whole.csv", "--cache", "first"], cwd=tmp_path, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    for delay in (0.2,):
        cache_dir = f"cache {delay}"
        process = subprocess.Popen(
            [*words, "--out", "f.csv", "--cache", cache_dir], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + SECONDS
        while not (found := workers_of(process)) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(delay)
        for number in found[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        said = process.communicate(timeout=2 * SECONDS)[1]

        def outcome(process=process, said=said):
            lines = [line for line in said.splitlines() if line.startswith("osteonb")]
            if process.returncode:
                assert "Traceback" not in said and lines, said
                raise InputError(lines[-1])
            return (tmp_path / "f.csv").read_bytes()

        attempt("a worker killed for memory", outcome, lambda table: table == (tmp_path / "whole.csv").read_bytes())
        done = subprocess.run(
            [*words, "--out", "f.csv", "--cache", cache_dir], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and (tmp_path / "f.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes(), (
            done.stderr
        )


def test_counts(capsys):
    "Print the counts by kind; nothing was silent."
    table = pd.DataFrame(COUNTS, dtype="Int64").T.reindex(columns=["tried", "refused", "harmless", "silent"]).fillna(0)
    table.loc["in all"] = table.sum()
    with capsys.disabled():
        print(f"\n{table.to_string()}")
    assert not table.silent.any() and (table.tried == table.refused + table.harmless).all()
