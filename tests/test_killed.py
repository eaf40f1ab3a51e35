"""Long jobs that are killed, find no room, lose a tile, or run twice at once: nothing that was finished is lost, and no file is damaged."""
import functools, json, os, random, resource, signal, subprocess, sys, tempfile, time, tomllib
from multiprocessing import connection, get_context
from pathlib import Path

import pytest
from test_download import release  # noqa: F401, a fixture

from osteonb.synthetic.cohort import make_cohort

SMALL = dict(tile_size=64, image_size=32, max_epochs=4, min_epochs=4, width=16, gate_width=8, pretrained_weights="none", backbone="test_efficientnet")
WORDS = " ".join(f"{name}={value}" for name, value in SMALL.items())      # for a command line
BASE = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SMALL.items())         # and for a grid
GRID = f"""
name = "A small grid"
splits = ["tile"]
folds = 2
draws = 5
[base]
modality = "radiomics"
{BASE}
[variants.hierarchical]
[variants.flat]
head = "flat"
"""

start = get_context("forkserver")      # children are forked from a process that has loaded the libraries, and begin within milliseconds
start.set_forkserver_preload(["osteonb.experiments.grid_runs", "osteonb.slides.analysis", "osteonb.cli.entry", "pytest"])


# Jobs. Each works in a folder of its own, keeps what later runs may use in `cache` below it, and has a whole result at its end.

def tiles_of(data):
    "The small cohort's table."
    from osteonb.data.tiles import read_tiles
    return read_tiles(data, tile_size=SMALL["tile_size"], n_jobs=1)[0]


def extracting(folder, data, n_jobs=1):
    from osteonb.core.files import write_table
    from osteonb.radiomics import extraction
    extraction._BLOCK_TILES["exact"] = 5        # tiles, so that there is something to keep of this small cohort
    features = extraction.extract(tiles_of(data), masks=("tissue",), feature_classes=("firstorder", "glcm"), cache_dir=folder/"cache", n_jobs=n_jobs)
    write_table(features, folder/"features.parquet")


def extracting_in_two(folder, data):
    from joblib.externals.loky import get_reusable_executor
    extracting(folder, data, 2)
    get_reusable_executor().shutdown()  # or the child would wait for its idle workers


def embedding(folder, data):
    import pandas as pd
    from osteonb.core.config import configure
    from osteonb.core.files import write_table
    from osteonb.models import embedding as chapter
    from osteonb.models.backbone import make_backbone
    chapter.compute_array_rows = functools.partial(chapter.compute_array_rows, block=5)
    table = tiles_of(data)
    values = chapter.embed_tiles(table, make_backbone(configure(**SMALL)), SMALL["image_size"], folder/"cache", batch_size=4)
    write_table(pd.DataFrame(values[:][:, 0, 0], table.index).rename(columns=str), folder/"embedding.parquet")


def training(folder, data, **settings):
    from osteonb.core.config import configure
    from osteonb.experiments.pipeline import train_run
    train_run(folder/"run", configure(**SMALL | dict(test_group="Case-904+P905") | settings), data, folder/"cache", 1)


def training_augmented(folder, data): training(folder, data, freeze_backbone=False, augment=True)


def training_views(folder, data): training(folder, data, augment=True)


def reporting(folder, data):
    from osteonb.core.config import configure
    from osteonb.experiments.pipeline import run
    run(folder/"run", configure(**SMALL | dict(test_group="Case-904+P905", modality="radiomics")), data, folder/"cache", 1)


def reporting_other(folder, data):
    from osteonb.core.config import configure
    from osteonb.experiments.pipeline import run
    run(folder/"run", configure(**SMALL | dict(test_group="Case-948", modality="radiomics")), data, folder/"cache", 1)


def reporting_again(folder, data):
    "Whatever other run is in the folder, and however much of it."
    from osteonb.core.config import configure
    from osteonb.core.errors import InputError
    from osteonb.experiments.pipeline import run
    try: reporting(folder, data)
    except InputError as e:
        assert "--redo" in str(e)
        run(folder/"run", configure(**SMALL | dict(test_group="Case-904+P905", modality="radiomics")), data, folder/"cache", 1, redo=True)


def comparing(folder, data, n_jobs=1):
    from osteonb.experiments.grid_runs import run_grid
    run_grid(folder/"grid", tomllib.loads(GRID), data, folder/"cache", n_jobs)


