"""Small images: one uint8 tensor in memory (on the GPU if the net is there); a batch is three vectorised operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from reprune.data.base import Data
from reprune.data.normalize import Normalize
from reprune.data.sampler import EpochSampler, Resumable


class Images:
    """Images padded ahead with `pad` zeros on every side. pixels: uint8 [N, S, S, C]; labels: int64 [N]."""

    def __init__(self, pixels: Tensor, labels: Tensor, pad: int = 0):
        self.labels, self.pad = labels, pad
        _, self.size, _, self.channels = pixels.shape
        self.pixels = F.pad(pixels, (0, 0, pad, pad, pad, pad)) if pad else pixels.contiguous()
        self.width = self.size + 2 * pad
        self._windows = self._view(self.pixels)

    def _view(self, pixels: Tensor) -> Tensor:
        """[byte where a crop begins, row of the crop, S * C]: every possible crop, as a view that takes no memory."""
        row = self.width * self.channels
        crop_row = self.size * self.channels
        span = (self.size - 1) * row + crop_row  # bytes from the first to the last of one crop
        return pixels.view(-1).as_strided((pixels.numel() - span + 1, self.size, crop_row), (1, row, 1))

    def to(self, device) -> "Images":
        """A copy on another device (labels as well); the same object if it is there already."""
        if self.pixels.device == torch.device(device):
            return self
        moved = object.__new__(Images)
        moved.__dict__.update(self.__dict__, pixels=self.pixels.to(device), labels=self.labels.to(device))
        moved._windows = moved._view(moved.pixels)
        return moved

    def start(self, rows: Tensor, dy: Tensor | int, dx: Tensor | int) -> Tensor:
        """Byte where the crop of image `rows` [B] begins; dy, dx: 0 .. 2 * pad, in pixels; (pad, pad) is the centre."""
        return ((rows * self.width + dy) * self.width + dx) * self.channels

    def crop(self, start: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """One window per image, [B] -> uint8 [B, S, S, C]; mirrored: bool [B], left and right exchanged."""
        x = self._windows.index_select(0, start).view(-1, self.size, self.size, self.channels)
        if mirrored is None:
            return x
        both = torch.cat([x, x.flip(2)])  # choosing whole images from both is faster than a masked write
        return both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * mirrored)


class TensorLoader(Resumable):
    """Batches of `images[rows]`; with a sampler: reordered, randomly cropped and (if flip) mirrored."""

    batch_sampler = None  # Lightning reads it from whatever has a `sampler`

    def __init__(self, images: Images, rows: Tensor, batch_size: int, normalize: Normalize,
                 sampler: EpochSampler | None = None, flip: bool = False):
        self.images, self.rows, self.batch_size, self.normalize = images, rows, batch_size, normalize
        self.sampler, self.flip = sampler, flip
        self.batch_sampler = None  # Lightning asks whoever has a sampler for this

    def __len__(self) -> int:
        return -(-len(self.rows if self.sampler is None else self.sampler) // self.batch_size)

    def __iter__(self):
        self.done = getattr(self.sampler, "resume_at", 0)  # a fixed order has none
        rows, start, mirrored = self._draw()  # at the first batch, see EpochSampler
        labels = self.images.labels[rows]
        for i in range(0, len(rows), self.batch_size):
            batch = slice(i, i + self.batch_size)
            self.done += 1
            pixels = self.images.crop(start[batch], None if mirrored is None else mirrored[batch])
            yield self.normalize(pixels), labels[batch]

    def _draw(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows, first bytes and mirror flags of a whole epoch, on the images' device; drawn on the CPU."""
        rows, dy, dx, mirrored = self.rows, self.images.pad, self.images.pad, None
        if self.sampler is not None:
            order, rng = self.sampler.next_epoch()
            dy, dx = map(self.sampler.part, torch.randint(2 * self.images.pad + 1, (2, len(order)), generator=rng))
            mirrored = self.sampler.part(torch.randint(2, (len(order),), generator=rng)) if self.flip else None
            rows = rows[self.sampler.part(order)]
        device = self.images.pixels.device
        start = self.images.start(rows, dy, dx).to(device)
        return rows.to(device), start, None if mirrored is None else mirrored.to(device)


class TensorData(Data):
    """A dataset held in memory. train, test: Images; flip: mirror half of the training images."""

    def __init__(self, train: Images, test: Images, flip: bool, **fields):
        super().__init__(**fields)
        self.flip = flip
        self._images = {"train": train, "test": test}
        self._on_device: dict = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_on_device": {}}  # another process has another device

    def _loader(self, source, rows, batch_size, device, sampler=None) -> TensorLoader:
        images, normalize = self._place(source, device)
        return TensorLoader(images, rows, batch_size, normalize, sampler, self.flip)

    def _place(self, source: str, device) -> tuple[Images, Normalize]:
        """Images and constants on the device; copied there once, on first use."""
        device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one place
        key = source, device
        if key not in self._on_device:
            self._on_device[key] = self._images[source].to(device), Normalize(self.mean, self.std, self.size, device)
        return self._on_device[key]
