"""Hostile files, names and machines: every attempt ends in one clear line, or does no harm and gives the right numbers.

Each attempt is counted by its kind; the last test prints the counts. *Silent* would be a wrong number, code or a script
of the attacker that ran, or a file outside of the folders that were named. There must be none.
"""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import struct
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
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from osteonb.core import cache, files
from osteonb.core.cache import compute_array_rows, compute_table_rows
from osteonb.core.errors import InputError
from osteonb.core.runs import Run
from osteonb.data.images import _check_image, read_tile
from osteonb.data.tiles import read_unlabeled_tiles
from osteonb.experiments.fixtures import small_run
from osteonb.experiments.pipeline import predict_run
from osteonb.models.backbone import make_backbone
from osteonb.models.checkpoint import load_model
from osteonb.radiomics.masked_images import extract_masked
from osteonb.slides.reader import open_slide
from osteonb.slides.tiling import _make_cell_grid, _read_overview
from osteonb.synthetic.fixtures import small_cohort

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
    cached_array(tmp_path / "arrays")
    [folder] = (tmp_path / "arrays").iterdir()
    for data in pickles(trap).values():
        digest = cache._part_digest(data)
        (folder / f"{digest}.npy").write_bytes(data)
        attempt("pickles", lambda: cached_array(tmp_path / "arrays"), is_array)
        (folder / f"{digest}.npy").unlink(missing_ok=True)
    cached_table(tmp_path / "tables")
    [folder] = (tmp_path / "tables").iterdir()
    for data in pickles(trap).values():
        digest = cache._part_digest(data)
        (folder / f"{digest}.parquet").write_bytes(data)
        attempt("pickles", lambda: cached_table(tmp_path / "tables"), is_table)
        (folder / f"{digest}.parquet").unlink(missing_ok=True)


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


def test_counts(capsys):
    "Print the counts by kind; nothing was silent."
    table = pd.DataFrame(COUNTS, dtype="Int64").T.reindex(columns=["tried", "refused", "harmless", "silent"]).fillna(0)
    table.loc["in all"] = table.sum()
    with capsys.disabled():
        print(f"\n{table.to_string()}")
    assert not table.silent.any() and (table.tried == table.refused + table.harmless).all()
