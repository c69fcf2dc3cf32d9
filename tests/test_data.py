"""Properties of the tensor data path: seeded randomness, disjoint parts, the pixels that torchvision gives."""

import numpy as np
import pytest
import torch
from batches import equal, labels
from PIL import Image
from torchvision import transforms as T

from reprune.data.normalize import moments
from reprune.data.split import split, stratified
from reprune.data.tensor import Images, TensorData
from reprune.errors import UserError


def colour(n=101, size=8, pad=2, flip=True, val_size=10, normalize=((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), limit=None):
    """A set of random RGB images whose label is the row number, so that a batch tells which images it holds."""
    pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(n)
    parts = split("colour", torch.zeros_like(rows), n, val_size, 0, limit)
    data = TensorData(Images(pixels, rows, pad), Images(pixels, rows), flip, name="colour", channels=3, classes=n,
                      size=size, mean=normalize[0], std=normalize[1], parts=parts)
    return data, pixels


# ---- randomness

def test_seed_and_epoch_determine_the_batches():
    data, _ = colour()
    loader = data.train(8, seed=3)
    epochs = [list(loader), list(loader)]  # nobody sets the epoch: it counts up by itself
    assert not equal(*epochs)
    again = data.train(8, seed=3)
    again.sampler.set_epoch(1)
    assert equal(again, epochs[1])
    again.sampler.set_epoch(0)
    assert equal(again, epochs[0])
    assert not equal(data.train(8, seed=4), epochs[0])


def test_an_epoch_begins_with_its_first_batch():
    """Lightning makes iterators that it never reads, and sets the epoch after it has made the one it reads."""
    loader = colour()[0].train(8, seed=0)
    iter(loader)
    unread = iter(loader)
    loader.sampler.set_epoch(5)
    late = list(unread)
    loader.sampler.set_epoch(5)
    assert equal(late, loader)


def test_global_random_state_is_neither_read_nor_changed():
    def batches():
        data, _ = colour()
        return [b for loader in (data.train(8, 0), data.plain(8, 0), data.val(8), data.test(8)) for b in loader]

    torch.manual_seed(1)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = batches()
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert equal(first, batches())


def test_lightning_sets_the_epoch():
    """A fit sees epochs 0, 1, 2 of the loader, however often it starts an iterator."""
    import pytorch_lightning as pl

    class Watch(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(8 * 8 * 3, 101), []

        def training_step(self, batch, step):
            self.seen.append(batch[1].tolist())
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def validation_step(self, batch, step):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    (data, _), net = colour(), Watch()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, **quiet).fit(net, data.train(30, 0), data.val(5))
    loader = data.train(30, 0)
    assert net.seen == [y.tolist() for _ in range(3) for _, y in loader]


# ---- parts

@pytest.mark.parametrize("limit", [None, 20])
def test_parts_are_disjoint_and_complete(limit):
    data, _ = colour(limit=limit)
    train, val = labels(data.train(8, 0)).tolist(), labels(data.val(8)).tolist()
    assert len(set(train)) == len(train) and not set(train) & set(val)
    assert sorted(labels(data.plain(8, 0)).tolist()) == sorted(data.parts.train.tolist())
    if limit is None:
        assert sorted(data.parts.train.tolist() + val) == list(range(101))
        assert labels(data.test(8)).tolist() == list(range(101))
    else:
        assert (len(train), len(val), len(labels(data.test(8)))) == (20, 10, 20)


def test_no_held_out_part_leaves_the_whole_training_set():
    data, _ = colour(val_size=0)
    assert data.parts.train.tolist() == list(range(101)) == sorted(labels(data.train(9, 0)).tolist())
    with pytest.raises(UserError, match="selection needs held-out data; set dataset.val_size"):
        data.val(8)


def test_held_out_part_is_stratified_and_depends_on_its_seed_only():
    y = torch.arange(1000) % 10
    rest, held = stratified(y, 105, seed=0)
    assert set(y[held].bincount().tolist()) <= {10, 11}
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(1000))
    assert torch.equal(held, stratified(y, 105, seed=0)[1]) and not torch.equal(held, stratified(y, 105, seed=1)[1])


