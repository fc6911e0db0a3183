"""Images that look alike: a perceptual hash finds candidates, small copies confirm them.

A copy that was scaled, recompressed, brightened or mirrored is found, and so is the next frame of a
video; a copy that was cropped, turned or put on a larger canvas is not.
"""

from typing import NamedTuple

import cv2
import numpy as np

from fsd.data.decoding import THUMBNAIL_PX

# Hash bits that may differ, of 256. Among 443,000 pairs of unrelated photographs (people who fall,
# blood cells under a microscope), plain and mirrored, the most alike differed in 80, half of them in
# 128; of the neighbouring frames of two videos 86 % and 97 % differed in 64 or fewer.
MAX_BITS = 64
# Least correlation of two 16 x 16 colour copies. The unrelated pairs reached 0.86, neighbouring
# frames had more than 0.96 in 84 % and 93 % of the pairs. Just below it frames of one room pair up in
# which the person is at another place; and so a mirrored photograph with a strip of text that is not
# mirrored (0.89) is missed. With both thresholds and frames dealt out at random, 9 in 10 test frames
# were found to have a near-duplicate in train.
MIN_CORRELATION = 0.96
_LOW = 16  # frequencies in each direction that the hash keeps
_ROWS = 256  # images held against all others at a time: bounds the memory


class Nearest(NamedTuple):
    """For every image the one in every split that looks most like it; see `nearest`."""

    partner: np.ndarray  # [N, splits] int64, position of an image; -1: none looks alike
    correlation: np.ndarray  # [N, splits] float32
    mirrored: np.ndarray  # [N, splits] bool: the partner's mirror image looks alike


def hashes(thumbnails: np.ndarray) -> np.ndarray:
    """[N, 32, 32, 3] uint8 BGR to [N, 4] uint64: which of the low frequencies lie above their median.

    The "pHash" of C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions
    (2010), with 16 x 16 frequencies instead of 8 x 8.
    """
    grey = thumbnails.astype(np.float32) @ np.array([0.114, 0.587, 0.299], np.float32)
    low = np.stack([cv2.dct(image)[:_LOW, :_LOW].ravel() for image in grey])
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # without the mean brightness
    return np.packbits(bits, axis=1).view(np.uint64)


def nearest(thumbnails: np.ndarray, same: np.ndarray, split: np.ndarray, splits: int) -> Nearest:
    """The image of each split that looks most like each image, of those above the thresholds.

    thumbnails [N, 32, 32, 3] uint8; same [N]: images of equal number are the same pixels, which is
    another finding, and no pair here; split [N] int, 0..splits-1. All N * N / 2 pairs are looked at,
    and their mirror images, in memory that grows with N.
    """
    count = len(thumbnails)
    found = Nearest(
        np.full((count, splits), -1, np.int64),
        np.full((count, splits), -1, np.float32),
        np.zeros((count, splits), bool),
    )
    plain = hashes(thumbnails)
    copies = _standardised(thumbnails)
    members = [np.flatnonzero(split == s) for s in range(splits)]
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        for mirrored in (False, True):
            mine = thumbnails[rows, :, ::-1] if mirrored else thumbnails[rows]
            hits = _bits_apart(hashes(mine), plain[start:]) <= MAX_BITS
            hits &= same[rows, None] != same[None, start:]
            if not hits.any():
                continue
            near, far = np.flatnonzero(hits.any(1)), np.flatnonzero(hits.any(0))
            alike = _standardised(mine[near]) @ copies[start + far].T
            alike[~hits[np.ix_(near, far)] | (alike < MIN_CORRELATION)] = -1
            _keep_best(found, alike, rows[near], start + far, members, mirrored)
            _keep_best(found, alike.T, start + far, rows[near], members, mirrored)
    return found


def _bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[A, 4] and [B, 4] uint64 to [A, B]: how many bits differ."""
    apart = np.zeros((len(one), len(other)), np.uint16)
    for word in range(one.shape[1]):
        apart += np.bitwise_count(one[:, None, word] ^ other[None, :, word])
    return apart


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """[N, 32, 32, 3] to [N, 768] float32 whose products are correlations; a flat image gets zeros."""
    half = THUMBNAIL_PX // 2
    small = thumbnails.reshape(-1, half, 2, half, 2, 3).mean((2, 4), dtype=np.float32)
    flat = small.reshape(len(small), -1)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)


def _keep_best(
    found: Nearest,
    alike: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    members: list[np.ndarray],
    mirrored: bool,
) -> None:
    """Where an image of `columns` is more like one of `rows` than what was found so far, note it."""
    for s, inside in enumerate(members):
        of_split = np.flatnonzero(np.isin(columns, inside, assume_unique=True))
        if not len(of_split):
            continue
        part = alike[:, of_split]
        best = part.argmax(1)
        value = part[np.arange(len(rows)), best]
        better = value > found.correlation[rows, s]
        at = rows[better]
        found.correlation[at, s] = value[better]
        found.partner[at, s] = columns[of_split[best[better]]]
        found.mirrored[at, s] = mirrored
