"""The gradient by the student's map on a GPU: one pass reads both maps and writes it.

A program has all channels of some positions [CB, PB], so what runs over the channels (a context's mask)
and what belongs to a row (standardisation, softmax) or to a position (attention) meet in one place.
With c = softmax(l), l = m . x the weights of a context = sum_p c_p x_p and u its upstream gradient:

    dl_p = c_p (u . x_p - u . context),   dx_p += c_p u + dl_p m,   dm = sum_p dl_p x_p
"""

import triton
import triton.language as tl

from fsd.distill.kernels.triton_kl import (
    CENTRE,
    FIELDS,
    GAIN_S,
    GAIN_T,
    LSE_S,
    LSE_T,
    MEAN_S,
    MEAN_T,
    QUOTIENT,
)  # fmt: skip

_FIELDS = tl.constexpr(FIELDS)


@triton.jit
def _context(x, up_ptr, context_ptr, mask_ptr, lse_ptr, image, c, C, real_c, real_p):
    """Weights of the positions, derivative by their logits, upstream and mask weight of channels."""
    up = tl.load(up_ptr + image * C + c, real_c, other=0.0)
    context = tl.load(context_ptr + image * C + c, real_c, other=0.0)
    mask = tl.load(mask_ptr + c, real_c, other=0.0)
    logits = tl.sum(x * mask[:, None], 0)
    weight = tl.where(real_p, tl.exp(logits - tl.load(lse_ptr + image)), 0.0)
    slope = weight * (tl.sum(x * up[:, None], 0) - tl.sum(up * context, 0))
    return weight, slope, up, mask


@triton.jit
def _divergence(
    s, t, weight, fields_ptr, pulled_ptr, rows, row, pulled_at, real, upstream,
    WEIGHTED: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Upstream times the derivative of one weight's divergence by s."""
    mean_s = tl.load(fields_ptr + MEAN_S * rows + row, real, other=0.0)[:, None]
    gain_s = tl.load(fields_ptr + GAIN_S * rows + row, real, other=0.0)[:, None]
    lse_s = tl.load(fields_ptr + LSE_S * rows + row, real, other=0.0)[:, None]
    mean_t = tl.load(fields_ptr + MEAN_T * rows + row, real, other=0.0)[:, None]
    gain_t = tl.load(fields_ptr + GAIN_T * rows + row, real, other=0.0)[:, None]
    lse_t = tl.load(fields_ptr + LSE_T * rows + row, real, other=0.0)[:, None]
    quotient = tl.load(fields_ptr + QUOTIENT * rows + row, real, other=0.0)[:, None]
    centre = tl.load(fields_ptr + CENTRE * rows + row, real, other=0.0)[:, None]
    pulled = tl.load(pulled_ptr + pulled_at, real, other=0.0)[:, None]
    if WEIGHTED:
        s, t = s * weight[None, :], t * weight[None, :]
    z_s = (s - mean_s) * gain_s
    p_s = tl.exp(z_s - lse_s)
    q = tl.exp((t - mean_t) * gain_t - lse_t)
    if EPS > 0:
        q = q * p_s / (p_s + EPS)
    g = (p_s * quotient - q - pulled * (z_s + centre)) * gain_s * upstream
    return g * weight[None, :] if WEIGHTED else g


@triton.jit
def gradient(
    s_ptr, t_ptr, out_ptr, weights_ptr, up_ptr, fields_ptr, pulled_ptr,
    channel_ptr, by_position_ptr, by_channel_ptr, up_difference_ptr, up_squares_ptr,
    up_s_ptr, context_s_ptr, mask_s_ptr, lse_s_ptr, up_t_ptr, context_t_ptr, mask_t_ptr, lse_t_ptr,
    for_masks_ptr, C, P, up_stride_b, up_stride, pulled_stride_w, pulled_stride_b,
    squares_stride_b, squares_stride_c,
    KL: tl.constexpr, WEIGHTED: tl.constexpr, EPS: tl.constexpr, PRODUCT: tl.constexpr,
    SUMS: tl.constexpr, CONTEXT: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr,
):  # fmt: skip
    """Writes the gradient [B, C, P], and parts of that by the mask weights [2, B, parts, C].

    up: derivatives by the numbers [B, 3] (foreground, background, attention), or by one sum alone.
    """
    part, image = tl.program_id(0), tl.program_id(1)
    parts, images = tl.num_programs(0), tl.num_programs(1)
    c, p = tl.arange(0, CB), part * PB + tl.arange(0, PB)
    real_c, real_p = c < C, p < P
    inside = real_c[:, None] & real_p[None, :]
    at = image.to(tl.int64) * C * P + c[:, None] * P + p[None, :]
    s = tl.load(s_ptr + at, inside, other=0.0)
    t = tl.load(t_ptr + at, inside, other=0.0)
    row, rows = image * C + c, images * C
    up_ptr += image * up_stride_b
    first = tl.load(up_ptr)
    total = tl.zeros((CB, PB), s.dtype)
    w = tl.zeros((PB,), s.dtype)
    if WEIGHTED:
        second = tl.load(up_ptr + up_stride)
        w = tl.load(weights_ptr + image * P + p, real_p, other=0.0)
        v = tl.load(weights_ptr + (images + image) * P + p, real_p, other=0.0)
    if KL:
        pulled_at = image * pulled_stride_b + c
        total += _divergence(
            s, t, w, fields_ptr, pulled_ptr, rows, row, pulled_at, real_c, first, WEIGHTED, EPS
        )
        if WEIGHTED:
            fields_ptr += _FIELDS * rows
            pulled_ptr += pulled_stride_w
            total += _divergence(
                s, t, v, fields_ptr, pulled_ptr, rows, row, pulled_at, real_c, second, WEIGHTED, EPS
            )
    if SUMS:
        third = tl.load(up_ptr + 2 * up_stride)
        difference = tl.load(up_difference_ptr + row, real_c, other=0.0)
        at_squares = image * squares_stride_b + c * squares_stride_c
        squares = tl.load(up_squares_ptr + at_squares, real_c, other=0.0)
        for_c = tl.load(by_channel_ptr + row, real_c, other=0.0)
        for_p = tl.load(by_position_ptr + image * P + p, real_p, other=0.0)
        sign = tl.where(s > 0, 1.0, tl.where(s < 0, -1.0, 0.0)).to(s.dtype)
        total += sign * (for_c[:, None] + for_p[None, :]) * third + difference[:, None]
        each = squares[:, None] + tl.zeros((CB, PB), s.dtype)
        if PRODUCT:
            channel = tl.load(channel_ptr + row, real_c, other=0.0)
            each += channel[:, None] * (first * w + second * v)[None, :]
        total += 2 * (s - t) * each
    if CONTEXT:
        weight, slope, up, mask = _context(
            s, up_s_ptr, context_s_ptr, mask_s_ptr, lse_s_ptr, image, c, C, real_c, real_p
        )
        total += up[:, None] * weight[None, :] + mask[:, None] * slope[None, :]
        own = for_masks_ptr + (image * parts + part) * C + c
        tl.store(own, tl.sum(s * slope[None, :], 1), real_c)
        _, slope, _, _ = _context(
            t, up_t_ptr, context_t_ptr, mask_t_ptr, lse_t_ptr, image, c, C, real_c, real_p
        )
        tl.store(own + images * parts * C, tl.sum(t * slope[None, :], 1), real_c)
    tl.store(out_ptr + at, total, inside)
