"""Sums over whole maps on a GPU, and what attention and context make of them.

`sums` reads a map once, in programs that have all channels of some positions; what runs over the
positions is left in parts [B, parts, C], which `teacher_image` and `student_image` add up, a program per
image. Parts are added in one fixed order: no atomic sum, so the same input gives the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def sums(
    x_ptr, t_ptr, mask_ptr, channel_ptr, rows_ptr, by_position_ptr, weighted_ptr, contexts_ptr,
    peaks_ptr, C, P, DIFFERENCE: tl.constexpr, PRODUCT: tl.constexpr, CONTEXT: tl.constexpr,
    CB: tl.constexpr, PB: tl.constexpr,
):  # fmt: skip
    """rows [1 or 3, B, parts, C]: sums of |x|, x - t, (x - t)^2; by_position [B, P]: of |x|;

    weighted [B, P]: of channel (x - t)^2; contexts [B, parts, C] and peaks [B, parts, 2]: a context of
    these positions alone, before its division, with the largest logit and the divisor.
    """
    part, image = tl.program_id(0), tl.program_id(1)
    parts, images = tl.num_programs(0), tl.num_programs(1)
    c, p = tl.arange(0, CB), part * PB + tl.arange(0, PB)
    real_c, real_p = c < C, p < P
    inside = real_c[:, None] & real_p[None, :]
    at = image.to(tl.int64) * C * P + c[:, None] * P + p[None, :]
    x = tl.load(x_ptr + at, inside, other=0.0)
    own = (image * parts + part) * C + c
    size = tl.abs(x)
    tl.store(rows_ptr + own, tl.sum(size, 1), real_c)
    tl.store(by_position_ptr + image * P + p, tl.sum(size, 0), real_p)
    if DIFFERENCE:
        apart = x - tl.load(t_ptr + at, inside, other=0.0)
        tl.store(rows_ptr + images * parts * C + own, tl.sum(apart, 1), real_c)
        apart = apart * apart
        tl.store(rows_ptr + 2 * images * parts * C + own, tl.sum(apart, 1), real_c)
        if PRODUCT:
            channel = tl.load(channel_ptr + image * C + c, real_c, other=0.0)
            tl.store(weighted_ptr + image * P + p, tl.sum(apart * channel[:, None], 0), real_p)
    if CONTEXT:
        mask = tl.load(mask_ptr + c, real_c, other=0.0)
        logits = tl.where(real_p, tl.sum(x * mask[:, None], 0), float("-inf"))
        top = tl.max(logits, 0)
        e = tl.exp(logits - top)
        tl.store(contexts_ptr + own, tl.sum(x * e[None, :], 1), real_c)
        tl.store(peaks_ptr + 2 * (image * parts + part), top)
        tl.store(peaks_ptr + 2 * (image * parts + part) + 1, tl.sum(e, 0))


@triton.jit
def _row_sums(rows_ptr, image, parts, C, CB: tl.constexpr, NB: tl.constexpr):
    c = tl.arange(0, CB)
    total = tl.zeros((CB,), rows_ptr.dtype.element_ty)
    for first in range(0, parts, NB):
        n = first + tl.arange(0, NB)
        real = (n < parts)[:, None] & (c < C)[None, :]
        at = (image * parts + n)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(rows_ptr + at, real, other=0.0), 0)
    return total


@triton.jit
def _write_context(
    contexts_ptr, peaks_ptr, context_ptr, lse_ptr, image, parts, C, CB: tl.constexpr,
    NB: tl.constexpr,
):  # fmt: skip
    """The context of an image from those of its parts, and the logarithm of its divisor."""
    c = tl.arange(0, CB)
    top = tl.max(tl.zeros((NB,), contexts_ptr.dtype.element_ty) + float("-inf"), 0)
    for first in range(0, parts, NB):
        n = first + tl.arange(0, NB)
        at = peaks_ptr + 2 * (image * parts + n)
        top = tl.maximum(top, tl.max(tl.load(at, n < parts, other=float("-inf")), 0))
    total = tl.zeros((CB,), contexts_ptr.dtype.element_ty)
    divisor = tl.sum(total, 0)
    for first in range(0, parts, NB):
        n = first + tl.arange(0, NB)
        at = peaks_ptr + 2 * (image * parts + n)
        e = tl.exp(tl.load(at, n < parts, other=float("-inf")) - top)
        divisor += tl.sum(e * tl.load(at + 1, n < parts, other=0.0), 0)
        real = (n < parts)[:, None] & (c < C)[None, :]
        at = (image * parts + n)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(contexts_ptr + at, real, other=0.0) * e[:, None], 0)
    tl.store(context_ptr + image * C + c, total / divisor, c < C)
    tl.store(lse_ptr + image, top + tl.log(divisor))


@triton.jit
def _channel_attention(by_channel, C, P, TEMP: tl.constexpr, CB: tl.constexpr):
    logits = tl.where(tl.arange(0, CB) < C, by_channel / P / TEMP, float("-inf"))
    e = tl.exp(logits - tl.max(logits, 0))
    return e / tl.sum(e, 0) * C


@triton.jit
def _spatial_softmax(by_position_ptr, C, P, TEMP: tl.constexpr, BLOCK: tl.constexpr):
    """Largest logit and divisor of an image's spatial attention."""
    top = tl.max(tl.zeros((BLOCK,), by_position_ptr.dtype.element_ty) + float("-inf"), 0)
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        logits = tl.load(by_position_ptr + p, p < P, other=0.0) / C / TEMP
        top = tl.maximum(top, tl.max(tl.where(p < P, logits, float("-inf")), 0))
    divisor = top * 0.0
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        logits = tl.load(by_position_ptr + p, p < P, other=0.0) / C / TEMP
        divisor += tl.sum(tl.where(p < P, tl.exp(logits - top), 0.0), 0)
    return top, divisor