def drawing(folder, data): make_cohort(folder/"cohort", scale=.25, size=SMALL["tile_size"], n_jobs=1)


def drawing_in_two(folder, data): make_cohort(folder/"cohort", scale=.25, size=SMALL["tile_size"], n_jobs=2)


# How they are started, killed and compared.

def begun(job, folder, said, *args):
    "The first lines of a child's life."
    os.setpgid(0, 0)                    # its workers are in its group, and are killed with it
    with open(said, "w") as file: os.dup2(file.fileno(), 2)
    os.environ["TMPDIR"] = os.environ["JOBLIB_TEMP_FOLDER"] = str(said.parent)
    tempfile.tempdir = None
    import torch
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    job(folder, *args)


def begin(job, folder, *args):
    "A job in a process, and a process group, of its own."
    process = start.Process(target=begun, args=(job, folder, folder.with_suffix(".txt"), *args))
    process.start()
    return process


def end(process, seconds=120):
    "Wait for a job; False where it had to be killed, with all its workers."
    if connection.wait([process.sentinel], seconds):
        process.join()
        return True
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: os.kill(process.pid, signal.SIGKILL)      # it had no group yet
    process.join()
    for left in Path("/dev/shm").glob(f"sem.loky-{process.pid}-*"): left.unlink()    # of its workers; whoever would have removed them is killed too
    return False


def done(job, folder, *args):
    "Run a job to its end."
    process = begin(job, folder, *args)
    assert end(process) and process.exitcode == 0, folder.with_suffix(".txt").read_text()[-3000:]


def result(folder):
    "What a job left besides its cache: file -> content. Nothing temporary is among it."
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix == ".part"] and not list(folder.rglob("checkpoints"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.relative_to(folder).parts[0] != "cache"}


def same(folder, whole):
    "The same files as an undisturbed run's, to the last byte."
    left = result(folder)
    assert set(left) == set(whole)
    assert not [name for name in whole if left[name] != whole[name]]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    "46 tiles of 64 pixels."
    return make_cohort(tmp_path_factory.mktemp("data")/"cohort", scale=.25, size=SMALL["tile_size"], n_jobs=1)


def nothing(folder): pass


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory):
    "What a job leaves where nothing befalls it, and the seconds that it takes; computed once."
    done(nothing, tmp_path_factory.mktemp("first")/"a")     # the libraries are loaded now
    @functools.cache
    def run(job):
        folder = tmp_path_factory.mktemp("whole")/"a"
        begun_at = time.monotonic()
        done(job, folder, data)
        return result(folder), time.monotonic() - begun_at
    return run


def identity(folder, pattern):
    "The files that are finished for good: a file that is written again has another number or another time."
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob(pattern)}


# Killed.

def survives(job, argument, whole, kills, longest, once, places):
    "Killed at random moments of at most `longest` seconds and started again in the same folder, until it ends, and that in new folders until it was killed often enough; what is finished is not written again."
    chance, folder, finished = random.Random(job.__name__), places/"0", {}
    while True:
        process = begin(job, folder, argument)
        ended = end(process, chance.random()*longest if kills else 120)
        now = identity(folder, once)
        assert {p: now.get(p) for p in finished} == finished
        finished = now
        kills -= not ended
        if not ended: continue
        assert process.exitcode == 0, folder.with_suffix(".txt").read_text()[-3000:]
        same(folder, whole)
        if not kills: break
        folder, finished = places/str(kills), {}


@pytest.mark.parametrize("job, kills, share, once", [
    (extracting, 20, .7, "cache/*/*.parquet"), (extracting_in_two, 2, .8, "cache/*/*.parquet"), (embedding, 20, .7, "cache/*/*.npy"),
    (training, 20, .7, "*/model.safetensors"), (training_augmented, 20, .7, "*/model.safetensors"), (training_views, 3, .7, "*/model.safetensors"), (comparing, 20, .5, "grid/runs/*/*/*/predictions.parquet"),
    (drawing, 20, .7, "cohort/*/*/*.jpg"), (drawing_in_two, 8, .8, "cohort/*/*/*.jpg")])
