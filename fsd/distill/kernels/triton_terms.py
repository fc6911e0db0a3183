"""The four weighted terms of a level on a GPU, from sums of its maps; and the masks from the boxes.

With a = added_s - added_t, d = sum_p (s - t) and q = sum_p (s - t)^2 per image and channel, the squared
distance of the two maps with those numbers added is q + 2 a d + P a^2.
"""

import triton
import triton.language as tl


@triton.jit
def terms(
    numbers_ptr, difference_ptr, squares_ptr, added_s_ptr, added_t_ptr, out_ptr, B, C, P,
    FG: tl.constexpr, BG: tl.constexpr, ATTENTION: tl.constexpr, RELATION: tl.constexpr,
    PRODUCT: tl.constexpr, BB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [4]: foreground, background, attention, relation. One program: all it reads is small."""
    b = tl.arange(0, BB)
    foreground = tl.sum(tl.load(numbers_ptr + 3 * b, b < B, other=0.0), 0)
    background = tl.sum(tl.load(numbers_ptr + 3 * b + 1, b < B, other=0.0), 0)
    attention = tl.sum(tl.load(numbers_ptr + 3 * b + 2, b < B, other=0.0), 0)
    relation = foreground * 0.0
    for first in range(0, B * C, BLOCK):
        i = first + tl.arange(0, BLOCK)
        real = i < B * C
        added = tl.load(added_s_ptr + i, real, other=0.0)
        added -= tl.load(added_t_ptr + i, real, other=0.0)
        difference = tl.load(difference_ptr + i, real, other=0.0)
        squares = tl.load(squares_ptr + i, real, other=0.0)
        relation += tl.sum(squares + added * (2.0 * difference + P * added), 0)
    rows = B if PRODUCT else B * C
    tl.store(out_ptr, foreground / rows * FG)
    tl.store(out_ptr + 1, background / rows * BG)
    tl.store(out_ptr + 2, attention / B * ATTENTION)
    tl.store(out_ptr + 3, relation / B * RELATION)


@triton.jit
def terms_backward(
    up_ptr, difference_ptr, added_s_ptr, added_t_ptr, out_ptr, for_sums_ptr, B, C, P,
    FG: tl.constexpr, BG: tl.constexpr, ATTENTION: tl.constexpr, RELATION: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [3, B, C]: by difference, added_s, added_t; for_sums [4]: by each number, each square."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < B * C
    rows = B if PRODUCT else B * C
    each = tl.load(up_ptr + 3) * RELATION / B
    added = tl.load(added_s_ptr + i, real, other=0.0) - tl.load(added_t_ptr + i, real, other=0.0)
    difference = tl.load(difference_ptr + i, real, other=0.0)
    slope = 2.0 * each * (difference + P * added)
    tl.store(out_ptr + i, 2.0 * each * added, real)
    tl.store(out_ptr + B * C + i, slope, real)
    tl.store(out_ptr + 2 * B * C + i, -slope, real)
    if tl.program_id(0) == 0:
        tl.store(for_sums_ptr, tl.load(up_ptr) * FG / rows)
        tl.store(for_sums_ptr + 1, tl.load(up_ptr + 1) * BG / rows)
        tl.store(for_sums_ptr + 2, tl.load(up_ptr + 2) * ATTENTION / B)
        tl.store(for_sums_ptr + 3, each)


@triton.jit
def foreground(
    boxes_ptr, labels_ptr, out_ptr, M, rows, columns, height, width, far_y, far_x, scale_y, scale_x,
    RING: tl.constexpr, INCLUSIVE: tl.constexpr, CLIP: tl.constexpr, PB: tl.constexpr,
):  # fmt: skip
    """out [B, rows * columns], float32, from boxes [B, M, 4] and labels [B, M]: as masks.py has it.

    far: nominal size times scale. Divisions that place an edge are rounded as the CPU rounds them, as
    an edge exactly on a cell's boundary must stay there.
    """
    image = tl.program_id(1)
    p = tl.program_id(0) * PB + tl.arange(0, PB)
    row, column = (p // columns).to(tl.float32), (p % columns).to(tl.float32)
    best = tl.zeros((PB,), tl.float32)
    for m in range(0, M):
        box = boxes_ptr + (image * M + m) * 4
        x1, y1 = tl.maximum(tl.load(box), 0.0), tl.maximum(tl.load(box + 1), 0.0)
        x2, y2 = tl.maximum(tl.load(box + 2), 0.0), tl.maximum(tl.load(box + 3), 0.0)
        real = (tl.minimum(x2, far_x) > x1) & (tl.minimum(y2, far_y) > y1)
        real = real & (tl.load(labels_ptr + image * M + m) >= 0)
        if CLIP:
            x1, x2 = tl.minimum(x1, far_x), tl.minimum(x2, far_x)
            y1, y2 = tl.minimum(y1, far_y), tl.minimum(y2, far_y)
        x1 = tl.div_rn(tl.div_rn(x1, width) * columns, scale_x)
        x2 = tl.div_rn(tl.div_rn(x2, width) * columns, scale_x)
        y1 = tl.div_rn(tl.div_rn(y1, height) * rows, scale_y)
        y2 = tl.div_rn(tl.div_rn(y2, height) * rows, scale_y)
        top, bottom, left, right = tl.floor(y1), tl.ceil(y2), tl.floor(x1), tl.ceil(x2)
        extra = 1.0 if INCLUSIVE else 0.0
        share = 1.0 / tl.maximum((bottom + extra - top) * (right + extra - left), 1.0)
        inside = (row >= top) & (row < bottom + extra) & (column >= left) & (column < right + extra)
        value = tl.where(inside, share, 0.0)
        if RING == "box":
            dy = (row + 0.5 - (y1 + y2) / 2) / (y2 - y1) * 2
            dx = (column + 0.5 - (x1 + x2) / 2) / (x2 - x1) * 2
            share = 1.0 / tl.maximum((bottom - top) * (right - left), 1.0)
            ring = tl.exp(-0.5 * (dy * dy + dx * dx)) * share
            value = tl.maximum(value, tl.where((tl.abs(dy) <= 2) & (tl.abs(dx) <= 2), ring, 0.0))
        if RING == "released":
            share = 1.0 / tl.maximum((bottom + 1.0 - top) * (right + 1.0 - left), 1.0)
            bottom, right = tl.minimum(bottom, rows), tl.minimum(right, columns)
            high, wide = tl.floor((bottom - top) / 2), tl.floor((right - left) / 2)
            ra, rb = tl.maximum(top - high, 0.0), tl.minimum(bottom + high, rows)
            ca, cb = tl.maximum(left - wide, 0.0), tl.minimum(right + wide, columns)
            a = ra + (row - ra) * ((rb - ra) / tl.maximum(rb - ra - 1.0, 1.0))
            b = ca + (column - ca) * ((cb - ca) / tl.maximum(cb - ca - 1.0, 1.0))
            a = (a - (x1 + x2) / 2) / ((x1 + x2) / 2 + 1e-8)
            b = (b - (y1 + y2) / 2) / ((y1 + y2) / 2 + 1e-8)
            window = (row >= ra) & (row < rb) & (column >= ca) & (column < cb)
            ring = tl.exp(-0.5 * (a * a + b * b)) * share
            value = tl.maximum(value, tl.where(window, ring, 0.0))
        best = tl.maximum(best, tl.where(real, value, 0.0))
    tl.store(out_ptr + image * rows * columns + p, best, p < rows * columns)
