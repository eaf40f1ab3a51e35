"""osteonb.data.download where the process ends on purpose, and where the disk refuses a file in earnest."""
import functools, hashlib, json, os, random, resource, signal, subprocess, sys, threading, time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from osteonb.data.download import _PATHDB_COLLECTION, download_release, _tiles_on_disk
from osteonb.synthetic.cohort import make_cohort
from osteonb.data.tiles import read_tiles

SIZE = 64     # side of a tile: 12 kB as TIFF, while the table has 4 kB
CALL = "import json, sys; from osteonb.data.download import download_release; root, settings = json.loads(sys.argv[1]); download_release(root, **settings)"


class Server(SimpleHTTPRequestHandler):
    "The files of a folder, each tile after a short wait; the listing is a file too, the same for every page."
    asked = []
    def log_message(self, *_): pass
    def do_GET(self):
        self.asked.append(self.path)
        if self.path.endswith(".tiff"): time.sleep(.15)
        try: super().do_GET()
        except ConnectionError: pass      # whoever asked is gone


@pytest.fixture
def release(tmp_path, monkeypatch):
    "A server with a small release; gives the settings for `download`."
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web, cohort = tmp_path/"web", make_cohort(tmp_path/"cohort", scale=.05, size=SIZE, n_jobs=1)
    files = [p.relative_to(cohort).with_suffix(".tiff") for p in sorted(cohort.rglob("*.jpg"))]
    for file in files:
        (web/file).parent.mkdir(parents=True, exist_ok=True)
        Image.open((cohort/file).with_suffix(".jpg")).save(web/file)
    (web/"listofimages").mkdir()
    (web/"listofimages"/str(_PATHDB_COLLECTION)).write_text(json.dumps([dict(field_wsiimage=[dict(url=f"http://elsewhere/{f.as_posix()}")]) for f in files]))
    table = next(cohort.glob("*.csv"))
    (web/table.name).write_bytes(table.read_bytes())
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=web)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        yield dict(table=f"{base}/{table.name}", pathdb=base, sha256=hashlib.sha256(table.read_bytes()).hexdigest(), tile_size=SIZE, n_jobs=2, pause=.01)
        server.shutdown()


def begin(root, settings, **kwargs):
    "A process of its own that downloads."
    return subprocess.Popen([sys.executable, "-c", CALL, json.dumps([str(root), settings])], stderr=subprocess.PIPE, text=True, **kwargs)


def tiffs(root): return sorted(root.rglob("*.tiff"))


def wait_for(root, process, count=3):
    "Until some tiles are there, and well before all are."
    end = time.monotonic() + 60
    while len(tiffs(root)) < count and process.poll() is None and time.monotonic() < end: time.sleep(.02)
    assert process.poll() is None and len(tiffs(root)) >= count


def check_resumed(root, settings):
    "What was there before is good and is not asked for again; afterwards all is there."
    before = {p.stem for p in tiffs(root)}
    assert (_tiles_on_disk(root, SIZE, 1).reason == "").all()
    Server.asked.clear()
    done = download_release(root, **settings)
    asked = {Path(a).stem for a in Server.asked if a.endswith(".tiff")}
    assert before and asked == set(done.index) - before == set(done.index[done.fetched])
    tiles, excluded = read_tiles(root, tile_size=SIZE)
    assert len(tiles) == len(done) and not len(excluded)


def test_killed(release, tmp_path):
    process = begin(tmp_path/"to", release)
    wait_for(tmp_path/"to", process)
    process.kill()
    process.communicate(timeout=30)
    check_resumed(tmp_path/"to", release)


def test_killed_twenty_times(release, tmp_path):
    "At random moments, and started again in the same folder; one that is finished makes room for a new one."
    begun = time.monotonic()
    assert begin(tmp_path/"whole", release).wait(60) == 0
    seconds, chance, kills = time.monotonic() - begun, random.Random(0), 0
    whole = {p.relative_to(tmp_path/"whole"): p.read_bytes() for p in (tmp_path/"whole").rglob("*") if p.is_file()}
    while kills < 20:
        folder = tmp_path/f"after {kills}"
        while True:
            process = begin(folder, release)
            try: process.wait(.4*seconds + .4*seconds*chance.random())
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            process.communicate(timeout=30)
            assert not folder.exists() or (_tiles_on_disk(folder, SIZE, 1).reason == "").all()      # what has a name is whole
            if process.returncode == 0: break
            if kills == 20: assert begin(folder, release).wait(60) == 0; break
        assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == whole


def test_interrupted(release, tmp_path):
    "Ctrl-C: the transfers under way end, no other begins, no temporary file stays."
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)     # a job in the background begins deaf to it
    process = begin(tmp_path/"to", release, preexec_fn=heard)
    wait_for(tmp_path/"to", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    assert len(tiffs(tmp_path/"to")) < 12 and not list((tmp_path/"to").rglob("*.part"))
    check_resumed(tmp_path/"to", release)


def test_disk_refuses(release, tmp_path):
    "A file of more than 8 kB cannot be written: the table can, the tiles cannot."
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    process = begin(tmp_path/"to", release, preexec_fn=limit)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "tiles are missing" in said and "not written (File too large)" in said
    assert sorted(p.suffix for p in (tmp_path/"to").rglob("*") if p.is_file()) == [".csv", ".txt"]
    assert all(download_release(tmp_path/"to", **release).fetched)