def test_killed(job, kills, share, once, data, undisturbed, tmp_path):
    "A life lasts at most a share of an undisturbed run."
    whole, seconds = undisturbed(job)
    survives(job, data, whole, kills, share*seconds, once, tmp_path)


def dying(folder, data, job, where):
    "A job that is killed where it is about to name a file, where it has just done so, and where it has removed a checkpoint: once for each file's name."
    seen = folder.with_suffix(".seen")
    seen.touch()
    def die(moment):
        if moment in seen.read_text().splitlines(): return
        with seen.open("a") as file: file.write(moment + "\n")
        os.killpg(0, signal.SIGKILL)
    replace, unlink = os.replace, os.unlink
    def replaced(source, target):
        watched = any(w in str(target) for w in where)
        if watched: die(f"before {Path(target).name}")
        replace(source, target)
        if watched: die(f"after {Path(target).name}")
    def unlinked(path, **more):
        unlink(path, **more)
        if str(path).endswith((".ckpt", ".safetensors", ".parquet", ".json")): die(f"without {Path(path).name}")
    os.replace, os.unlink = replaced, unlinked
    job(folder, data)


@pytest.mark.parametrize("job, where", [
    (extracting, [""]), (training, ["run/"]), (training_augmented, ["run/"]), (reporting, ["predictions", "metrics", "report"]), (drawing, ["SYNTHETIC", "ML_Features"]),
    (comparing, ["grid/runs", "grid/tiles.parquet"])])
def test_killed_at_each_file(job, where, data, undisturbed, tmp_path):
    "Killed before and after each file has its name, and started again."
    whole, _ = undisturbed(job)
    for lives in range(200):
        process = begin(dying, tmp_path/"a", data, job, where)
        assert end(process)
        if process.exitcode != -signal.SIGKILL: break
    assert process.exitcode == 0, (tmp_path/"a.txt").read_text()[-3000:]
    assert lives > 1
    same(tmp_path/"a", whole)


def test_killed_while_it_is_made_again(data, undisturbed, tmp_path):
    "Killed after each file of a run of before is removed, and started again without `--redo` where that is not refused: nothing of before is left."
    done(reporting_other, tmp_path/"a", data)
    for lives in range(200):
        process = begin(dying, tmp_path/"a", data, reporting_again, ["run/model", "run/inputs"])
        assert end(process)
        if process.exitcode != -signal.SIGKILL: break
    assert process.exitcode == 0, (tmp_path/"a.txt").read_text()[-3000:]
    assert lives > 5
    same(tmp_path/"a", undisturbed(reporting)[0])


def interrupted(folder, data):
    "A training that is killed when its third epoch is kept."
    replace, kept = os.replace, []
    def replaced(source, target):
        replace(source, target)
        if str(target).endswith("last.ckpt"): kept.append(target)
        if len(kept) == 3: os.killpg(0, signal.SIGKILL)
    os.replace = replaced
    training(folder, data)


