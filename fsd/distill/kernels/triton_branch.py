"""The small branch from a context to what is added to each channel, on a GPU: y = W3 r + b3,

    h = W0 x + b0,   n = (h - mean) / sqrt(var + 1e-5)  (or n = h, without norm),   u = n g + b,
    r = max(u, 0)

A program per image; then, for the weights' gradients, a program per block of channels over all images.
By itself each of these products is a launch of a microsecond's work.
"""

import triton
import triton.language as tl


@triton.jit
def branch(
    x_ptr, w0_ptr, b0_ptr, g_ptr, b_ptr, w3_ptr, b3_ptr, y_ptr, n_ptr, inverse_ptr, C, H,
    NORM: tl.constexpr, HB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y [B, C]; n [B, H] and inverse [B], 1 / sqrt(var + 1e-5), are for the way back."""
    image = tl.program_id(0)
    j = tl.arange(0, HB)
    hidden = tl.load(b0_ptr + j, j < H, other=0.0)
    for first in range(0, C, BLOCK):
        c = first + tl.arange(0, BLOCK)
        real = (j < H)[:, None] & (c < C)[None, :]
        w = tl.load(w0_ptr + j[:, None] * C + c[None, :], real, other=0.0)
        x = tl.load(x_ptr + image * C + c, c < C, other=0.0)
        hidden += tl.sum(w * x[None, :], 1)
    if NORM:
        hidden = tl.where(j < H, hidden - tl.sum(hidden, 0) / H, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(hidden * hidden, 0) / H + 1e-5)
        hidden = hidden * inverse
        tl.store(inverse_ptr + image, inverse)
    tl.store(n_ptr + image * H + j, hidden, j < H)
    if NORM:
        hidden = hidden * tl.load(g_ptr + j, j < H, other=0.0)
        hidden += tl.load(b_ptr + j, j < H, other=0.0)
    r = tl.where(hidden > 0, hidden, 0.0)
    for first in range(0, C, BLOCK):
        c = first + tl.arange(0, BLOCK)
        real = (c < C)[:, None] & (j < H)[None, :]
        w = tl.load(w3_ptr + c[:, None] * H + j[None, :], real, other=0.0)
        y = tl.load(b3_ptr + c, c < C, other=0.0) + tl.sum(w * r[None, :], 1)
        tl.store(y_ptr + image * C + c, y, c < C)


@triton.jit
def branch_backward(
    up_ptr, w0_ptr, g_ptr, b_ptr, w3_ptr, n_ptr, inverse_ptr, for_x_ptr, for_u_ptr, for_h_ptr, C, H,
    NORM: tl.constexpr, HB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by x [B, C], u and h [B, H]."""
    image = tl.program_id(0)
    j = tl.arange(0, HB)
    n = tl.load(n_ptr + image * H + j, j < H, other=0.0)
    slope = n * 0.0
    for first in range(0, C, BLOCK):
        c = first + tl.arange(0, BLOCK)
        real = (c < C)[:, None] & (j < H)[None, :]
        w = tl.load(w3_ptr + c[:, None] * H + j[None, :], real, other=0.0)
        up = tl.load(up_ptr + image * C + c, c < C, other=0.0)
        slope += tl.sum(w * up[:, None], 0)
    u = n
    if NORM:
        g = tl.load(g_ptr + j, j < H, other=0.0)
        u = n * g + tl.load(b_ptr + j, j < H, other=0.0)
    slope = tl.where(u > 0, slope, 0.0)
    tl.store(for_u_ptr + image * H + j, slope, j < H)
    if NORM:
        slope = slope * g
        slope = slope - tl.sum(slope, 0) / H - n * (tl.sum(slope * n, 0) / H)
        slope = slope * tl.load(inverse_ptr + image)
    tl.store(for_h_ptr + image * H + j, slope, j < H)
    for first in range(0, C, BLOCK):
        c = first + tl.arange(0, BLOCK)
        real = (j < H)[:, None] & (c < C)[None, :]
        w = tl.load(w0_ptr + j[:, None] * C + c[None, :], real, other=0.0)
        tl.store(for_x_ptr + image * C + c, tl.sum(w * slope[:, None], 0), c < C)


@triton.jit
def branch_weights(
    up_ptr, x_ptr, g_ptr, b_ptr, n_ptr, for_u_ptr, for_h_ptr, for_w0_ptr, for_b0_ptr, for_g_ptr,
    for_b_ptr, for_w3_ptr, for_b3_ptr, B, C, H, NORM: tl.constexpr, HB: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by all parameters, summed over the images."""
    c, j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HB)
    by_w0 = tl.zeros((HB, BLOCK), x_ptr.dtype.element_ty)
    by_w3 = tl.zeros((BLOCK, HB), x_ptr.dtype.element_ty)
    by_b3 = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    by_b0 = tl.zeros((HB,), x_ptr.dtype.element_ty)
    by_g, by_b, gain, shift = by_b0, by_b0, by_b0, by_b0
    if NORM:
        gain = tl.load(g_ptr + j, j < H, other=0.0)
        shift = tl.load(b_ptr + j, j < H, other=0.0)
    for image in range(0, B):
        up = tl.load(up_ptr + image * C + c, c < C, other=0.0)
        x = tl.load(x_ptr + image * C + c, c < C, other=0.0)
        n = tl.load(n_ptr + image * H + j, j < H, other=0.0)
        for_u = tl.load(for_u_ptr + image * H + j, j < H, other=0.0)
        for_h = tl.load(for_h_ptr + image * H + j, j < H, other=0.0)
        u = n * gain + shift if NORM else n
        by_w3 += up[:, None] * tl.where(u > 0, u, 0.0)[None, :]
        by_w0 += for_h[:, None] * x[None, :]
        by_b3 += up
        by_b0 += for_h
        by_g += for_u * n
        by_b += for_u
    real = (j < H)[:, None] & (c < C)[None, :]
    tl.store(for_w0_ptr + j[:, None] * C + c[None, :], by_w0, real)
    real = (c < C)[:, None] & (j < H)[None, :]
    tl.store(for_w3_ptr + c[:, None] * H + j[None, :], by_w3, real)
    tl.store(for_b3_ptr + c, by_b3, c < C)
    if tl.program_id(0) == 0:
        tl.store(for_b0_ptr + j, by_b0, j < H)
        if NORM:
            tl.store(for_g_ptr + j, by_g, j < H)
            tl.store(for_b_ptr + j, by_b, j < H)
