"""One image of a file, as pixels."""

from contextlib import suppress
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.functional import pil_to_tensor

from reprune.data.files import NARROW, photo

JPEG = (".jpg", ".jpeg")


def pixels(path: str | Path) -> Tensor:
    """uint8 [3, H, W]: a JPEG by torchvision's decoder, which gives Pillow's pixels in two thirds of the time (see
    bench/photos.py); anything else, and a JPEG that it does not read or should not, by Pillow. UserError as of `photo`.
    """
    if str(path).lower().endswith(JPEG):
        with suppress(Exception):                       # whoever has something to say of it is below
            with Image.open(path) as header:            # not decoded: its size, which Pillow limits, and its colours
                usual = header.format == "JPEG" and header.mode in ("RGB", "L")
                usual = usual and max(header.size) <= NARROW * min(header.size)
            if usual:
                return decode_jpeg(read_file(str(path)), ImageReadMode.RGB)
    return pil_to_tensor(photo(path))