def test_plain_draws_without_replacement_from_train():
    data, _ = colour()
    drawn = labels(data.plain(8, seed=0, n=30)).tolist()
    assert len(set(drawn)) == 30 and set(drawn) <= set(data.parts.train.tolist())
    assert drawn == labels(data.plain(8, seed=0, n=30)).tolist() != labels(data.plain(8, seed=1, n=30)).tolist()
    assert equal(*[data.plain(8, seed=0, n=30)] * 2)  # the same at every pass
    for n in (0, 92):
        with pytest.raises(UserError, match="cannot draw"):
            data.plain(8, seed=0, n=n)


SIZES = [(8, [8] * 11 + [3]), (45, [45, 45]), (91, [91]), (200, [91]), (1, [1] * 91)]


@pytest.mark.parametrize("batch_size, sizes", SIZES)
def test_last_batch_is_kept_unless_it_is_a_single_image(batch_size, sizes):
    loader = colour()[0].train(batch_size, 0)  # 101 - 10 held out
    assert len(loader) == len(sizes)
    assert [len(y) for _, y in loader] == sizes




# ---- pixels

def test_crops_are_sub_windows_of_the_padded_image():
    _, pixels = colour(size=8)
    pad, n = 3, len(pixels)
    images = Images(pixels, torch.arange(n), pad)
    rng = torch.Generator().manual_seed(0)
    rows, mirrored = torch.randperm(n, generator=rng), torch.randint(2, (n,), generator=rng)
    dy, dx = torch.randint(2 * pad + 1, (2, n), generator=rng)
    padded = np.pad(pixels.numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    fast = images.crop(images.start(rows, dy, dx), mirrored)
    for i in range(n):
        slow = padded[rows[i], dy[i] : dy[i] + 8, dx[i] : dx[i] + 8]
        assert np.array_equal(fast[i].numpy(), slow[:, ::-1] if mirrored[i] else slow)
    last, far = torch.tensor([n - 1]), torch.tensor([2 * pad])
    assert np.array_equal(images.crop(images.start(last, far, far))[0].numpy(), padded[-1, -8:, -8:])


def test_training_uses_every_offset_and_both_mirrorings_per_image():
    data, pixels = colour(pad=1, n=103, val_size=3, normalize=((0.0,) * 3, (1.0,) * 3))
    padded = np.pad(pixels.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for x, y in data.train(25, seed=0):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        for image, row in zip((x * 255).round().byte().permute(0, 2, 3, 1).numpy(), y.tolist(), strict=True):
            windows = {(dy, dx, m): padded[row, dy : dy + 8, dx : dx + 8][:, :: 1 - 2 * m]
                       for dy in range(3) for dx in range(3) for m in range(2)}
            found = [where for where, window in windows.items() if np.array_equal(window, image)]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) == 18  # 9 offsets x 2


def test_normalised_pixels_equal_torchvision_transforms():
    data, pixels = colour()
    reference = T.Compose([T.ToTensor(), T.Normalize(data.mean, data.std)])
    expected = torch.stack([reference(Image.fromarray(p.numpy())) for p in pixels])
    for loader in (data.test(8), data.val(8), data.plain(8, 0)):
        for x, y in loader:
            torch.testing.assert_close(x, expected[y], rtol=0, atol=2e-6)


def test_augmentation_has_the_distribution_of_torchvision():
    """Mean over many crops of one image: both recipes average the same windows."""
    data, pixels = colour(n=2, pad=2, val_size=0, normalize=((0.0,) * 3, (1.0,) * 3))
    image = Image.fromarray(pixels[0].numpy())
    recipe = T.Compose([T.RandomCrop(8, 2), T.RandomHorizontalFlip(), T.ToTensor()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([recipe(image) for _ in range(2000)]).mean(0)
    loader = data.train(2, seed=0)
    ours = torch.stack([x[y == 0][0] for _ in range(2000) for x, y in loader]).mean(0)
    assert (ours - theirs).abs().max() < 0.05


def test_batches_do_not_share_memory_with_the_dataset():
    data, _ = colour()
    before = list(data.test(8))
    for x, y in data.test(8):
        x.zero_(), y.zero_()
    assert equal(before, data.test(8))


def test_moments_equal_numpy():
    _, pixels = colour()
    mean, std = moments(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (pixels / 255).flatten(0, 2).std(0), atol=1e-4)


def test_bad_batch_size():
    data, _ = colour()
    with pytest.raises(UserError, match="batch size must be at least 1"):
        data.train(0, seed=0)
