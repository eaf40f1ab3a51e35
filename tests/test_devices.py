"""A batch shared by two processes gives what one process gives; every tensor moves with its module."""
import hashlib, itertools, os, shutil, socket, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from osteonb.core.config import configure
from osteonb.core.files import read_table
from osteonb.core.labels import CLASSES
from osteonb.synthetic.cohort import make_cohort
from osteonb.models.backbone import Backbone
from osteonb.models.fusion import _join_members, make_network
from osteonb.models.loss import HierarchicalLoss
from osteonb.models.scaling import fit_scaler
from osteonb.models.training import Learner, fit


def cohort(folder, n=40):
    "Tiles of noise, folds and features."
    rng = np.random.default_rng(0)
    tiles = pd.DataFrame(dict(label=np.array(CLASSES)[np.arange(n) % 3], path=[str(folder/f"{i}.png") for i in range(n)]), index=[f"t{i}" for i in range(n)])
    for path in tiles.path: Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(path)
    tiles["sha256"] = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in tiles.path]
    folds = pd.DataFrame(dict(part=np.where(np.arange(n) % 4 == 0, "valid", "train")), index=tiles.index)
    return tiles, folds, pd.DataFrame(rng.normal(size=(n, 4)), tiles.index, list("abcd"))


def test_two_processes_give_what_one_gives(tmp_path):
    "Batches of 7 and 8, shared as 4 and 4 with one tile twice; the backbone has layer normalisation."
    tiles, folds, features = cohort(tmp_path)
    settings = dict(preset="plain", backbone="convnext_atto", pretrained_weights="none", image_size=32, freeze_backbone=False, augment=True, max_epochs=3, min_epochs=3, batch_size=9)
    (one, alone), (two, shared) = (fit(configure(**settings, devices=d), tiles, folds, features, tmp_path/str(d), tmp_path/"cache") for d in (1, 2))
    pd.testing.assert_frame_equal(alone, shared, rtol=1e-3)
    for name, tensor in one.net.state_dict().items(): assert torch.allclose(tensor.float(), two.net.state_dict()[name].float(), atol=.01), name
    start = fit(configure(**settings | dict(max_epochs=1, min_epochs=0, lr=1e-12)), tiles, folds, features, cache_dir=tmp_path/"cache")[0].net.state_dict()
    moved = max((one.net.state_dict()[k] - v).abs().max() for k, v in start.items() if v.is_floating_point())
    apart = max((one.net.state_dict()[k] - v).abs().max() for k, v in two.net.state_dict().items() if v.is_floating_point())
    assert apart < moved/2, (apart, moved)
    assert sorted(p.name for p in (tmp_path/"2"/"checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    again, history = fit(configure(**settings, devices=2), tiles, folds, features, tmp_path/"2", tmp_path/"cache")      # taken up at its end
    assert len(history) == 3 and all(torch.equal(v, two.net.state_dict()[k]) for k, v in again.net.state_dict().items())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled(tmp_path):
    "A compiled backbone trains as another does, and is kept under the same names."
    tiles, folds, features = cohort(tmp_path, 24)
    settings = dict(preset="plain", backbone="test_resnet", pretrained_weights="none", image_size=32, freeze_backbone=False, max_epochs=2, min_epochs=2, batch_size=6)
    (plain, usual), (fast, compiled) = (fit(configure(**settings, compile_backbone=c), tiles, folds, features, cache_dir=tmp_path/"cache") for c in (False, True))
    pd.testing.assert_frame_equal(usual, compiled, rtol=1e-2)
    assert list(plain.net.state_dict()) == list(fast.net.state_dict())


def test_two_machines_give_what_one_gives(tmp_path):
    "torchrun twice, as on two machines with a processor each that see the same disk: one run folder, the history of a single process, and no file more."
    data, bin = make_cohort(tmp_path/"cohort", scale=.25, size=64, n_jobs=1), Path(sys.executable).parent
    settings = "tile_size=64 image_size=32 backbone=convnext_atto pretrained_weights=none freeze_backbone=false augment=true max_epochs=2 min_epochs=2 batch_size=9"
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    def train(folder, more, *launcher):
        words = [*launcher, bin/"osteonb", "train", "--out", tmp_path/folder, "--data", data, "--test-group", "Case-904", "--preset", "plain", "--cache", tmp_path/"cache", "--jobs", "1", "--set", f"{settings} {more}"]
        return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    def end(process):
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said[1][-3000:]
        return said[0]
    end(train("one", ""))
    for _ in range(2):                     # the second time there is nothing to do, and nobody waits for the other
        both = [train("two", "num_nodes=2", bin/"torchrun", "--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", port, "--no_python") for rank in (0, 1)]
        assert [end(p).count("best validation AUC") for p in both] == [1, 0]
    pd.testing.assert_frame_equal(*(read_table(tmp_path/folder/"history.csv") for folder in ("one", "two")), rtol=1e-3)
    assert {p.name for p in (tmp_path/"two").iterdir()} == {p.name for p in (tmp_path/"one").iterdir()}
    alone = train("none", "num_nodes=2")
    assert "each of 2 machines has to start this command" in alone.communicate(timeout=60)[1] and alone.returncode == 1


def still_here(module):
    "Names of the tensors that stay on the processor when a module is moved to the device `meta`."
    for name, part in module.to("meta").named_modules():
        tensors = {key: value for key, value in vars(part).items() if isinstance(value, torch.Tensor)}
        for key, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *tensors.items()]:
            if value.device.type != "meta":
                yield f"{type(part).__name__} {name}.{key}"
        for key, value in vars(part).items():  # tensors that a module holds in a list or a dictionary of its own
            values = value.values() if isinstance(value, dict) and not key.startswith("_") else value if isinstance(value, (list, tuple)) else ()
            yield from (f"{type(part).__name__} {name}.{key}" for one in values if isinstance(one, torch.Tensor))


def test_every_tensor_moves_with_its_module():
    "Networks of every kind, and losses with every weighting: nothing is left on the processor."
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 4)), columns=list("abcd"))
    scaler = fit_scaler(features, features.index)
    kinds = itertools.product(("gate", "concat", "late"), ("mean", "attention"), ("hierarchical", "flat"), ("learned", "fixed", "kendall"))
    for fusion, pooling, head, weighting in kinds:
        config = configure("plain", backbone="test_resnet", pretrained_weights="none", image_size=32, freeze_backbone=False, fusion=fusion, pooling=pooling, head=head, task_weighting=weighting)
        net = make_network(config, Backbone("test_resnet", "none", 32), scaler)
        learner = Learner(net, HierarchicalLoss([1, 2, 3], head, weighting), config)
        assert not list(still_here(learner)), list(still_here(learner))
        batch = dict(image=torch.zeros(4, 3, 32, 32, dtype=torch.uint8), radiomics=torch.zeros(4, 4), target=torch.zeros(4).long())
        batch = {name: values.to("meta") for name, values in batch.items()}
        output = learner(batch)
        losses = learner.loss.task_losses(output.logits, batch["target"])
        assert learner.loss.balance(torch.stack(list(losses.values()))).device.type == "meta"
    frozen = configure("plain", backbone="test_resnet", pretrained_weights="none", image_size=32)
    members = _join_members([make_network(frozen, Backbone("test_resnet", "none", 32), scaler) for _ in range(2)])
    assert not list(still_here(members))
    assert {one.device.type for one in members(torch.zeros(3, 1, members.members[0].pool.width, device="meta"), torch.zeros(3, 4, device="meta")).logits.values()} == {"meta"}