@pytest.mark.parametrize("how", ["flipped", "cut off"])
def test_damaged_checkpoint(how, data, undisturbed, tmp_path):
    "One bit of the last epoch's checkpoint flips, or it is cut off: one line names the file and the fix, and `--redo` ends as an undisturbed run."
    process = begin(interrupted, tmp_path/"a", data)
    assert end(process) and process.exitcode == -signal.SIGKILL
    file = tmp_path/"a"/"run"/"checkpoints"/"last.ckpt"
    content = bytearray(file.read_bytes())
    if how == "flipped": content[len(content)//2] ^= 1
    else: del content[-1000:]
    file.write_bytes(content)
    refused(*said(tmp_path/"a", words_of("train", tmp_path/"a", data)), str(file), "damaged", f"delete {file.parent}")
    assert said(tmp_path/"a", [*words_of("train", tmp_path/"a", data), "--redo"])[0] == 0
    same(tmp_path/"a", undisturbed(training)[0])


# Downloads: a process of their own in `test_download`; here it is killed more often.

def downloading(folder, settings):
    from osteonb.data.download import download_release
    download_release(folder/"release", **settings)


def test_killed_downloads(release, tmp_path):
    "Each tile is asked for again only where it was not there whole."
    done(downloading, tmp_path/"whole", release)
    survives(downloading, release, result(tmp_path/"whole"), 20, .5, "release/*/*/*.tiff", tmp_path)


# Slides.

def analyzing(folder, given):
    from osteonb.slides import inference
    from osteonb.slides.analysis import analyze_slide
    inference._BATCH_TILES = 5        # tiles, so that there is something to keep of this small slide
    analyze_slide(given/"slide.tif", given/"run", folder/"slide", cache_dir=folder/"cache")


@pytest.fixture(scope="session")
def slide(data, tmp_path_factory):
    "A folder with a drawn slide and a run to ask."
    from osteonb.core.config import configure
    from osteonb.experiments.pipeline import train_run
    from osteonb.synthetic.slides import draw_slide
    folder = tmp_path_factory.mktemp("slide")
    draw_slide(folder/"slide.tif", ratio=.5, cells=8, size=SMALL["tile_size"])
    train_run(folder/"run", configure(**SMALL | dict(test_group="Case-904+P905")), data, folder/"cache", 1)
    return folder


def test_killed_slides(slide, tmp_path):
    "Batches of tiles that were asked are not asked again."
    begun_at = time.monotonic()
    done(analyzing, tmp_path/"whole", slide)
    survives(analyzing, slide, result(tmp_path/"whole"), 20, .7*(time.monotonic() - begun_at), "slide/batches/*/*.parquet", tmp_path)


# No room, no permission, no tile: through the command line.

def commanding(folder, words, limit=None, losing=None):
    "A command; with a limit on the size of files; with a tile that is taken away when a function begins."
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if losing:
        module, name, tile = losing
        module = __import__(f"osteonb.{module}", fromlist=[name])
        job = getattr(module, name)
        def lose(*args, **kwargs):
            if tile.exists(): tile.rename(tile.with_suffix(".gone"))
            return job(*args, **kwargs)
        setattr(module, name, lose)
    sys.argv = ["osteonb", *map(str, words)]
    from osteonb.cli.entry import main
    main()


def said(folder, *args):
    "Run a command; its status, and its lines on stderr."
    process = begin(commanding, folder, *args)
    assert end(process)
    return process.exitcode, folder.with_suffix(".txt").read_text().splitlines()


def words_of(command, folder, data):
    "A command line that works in a folder."
    (folder.parent/"grid.toml").write_text(GRID)
    often = dict(
        features=["--out", folder/"features.parquet", "--masks", "tissue", "--tile-size", 64],
        train=["--data", data, "--out", folder/"run", "--test-group", "Case-904+P905", "--set", WORDS],
        experiment=["--data", data, "--out", folder/"grid"],
        synthesize=["--out", folder/"cohort", "--scale", .25, "--size", 64])
    first = dict(features=data, experiment=folder.parent/"grid.toml")
    cache_dir = [] if command == "synthesize" else ["--cache", folder/"cache"]
    return [command, *filter(None, [first.get(command)]), *often[command], *cache_dir, "--jobs", 1]


def refused(status, lines, *names):
    "One line for the user, which names the file and the fix."
    assert status == 1 and len(lines) == 1, lines
    assert all(name in lines[0] for name in names), lines


JOBS = dict(train=training, experiment=comparing, synthesize=drawing)


@pytest.fixture
def wholly(undisturbed, data, tmp_path):
    "What a command leaves where nothing befalls it."
    def run(command):
        if command in JOBS: return undisturbed(JOBS[command])[0]
        assert said(tmp_path/"whole", words_of(command, tmp_path/"whole", data))[0] == 0
        return result(tmp_path/"whole")
    return run


@pytest.mark.parametrize("command, limits", [("features", (1024, 8192)), ("train", (1024, 16384, 65536)), ("experiment", (16384,)), ("synthesize", (2500,))])
def test_files_that_are_too_large(command, limits, data, wholly, tmp_path):
    "A disk that takes small files alone: what it took is used when it takes the others too."
    folder = tmp_path/"a"
    for limit in limits:
        refused(*said(folder, words_of(command, folder, data), limit), "File too large", str(folder), "free the disk or choose another folder")
        assert not [p for p in folder.rglob("*.part")]
    assert said(folder, words_of(command, folder, data))[0] == 0
    same(folder, wholly(command))


@pytest.fixture
def disk():
    "A small disk of its own at a folder, for whoever may mount one."
    places = []
    def mount(place, options, again=False):
        place.mkdir(parents=True, exist_ok=True)
        how = ["-o", f"remount,{options}"] if again else ["-t", "tmpfs", "-o", options, "tmpfs"]
        if os.geteuid() or subprocess.run(["mount", *how, place], capture_output=True).returncode: pytest.skip("may not mount a disk")
        places.append(place)
    yield mount
    for place in set(places): subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("command, name", [("train", "run"), ("experiment", "grid")])
def test_full_disk(command, name, data, wholly, disk, tmp_path):
    "Full, then larger: the same tables and weights as on a disk with room."
    folder = tmp_path/"a"
    disk(folder/name, "size=96k")
    refused(*said(folder, words_of(command, folder, data)), "No space left on device", str(folder/name), "free the disk or choose another folder")
    assert not list((folder/name).rglob("*.part")) and list((folder/name).rglob("*.parquet"))
    disk(folder/name, "size=64m", again=True)
    assert said(folder, words_of(command, folder, data))[0] == 0
    same(folder, wholly(command))


def test_read_only(data, wholly, disk, tmp_path):
    "A run folder that may be read alone, new or begun."
    folder = tmp_path/"a"
    disk(folder/"run", "size=64m,ro")
    refused(*said(folder, words_of("train", folder, data)), "Read-only file system", str(folder/"run"), "choose another folder")
    disk(folder/"run", "rw", again=True)
    assert said(folder, words_of("train", folder, data), 16384)[0] == 1
    disk(folder/"run", "ro", again=True)
    refused(*said(folder, words_of("train", folder, data)), "Read-only file system", str(folder/"run"), "choose another folder")
    disk(folder/"run", "rw", again=True)
    assert said(folder, words_of("train", folder, data))[0] == 0
    same(folder, wholly("train"))


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission is refused to root")
def test_no_permission(data, tmp_path):
    "A folder of somebody else's."
    (tmp_path/"a"/"run").mkdir(parents=True)
    (tmp_path/"a"/"run").chmod(0o500)
    refused(*said(tmp_path/"a", words_of("train", tmp_path/"a", data)), "Permission denied", str(tmp_path/"a"/"run"), "choose another folder")


@pytest.mark.parametrize("command, module, name, settings", [
    ("features", "radiomics.extraction", "extract", ""), ("train", "experiments.pipeline", "extract", ""), ("train", "models.training", "make_dataset", ""),
    ("train", "models.training", "make_dataset", " freeze_backbone=False augment=True"), ("experiment", "experiments.grid_runs", "_compute_shared_features", "")])
def test_a_tile_vanishes(command, module, name, settings, data, undisturbed, wholly, tmp_path):
    "After tiles were checked, and before a step reads them; put back, all goes on."
    folder, tile = tmp_path/"a", sorted(data.rglob("*.jpg"))[-1]
    words = [w + settings if w == WORDS else w for w in words_of(command, folder, data)]
    try: refused(*said(folder, words, None, (module, name, tile)), str(tile), "fetch the tile again or take it out")
    finally: tile.with_suffix(".gone").rename(tile)
    status, lines = said(folder, words)
    assert status == 0, lines
    same(folder, undisturbed(training_augmented)[0] if settings else wholly(command))


# Two at once.

@pytest.mark.parametrize("job, times", [(extracting, 3), (embedding, 3), (drawing, 3), (comparing, 1)])
def test_two_at_once(job, times, data, undisturbed, tmp_path):
    "Two processes share the cache, the cohort or the grid: both end well, with what one alone leaves."
    for trial in range(times):
        folder = tmp_path/str(trial)
        both = [begin(job, folder, data) for _ in range(2)]
        assert all([end(p) for p in both]) and [p.exitcode for p in both] == [0, 0], folder.with_suffix(".txt").read_text()[-3000:]
        same(folder, undisturbed(job)[0])


def test_two_in_one_run(data, undisturbed, tmp_path):
    "One trains, the other is refused in a line or finds it done."
    for trial in range(3):
        folder = tmp_path/str(trial)
        both = [begin(commanding, folder, words_of("train", folder, data)) for _ in range(2)]
        assert all([end(p) for p in both]) and sorted(p.exitcode for p in both) in ([0, 0], [0, 1])
        if any(p.exitcode for p in both): refused(1, folder.with_suffix(".txt").read_text().splitlines(), "another process works here")
        same(folder, undisturbed(training)[0])
