"""Keys: what determines a result is in them, what does not is not, and one run has one."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from reprune.errors import UserError
from reprune.pipeline import run
from reprune.results import show
from reprune.results.records import config_id
from reprune.runs import content as images
from reprune.runs.store import Store, baseline_key, counted
from reprune.sweeps import status

FOLDER = ["dataset=imagefolder", "dataset.classes=2", "dataset.size=16", "dataset.val_size=2", "dataset.workers=0",
          "dataset.limit=null", "method=l1", "recipe.batch_size=4"]


def keys(cfg) -> tuple[str, str]:
    store = Store(cfg)
    return store.key, baseline_key(store.config)


def draw(file, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(20, 20, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def tree(tmp_path):
    """train/ with 6 and val/ with 2 images in each of two classes."""
    names = [f"{part}/{label}/{n}.png" for part, of in {"train": 6, "val": 2}.items()
             for label in "ab" for n in range(of)]
    for seed, name in enumerate(names):
        draw(tmp_path / "tree" / name, seed)
    return tmp_path / "tree"


def test_a_run_on_a_folder_is_one_on_its_images(tree, configure, monkeypatch, tmp_path):
    options = [*FOLDER, f"data_dir={tree}"]
    record = run(configure(*options))
    (kept,) = (tmp_path / "outputs").glob("data-*.json")
    assert record["config"]["dataset"]["content"] == json.loads(kept.read_text())["facts"]["content"]
    before = keys(configure(*options))
    assert before[0] == record["key"] and (tmp_path / "outputs/baselines" / before[1]).is_dir()
    same = shutil.copytree(tree, tmp_path / "elsewhere")
    (same / "test").mkdir()
    (same / "test" / "not.read").touch()
    assert keys(configure(*FOLDER, f"data_dir={same}")) == before
    draw(tree / "train/a/0.png", 99)                              # in place
    after = keys(configure(*options))
    assert not set(after) & set(before)
    (tree / "val/b/0.png").rename(tree / "val/a/9.png")
    assert not set(keys(configure(*options))) & {*before, *after}
    assert keys(configure(*FOLDER, f"data_dir={same}")) == before
    monkeypatch.setattr(images, "WHOLE", 1)                       # a large tree: by names, sizes and times
    shutil.rmtree(tmp_path / "outputs")
    large = keys(configure(*FOLDER, f"data_dir={same}"))
    assert keys(configure(*FOLDER, f"data_dir={same}")) == large != before
    os.utime(same / "train/a/0.png", (4e9, 4e9))
    assert keys(configure(*FOLDER, f"data_dir={same}")) != large


def test_images_are_read_once(tree, configure, monkeypatch, tmp_path):
    options = [*FOLDER, f"data_dir={tree}"]
    first = keys(configure(*options))
    monkeypatch.setattr("hashlib.file_digest", lambda file, _: pytest.fail(f"{file.name} is read again"))
    assert keys(configure(*options)) == first
    monkeypatch.undo()
    (kept,) = (tmp_path / "outputs").glob("data-*.json")
    kept.write_text(kept.read_text()[:-9])                        # damaged: made again
    assert keys(configure(*options)) == first


def test_a_look_at_many_cells_walks_a_folder_once_and_the_next_look_walks_it_again(tree, monkeypatch, tmp_path, capsys):
    walks, walk = [], images.entries
    monkeypatch.setattr(images, "entries", lambda root, parts: walks.append(root) or walk(root, parts))
    sweep = [*FOLDER, f"data_dir={tree}", f"output_dir={tmp_path}/outputs", "method=l1,random", "seed=0,1,2"]
    before = {cell.key for cell in status.cells(sweep, ROOT)}
    assert len(before) == 6 and walks == [tree]
    draw(tree / "train/a/0.png", 99)
    assert not before & {cell.key for cell in status.cells(sweep, ROOT)} and walks == [tree, tree]


def test_a_pipe_among_images_is_named_and_not_waited_for(tree, configure):
    os.mkfifo(tree / "train/a/pipe.png")
    with pytest.raises(UserError, match="train/a/pipe.png: is no file"):
        Store(configure(*FOLDER, f"data_dir={tree}"))


def test_where_there_is_no_folder_a_key_is_what_it_was(configure, tmp_path):
    config = Store(configure("dataset=tinyimagenet", f"data_dir={tmp_path}/none")).config
    assert "content" not in config["dataset"] and "content" not in Store(configure()).config["dataset"]
    draw(tmp_path / "tiny-imagenet-200/train/n1/images/1.JPEG", 0)
    assert "content" in Store(configure("dataset=tinyimagenet", f"data_dir={tmp_path}")).config["dataset"]


def test_the_key_of_a_record_of_a_folder_is_verified_where_the_folder_is_not(tree, configure, root, compose):
    config = Store(configure(*FOLDER, f"data_dir={tree}", tiny=False)).config
    key = Store(configure(*FOLDER, f"data_dir={tree}", tiny=False)).key
    record = json.loads(next(root.glob("results/runs/*.json")).read_text())
    record = show.Record.model_validate({**record, "key": key, "config": config, "overrides": FOLDER})
    assert show.key_here(record, compose) == key


@pytest.mark.parametrize("option", ["+trainer.limit_train_batches=1", "+trainer.max_steps=3",
                                    "trainer.precision=bf16-mixed", "+trainer.gradient_clip_val=0.1",
                                    "trainer.deterministic=true"])
def test_what_changes_training_changes_the_key_of_the_baseline_too(option, configure):
    plain, other = keys(configure()), keys(configure(option))
    assert plain[0] != other[0] and plain[1] != other[1]


def test_a_baseline_that_was_cut_short_is_not_that_of_the_plain_command(configure):
    short = run(configure("method=l1", "+trainer.limit_train_batches=1"))
    record = run(configure("method=l1"))
    assert record["curves"]["baseline"] != short["curves"]["baseline"]


def test_where_a_run_trains_is_not_in_its_keys(configure):
    plain = keys(configure())
    for options in (["trainer=ddp", "trainer.devices=1"], ["trainer.devices=[0]"], ["trainer.accelerator=auto"],
                    ["trainer.enable_progress_bar=true"]):
        assert keys(configure(*options, "trainer.accelerator=cpu")) == plain, options


def test_several_devices_are_in_the_keys(configure):
    one, two, four = (keys(configure("trainer=ddp", f"trainer.devices={n}")) for n in (1, 2, 4))
    unlike = keys(configure("trainer=ddp", "trainer.sync_batchnorm=false"))
    assert len({*one, *two, *four, *unlike}) == 8
    assert config_id(counted(Store(configure("trainer=ddp")).config)) != config_id(counted(Store(configure()).config))


def test_threads_are_set_for_a_run_and_are_not_in_its_key(configure):
    before = torch.get_num_threads()
    record = run(configure("method=baseline", f"threads={before + 1}", "recipe.baseline.epochs=0"))
    assert record["env"]["threads"] == record["latency"]["threads"] == before + 1 == record["config"]["threads"]
    assert torch.get_num_threads() == before
    assert keys(configure("threads=3")) == keys(configure())
    with pytest.raises(UserError, match="threads=0: use a number from 1 up"):
        run(configure("threads=0"))


def test_one_run_has_one_key(configure, tmp_path):
    for short, name in (("32", "32-true"), ("16", "16-mixed"), ("bf16", "bf16-mixed"), ("64", "64-true")):
        config = Store(configure(f"trainer.precision={short}")).config
        assert config["trainer"]["precision"] == name
        assert keys(configure(f"trainer.precision={short}")) == keys(configure(f"trainer.precision={name}"))
    assert keys(configure("trainer.precision=32")) == keys(configure()) != keys(configure("trainer.precision=16"))


def test_a_renamed_file_of_weights_is_the_same_run_and_its_name_is_recorded(configure, tmp_path):
    (tmp_path / "a.th").write_bytes(b"weights")
    (tmp_path / "b sha256:.th").write_bytes(b"weights")
    (tmp_path / "c.th").write_bytes(b"others")
    a, b, c = (configure(f"model.weights='{tmp_path}/{name}.th'") for name in ("a", "b sha256:", "c"))
    assert keys(a) == keys(b) and not set(keys(a)) & set(keys(c))
    assert Store(b).config["model"]["weights"].startswith("b sha256:.th sha256:")
    one, same, other = (config_id(counted(Store(of).config)) for of in (a, b, c))
    assert one == same != other


def test_the_name_of_a_model_is_in_the_keys(configure):
    assert not set(keys(configure("model.name=mine"))) & set(keys(configure()))
