"""Quantisers of the digital scheme by name: vectors as codes of a few bits, and what the server decodes from them.

`uniform` and `eden` have errors of mean zero, `top_k` and `sign` have not: what they leave out is lost unless it stays
on the device and is sent in a later round (`devices.memory`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.air.mixing import hadamard, hadamard_blocks
from airpfed.air.quantization import BUCKET, SCALE_BITS, bits_of, in_buckets, stochastic_codes
from airpfed.air.symbols import zero_tail

SCALAR_BITS = 32
"""Bits of a scale of `eden` and of the two magnitudes of `top_k`, which travel as float32."""
ROTATION = 4096
"""Largest block of a randomised Hadamard transform."""
SMALLEST_ROTATION = 64
"""Smallest block; the end of a vector is padded with zeros to this size."""
RANGE = 2.0**-20
"""Magnitude over the largest below which `top_k` sends nothing: zeros have no place among geometric steps."""
DEFAULT_SHARE = 0.01
"""Share of the entries that `top_k` sends if the settings give none."""


@dataclass(frozen=True)
class QuantizedVectors:
    """Some devices' vectors as bits.

    values: what the server decodes. variance: the squared error of each entry as the device knows it, or its mean; the
    errors of different devices are independent, of mean zero. None if they have another mean. codes: integers that are
    sent, of which only the first num_codes of a row count. levels: number of different codes. side_bits: what is sent
    beside the codes, such as scales.
    """

    values: Float[Tensor, "R d"]
    variance: Float[Tensor, "R d"] | None
    codes: Int[Tensor, "R n"]
    num_codes: Int[Tensor, " R"]
    levels: int
    side_bits: Float[Tensor, " R"]


@dataclass(frozen=True)
class Quantizer:
    """A quantiser.

    quantise: (vectors, lengths, bits, share, random generator) -> QuantizedVectors; vectors (R, d) are zero beyond the
    lengths (R). num_bits: (entries, bits, share) -> bits of a vector with codes of fixed length. unbiased: whether its
    errors have mean zero.
    """

    quantise: Callable[[Tensor, Tensor, int, float, torch.Generator], QuantizedVectors]
    num_bits: Callable[[int, int, float], float]
    unbiased: bool


def uniform(
    vectors: Float[Tensor, "R d"], lengths: Int[Tensor, " R"], bits: int, share: float, rng: torch.Generator
) -> QuantizedVectors:
    """Round at random to levels that are spread evenly over each bucket's range (`quantization`)."""
    codes, values, variance = stochastic_codes(vectors, bits, rng)
    scales = -(-lengths.double() // BUCKET) * SCALE_BITS
    return QuantizedVectors(values, variance, codes.long(), lengths, 2**bits, scales)


def eden(
    vectors: Float[Tensor, "R d"], lengths: Int[Tensor, " R"], bits: int, share: float, rng: torch.Generator
) -> QuantizedVectors:
    """Rotate blocks at random, round each entry to the nearest Lloyd-Max level, and scale without bias.

    x is a block of n entries, R = H D' H D / n with random signs D and D' that device and server share, and Q the
    levels nearest to Rx sqrt(n) / ||x||. The device sends Q and S = ||x||^2 / <Rx, Q>; the server decodes S R^T Q
    (EDEN, Vargaftik et al., ICML 2022). Given any signs <decoded, x> = ||x||^2, so that nothing is lost along x. Across
    x the error has mean zero exactly for a uniformly random rotation, and in the limit of large blocks for this one. A
    single transform does not suffice: it leaves a vector of one large entry flat, and with one bit the small entries
    are then lost in the mean, too. The squared error is S^2 ||Q||^2 - ||x||^2, which the device knows. Random: the
    signs.
    """
    levels = gaussian_levels(bits)
    thresholds = (levels[1:] + levels[:-1]) / 2
    sizes = torch.tensor([sum(count * size for _, count, size in rotation_blocks(int(n))) for n in lengths])
    values, codes = torch.zeros_like(vectors), torch.zeros(len(vectors), int(sizes.max()), dtype=torch.long)
    scales = torch.zeros(len(vectors), dtype=torch.float64)
    for rows, length in _rows_of_equal_length(lengths):
        blocks = rotation_blocks(length)
        width = sum(count * size for _, count, size in blocks)
        signs, second_signs = 2.0 * torch.randint(2, (2, len(rows), width), generator=rng).to(vectors.dtype) - 1.0
        x = torch.nn.functional.pad(vectors[rows, :length], (0, width - length))
        decoded, code = torch.empty_like(x), torch.empty(x.shape, dtype=torch.long)
        for first, count, size in blocks:
            part = slice(first, first + count * size)
            flips, second_flips = (s[:, part].reshape(-1, size) for s in (signs, second_signs))
            rotated = hadamard(hadamard(x[:, part].reshape(-1, size) * flips) * second_flips)
            norm = torch.linalg.vector_norm(rotated, dim=1, keepdim=True)
            code_part = torch.bucketize(rotated * (size**0.5 / torch.where(norm > 0, norm, 1.0)), thresholds)
            nearest = levels[code_part]
            alignment = (rotated * nearest).sum(1, keepdim=True)
            scale = torch.where(alignment > 0, norm.square() / torch.where(alignment > 0, alignment, 1.0), 0.0)
            scale = scale.float().to(x.dtype)  # as it travels
            back = hadamard(hadamard(scale * nearest) * second_flips) * flips
            decoded[:, part] = back.reshape(len(rows), -1)
            code[:, part] = code_part.reshape(len(rows), -1)
            scales[rows] += count * SCALAR_BITS
        values[rows, :length], codes[rows, :width] = decoded[:, :length], code
    return QuantizedVectors(values, (values - vectors).square(), codes, sizes, 2**bits, scales)


def eden_bits(entries: int, bits: int, share: float) -> float:
    """The bits of `eden` for a vector: codes of all entries of its blocks, and a scale a block."""
    return float(sum(count * (size * bits + SCALAR_BITS) for _, count, size in rotation_blocks(entries)))


def rotation_blocks(entries: int) -> list[tuple[int, int, int]]:
    """The blocks of a vector as (first entry, number of blocks, size): the largest first, then smaller powers of two.

    >>> rotation_blocks(5000)  # the last 8 entries are padded to 64
    [(0, 1, 4096), (4096, 1, 512), (4608, 1, 256), (4864, 1, 128), (4992, 1, 64)]
    """
    return hadamard_blocks(entries, ROTATION, SMALLEST_ROTATION, padded=True)


@cache
def gaussian_levels(bits: int) -> Float[Tensor, " {2**bits}"]:
    """The 2^bits levels of least squared error for N(0, 1), by Lloyd's iteration (Max 1960; Lloyd 1982).

    >>> [round(float(level), 3) for level in gaussian_levels(2)]
    [-1.51, -0.453, 0.453, 1.51]
    """
    half = 2 ** (bits - 1)
    # Begin with the best density of many levels, that of N(0, 3) (Panter and Dite 1951).
    middle = (torch.arange(half, dtype=torch.float64) + 0.5) / (2 * half)
    levels = 3**0.5 * 2**0.5 * torch.erfinv(2 * middle)
    border = torch.zeros(1, dtype=torch.float64), torch.full((1,), torch.inf, dtype=torch.float64)
    for _ in range(1000):
        edges = torch.cat([border[0], (levels[1:] + levels[:-1]) / 2, border[1]])
        density = torch.exp(-edges.square() / 2) * (2 / math.pi) ** 0.5
        tail = torch.erfc(edges / 2**0.5)
        levels = (density[:-1] - density[1:]) / (tail[:-1] - tail[1:])
    return torch.cat([-levels.flip(0), levels])


def top_k(
    vectors: Float[Tensor, "R d"], lengths: Int[Tensor, " R"], bits: int, share: float, rng: torch.Generator
) -> QuantizedVectors:
    """Send the entries of largest magnitude, and nothing of the others.

    share: of the entries, rounded, at least one. A code is a sign and the nearest of 2^(bits - 1) magnitudes, in
    geometric steps from the smallest that is sent to the largest (with one bit their mean). The error of an entry is
    below its magnitude, so that error feedback converges (Stich et al., NeurIPS 2018). Positions travel as the number
    of their combination, log2 of d over k bits. Not random.
    """
    half = 2 ** (bits - 1)
    counts = torch.tensor([num_largest(int(n), share) for n in lengths])
    values, codes = torch.zeros_like(vectors), torch.zeros(len(vectors), int(counts.max()), dtype=torch.long)
    positions = torch.tensor([position_bits(int(n), int(k)) for n, k in zip(lengths, counts, strict=True)])
    for rows, length in _rows_of_equal_length(lengths):
        x = vectors[rows, :length]
        index = x.abs().topk(num_largest(length, share), dim=1).indices
        chosen = x.gather(1, index)
        magnitude = chosen.abs()
        largest = magnitude[:, :1].float().double()
        smallest = torch.maximum(magnitude[:, -1:].float().double(), largest * RANGE)
        if half == 1:
            level, number = magnitude.mean(1, keepdim=True).float().double(), torch.zeros_like(index)
        else:
            step = (largest / torch.where(smallest > 0, smallest, 1.0)).clamp_min(1.0).log() / (half - 1)
            place = (magnitude / torch.where(smallest > 0, smallest, 1.0)).clamp_min(1.0).log()
            number = (place / torch.where(step > 0, step, 1.0)).floor().clamp(0, half - 1).long()
            lower, upper = (smallest * torch.exp(step * n) for n in (number, (number + 1).clamp_max(half - 1)))
            nearer = magnitude - lower > upper - magnitude
            level, number = torch.where(nearer, upper, lower), (number + nearer).clamp_max(half - 1)
        is_sent = (magnitude > 0) & (magnitude >= smallest * (1 - 1e-6))  # the smallest was rounded to float32
        level = torch.where(is_sent, level, 0.0)
        values[rows] = values[rows].scatter(1, index, torch.where(chosen < 0, -level, level).to(vectors.dtype))
        codes[rows, : index.shape[1]] = number + half * (chosen < 0)
        counts[rows] = is_sent.sum(1)
    return QuantizedVectors(values, None, codes, counts, 2**bits, positions + 2.0 * SCALAR_BITS)


def top_k_bits(entries: int, bits: int, share: float) -> float:
    """The bits of `top_k` for a vector: codes, positions, and the smallest and largest magnitude."""
    count = num_largest(entries, share)
    return count * bits + position_bits(entries, count) + 2.0 * SCALAR_BITS


def num_largest(entries: int, share: float) -> int:
    """The number of entries that `top_k` sends of a vector: a share, rounded, at least one."""
    return min(entries, max(1, round(share * entries)))


def position_bits(entries: int, count: int) -> float:
    """The whole bits that number the subsets of `count` of `entries` positions: log2 of the binomial coefficient.

    >>> position_bits(8, 2)  # 28 pairs
    5.0
    """
    logarithm = math.lgamma(entries + 1) - math.lgamma(count + 1) - math.lgamma(entries - count + 1)
    return float(math.ceil(max(0.0, logarithm / math.log(2) - 1e-6)))


def sign(
    vectors: Float[Tensor, "R d"], lengths: Int[Tensor, " R"], bits: int, share: float, rng: torch.Generator
) -> QuantizedVectors:
    """Send the signs, and for each bucket of 512 entries their mean magnitude ||x||_1 / n as bfloat16.

    The scale is that of signSGD with error feedback (Karimireddy et al., ICML 2019). Not random.
    """
    width = vectors.shape[1]
    buckets = in_buckets(vectors)
    starts = torch.arange(0, width, BUCKET)
    counts = (lengths[:, None] - starts).clamp(1, BUCKET)
    scale = (buckets.abs().sum(2) / counts).bfloat16().to(vectors.dtype)
    is_negative = buckets < 0
    values = torch.where(is_negative, -scale[:, :, None], scale[:, :, None]).flatten(1)[:, :width]
    scales = -(-lengths.double() // BUCKET) * SCALE_BITS
    codes = is_negative.flatten(1)[:, :width].long()
    return QuantizedVectors(zero_tail(values, lengths), None, codes, lengths, 2, scales)


QUANTIZERS = {
    "uniform": Quantizer(uniform, lambda entries, bits, share: float(bits_of(entries, bits)), unbiased=True),
    "eden": Quantizer(eden, eden_bits, unbiased=True),
    "top_k": Quantizer(top_k, top_k_bits, unbiased=False),
    "sign": Quantizer(sign, lambda entries, bits, share: float(bits_of(entries, 1)), unbiased=False),
}
"""The quantisers that the option `quantizer` of the scheme `digital` knows."""


def coded_bits(quantized: QuantizedVectors, fixed: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """The bits of vectors whose codes a lossless coder shortens, by its ideal length, not by a coder that was run.

    The length is n times the empirical entropy of a vector's n codes, and 16 bits for each possible code, whose count
    the decoder needs. fixed: bits of a vector with codes of fixed length; the device sends what is shorter, after one
    bit that says which.
    """
    counts = torch.zeros(len(quantized.codes), quantized.levels, dtype=torch.float64)
    valid = torch.arange(quantized.codes.shape[1]) < quantized.num_codes[:, None]
    counts.scatter_add_(1, quantized.codes, valid.double())
    total = quantized.num_codes.double().clamp_min(1.0)
    entropy = -torch.special.xlogy(counts, counts / total[:, None]).sum(1) / math.log(2)
    ideal = entropy.ceil() + quantized.levels * SCALE_BITS + quantized.side_bits
    return torch.minimum(fixed, ideal) + 1.0


def _rows_of_equal_length(lengths: Int[Tensor, " R"]) -> Iterator[tuple[Int[Tensor, " r"], int]]:
    """Yield the rows of each length, the shortest first; lengths of 0 are left out."""
    for length in torch.unique(lengths).tolist():
        if length:
            yield (lengths == length).nonzero().flatten(), length
