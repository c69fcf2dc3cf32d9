r"""Huffman-coded sparse weights as a file.                  Huffman 1952; Han, Mao & Dally, ICLR 2016, arXiv:1510.00149

    weight    its entries that are not zero: values v_1 .. v_n and gaps g_i = p_i - p_(i-1) - 1 between their places p_i
    gaps      < 2^b; a larger one is cut by filler zeros, each with the largest gap: b is 8 in convs, 5 in linear layers
    values    indices into a codebook of the distinct ones, 0 for a filler
    coded     gaps and indices, each by a prefix code of its own, as short for a symbol as it is frequent

Of a code the file keeps one byte per symbol, the length of its code word; the words are the canonical ones of these
lengths, in the order of length and then symbol. The last symbol ends the stream. Where a weight has more distinct
values than `shared`, they are kept one by one as they are, fillers too, and nothing is said by indices.

Lossless: any net comes back as it was; one whose weights are neither zero nor shared only gets larger.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from dahuffman.huffmancodec import HuffmanCodec, PrefixCodec
from torch import Tensor

from reprune.errors import UserError
from reprune.models.packed import Packed, Parts


def lengths(symbols: list[int], n: int) -> list[int]:
    """Bits of the code word of each symbol 0 .. n - 1, and of the end, n; 0: it does not occur.

    >>> lengths([0, 0, 0, 0, 1, 2], 4)
    [1, 3, 3, 0, 2]
    """
    table = HuffmanCodec.from_frequencies(Counter(symbols) or {n: 1}, concat=list, eof=n).get_code_table()
    return [max(1, table[s][0]) if s in table else 0 for s in range(n + 1)]


def canonical(bits: list[int]) -> dict[int, tuple[int, int]]:
    """Symbol -> (bits, code word): the words of each length count up, from the last of the shorter ones.

    >>> {s: f"{word:0{n}b}" for s, (n, word) in canonical([1, 3, 2, 0, 3]).items()}
    {0: '0', 2: '10', 1: '110', 4: '111'}
    """
    table, word, before = {}, 0, 0
    for n, symbol in sorted((n, symbol) for symbol, n in enumerate(bits) if n):
        word = (word + bool(table)) << (n - before)
        table[symbol], before = (n, word), n
    return table


def compress(symbols: list[int], n: int) -> tuple[Tensor, Tensor]:
    """-> code lengths [n + 1], bytes; both uint8"""
    bits = lengths(symbols, n)
    data = PrefixCodec(canonical(bits), eof=n).encode(symbols)
    return torch.tensor(bits, dtype=torch.uint8), torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)


def expand(bits: Tensor, data: Tensor) -> list[int]:
    """The symbols again.

    >>> expand(*compress([3, 1, 1, 0, 1], 4))
    [3, 1, 1, 0, 1]
    """
    return list(PrefixCodec(canonical(bits.tolist()), eof=len(bits) - 1).decode(bytes(data.tolist())))


def gaps(places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """-> gaps with fillers, and True where an entry is no filler. places: of what is not zero, rising

    >>> [each.tolist() for each in gaps(np.array([0, 2, 12]), width=2)]          # 9 zeros: twice 3 and a filler, then 1
    [[0, 1, 3, 3, 1], [True, True, False, False, True]]
    """
    steps = np.diff(places, prepend=-1) - 1
    fillers = steps >> width
    last = np.cumsum(fillers + 1) - 1                             # where each entry comes to stand
    found = np.full(last[-1] + 1 if len(last) else 0, 2**width - 1)
    found[last] = steps & (2**width - 1)
    return found, np.isin(np.arange(len(found)), last)


class Huffman(Packed):
    """conv, linear: bits of a gap; shared: distinct values that a codebook may hold."""

    def __init__(self, conv: int = 8, linear: int = 5, shared: int = 256):
        if not (1 <= conv <= 16 and 1 <= linear <= 16 and shared >= 1):
            raise UserError(f"method.codec: gaps have 1 to 16 bits and a codebook at least 1 value, got conv={conv}, "
                            f"linear={linear}, shared={shared}")
        self.conv, self.linear, self.shared = conv, linear, shared

    def width(self, shape: torch.Size) -> int:
        return self.conv if len(shape) > 2 else self.linear

    def pack(self, weight: Tensor) -> Parts:
        flat, width = weight.flatten(), self.width(weight.shape)
        places = flat.nonzero().squeeze(1)
        steps, real = gaps(places.numpy(), width)
        values, index = flat[places].unique(return_inverse=True)
        parts = dict(zip(("gap_bits", "gaps"), compress(steps.tolist(), 2**width), strict=True))
        each = torch.zeros(len(steps), dtype=torch.long)
        each[torch.from_numpy(real)] = index + 1
        if len(values) > self.shared:
            values = torch.cat([values.new_zeros(1), values])[each]
            return {**parts, "codebook": values, "index_bits": torch.empty(0, dtype=torch.uint8),
                    "indices": torch.empty(0, dtype=torch.uint8)}
        index_bits, indices = compress(each.tolist(), len(values) + 1)
        return {**parts, "codebook": values, "index_bits": index_bits, "indices": indices}

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        steps = torch.tensor(expand(parts["gap_bits"], parts["gaps"]), dtype=torch.long)
        values = parts["codebook"]
        if len(parts["index_bits"]):
            index = torch.tensor(expand(parts["index_bits"], parts["indices"]), dtype=torch.long)
            values = torch.cat([values.new_zeros(1), values])[index]
        flat = torch.zeros(shape.numel())
        flat[(steps + 1).cumsum(0) - 1] = values
        return flat.view(shape)