@triton.jit
def teacher_image(
    rows_ptr, by_position_ptr, contexts_ptr, peaks_ptr, foreground_ptr, spatial_ptr, channel_ptr,
    factor_ptr, weights_ptr, context_ptr, lse_ptr, C, P, parts, TEMP: tl.constexpr,
    CONTEXT: tl.constexpr, FOCUS: tl.constexpr, ROOT: tl.constexpr, CB: tl.constexpr,
    NB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention and context of an image's teacher map, and the weights [2, B, P] of both masks.

    The background is where the foreground is 0, in equal shares. ROOT: the roots of weights, and in
    `factor` of the channels' attention. FOCUS: attention in the weights.
    """
    image, images = tl.program_id(0), tl.num_programs(0)
    c = tl.arange(0, CB)
    channel = _channel_attention(_row_sums(rows_ptr, image, parts, C, CB, NB), C, P, TEMP, CB)
    tl.store(channel_ptr + image * C + c, channel, c < C)
    if FOCUS and ROOT:
        tl.store(factor_ptr + image * C + c, tl.sqrt(channel), c < C)
    if CONTEXT:
        _write_context(contexts_ptr, peaks_ptr, context_ptr, lse_ptr, image, parts, C, CB, NB)
    by_position_ptr += image * P
    top, divisor = _spatial_softmax(by_position_ptr, C, P, TEMP, BLOCK)
    empty = top * 0.0
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        own = tl.load(foreground_ptr + image * P + p, p < P, other=1.0)
        empty += tl.sum(tl.where(own == 0.0, 1.0, 0.0), 0)
    share = 1.0 / tl.maximum(empty, 1.0)
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        logits = tl.load(by_position_ptr + p, p < P, other=0.0) / C / TEMP
        spatial = tl.exp(logits - top) / divisor * P
        tl.store(spatial_ptr + image * P + p, spatial, p < P)
        w = tl.load(foreground_ptr + image * P + p, p < P, other=1.0)
        v = tl.where(w == 0.0, share, 0.0)
        if ROOT:
            w, v, spatial = tl.sqrt(w), tl.sqrt(v), tl.sqrt(spatial)
        if FOCUS:
            w, v = w * spatial, v * spatial
        tl.store(weights_ptr + image * P + p, w, p < P)
        tl.store(weights_ptr + (images + image) * P + p, v, p < P)


@triton.jit
def student_image(
    rows_ptr, by_position_ptr, contexts_ptr, peaks_ptr, spatial_ptr, channel_ptr, weighted_ptr,
    weights_ptr, values_ptr, values_stride, for_position_ptr, for_channel_ptr, numbers_ptr,
    difference_ptr, squares_ptr, context_ptr, lse_ptr, C, P, parts, TEMP: tl.constexpr,
    CONTEXT: tl.constexpr, PRODUCT: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """numbers [B, 3]: foreground, background and difference of attentions, unweighted.

    With a = n softmax(l) and A the teacher's, the derivative of sum |a - A| by l is
    a (sign - sum a sign / n); for_position and for_channel have it, by the sums behind l.
    """
    image, images = tl.program_id(0), tl.num_programs(0)
    c = tl.arange(0, CB)
    plane = images * parts * C
    own = _channel_attention(_row_sums(rows_ptr, image, parts, C, CB, NB), C, P, TEMP, CB)
    apart = own - tl.load(channel_ptr + image * C + c, c < C, other=0.0)
    sign = tl.where(apart > 0, 1.0, tl.where(apart < 0, -1.0, 0.0)).to(own.dtype)
    distance = tl.sum(tl.abs(apart), 0)
    slope = own * (sign - tl.sum(own * sign, 0) / C) / P / TEMP
    tl.store(for_channel_ptr + image * C + c, slope, c < C)
    difference = _row_sums(rows_ptr + plane, image, parts, C, CB, NB)
    tl.store(difference_ptr + image * C + c, difference, c < C)
    squares = _row_sums(rows_ptr + 2 * plane, image, parts, C, CB, NB)
    tl.store(squares_ptr + image * C + c, squares, c < C)
    if CONTEXT:
        _write_context(contexts_ptr, peaks_ptr, context_ptr, lse_ptr, image, parts, C, CB, NB)
    by_position_ptr += image * P
    top, divisor = _spatial_softmax(by_position_ptr, C, P, TEMP, BLOCK)
    foreground, background, along = top * 0.0, top * 0.0, top * 0.0
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        logits = tl.load(by_position_ptr + p, p < P, other=0.0) / C / TEMP
        here = tl.where(p < P, tl.exp(logits - top) / divisor * P, 0.0)
        off = here - tl.load(spatial_ptr + image * P + p, p < P, other=0.0)
        side = tl.where(off > 0, 1.0, tl.where(off < 0, -1.0, 0.0)).to(here.dtype)
        distance += tl.sum(tl.abs(off), 0)
        along += tl.sum(here * side, 0)
        if PRODUCT:
            error = tl.load(weighted_ptr + image * P + p, p < P, other=0.0)
            w = tl.load(weights_ptr + image * P + p, p < P, other=0.0)
            v = tl.load(weights_ptr + (images + image) * P + p, p < P, other=0.0)
            foreground += tl.sum(error * w, 0)
            background += tl.sum(error * v, 0)
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        logits = tl.load(by_position_ptr + p, p < P, other=0.0) / C / TEMP
        here = tl.exp(logits - top) / divisor * P
        off = here - tl.load(spatial_ptr + image * P + p, p < P, other=0.0)
        side = tl.where(off > 0, 1.0, tl.where(off < 0, -1.0, 0.0)).to(here.dtype)
        along_p = here * (side - along / P) / C / TEMP
        tl.store(for_position_ptr + image * P + p, along_p, p < P)
    if not PRODUCT:
        value = tl.load(values_ptr + image * C + c, c < C, other=0.0)
        foreground = tl.sum(value, 0)
        value = tl.load(values_ptr + values_stride + image * C + c, c < C, other=0.0)
        background = tl.sum(value, 0)
    tl.store(numbers_ptr + 3 * image, foreground)
    tl.store(numbers_ptr + 3 * image + 1, background)
    tl.store(numbers_ptr + 3 * image + 2, distance)
