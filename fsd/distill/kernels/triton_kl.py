"""Masked KL between spatial softmaxes on a GPU: a program per row, a row being one channel's map.

With y = w x (w [P] a position's weight), f a row's own factor and z = (y - mean) gain the logits of a
standardised row, p = softmax(z):

    value = sum p_t (z_t - z_s) + lse_s - lse_t                        without eps
    value = sum p_t log((p_t + eps) / (p_s + eps))                     with it
    dvalue/dz_s = Q p_s - q,   q = p_t,  Q = 1                         without eps
                               q = p_t p_s / (p_s + eps),  Q = sum q   with it

Standardising passes a gradient g by the logits on as gain (g - pull A (z + centre)), where A is the sum
of g z over all rows standardised together: their means drop out, as each row of g sums to 0. `moments`
and `softmaxes` leave a few numbers per row, from which triton_gradient.py forms the gradient anew, so
no map of slopes is stored.
"""

import triton
import triton.language as tl

# Fields of what `softmaxes` leaves of a row, [weights, FIELDS, rows].
FIELDS = 10
VALUE, PULLED, MEAN_S, GAIN_S, LSE_S, MEAN_T, GAIN_T, LSE_T, QUOTIENT, CENTRE = map(
    tl.constexpr, range(FIELDS)
)


@triton.jit
def _merged(mean, squares, before, y, inside, count):
    """Mean and sum of squares about it of `before` values and `count` more: no cancellation."""
    own = tl.sum(tl.where(inside, y, 0.0), 0) / count
    apart = tl.where(inside, y - own, 0.0)
    gap = own - mean
    share = count / (before + count)
    return mean + gap * share, squares + tl.sum(apart * apart, 0) + gap * gap * before * share


@triton.jit
def moments(s_ptr, t_ptr, weights_ptr, out_ptr, C, P, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """[2 maps, 2 weights, 2, rows]: mean over the positions, and sum of squares about it."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    weights_ptr += (row // C) * P
    images_p = rows // C * P
    start = row.to(tl.int64) * P
    zero = tl.sum(tl.zeros((BLOCK,), s_ptr.dtype.element_ty), 0)
    s0, s0q, s1, s1q, t0, t0q, t1, t1q = zero, zero, zero, zero, zero, zero, zero, zero
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        inside = p < P
        count = tl.minimum(P - first, BLOCK) + zero
        before = first + zero
        s = tl.load(s_ptr + start + p, inside, other=0.0)
        t = tl.load(t_ptr + start + p, inside, other=0.0)
        if WEIGHTED:
            w = tl.load(weights_ptr + p, inside, other=0.0)
            v = tl.load(weights_ptr + images_p + p, inside, other=0.0)
            s1, s1q = _merged(s1, s1q, before, s * v, inside, count)
            t1, t1q = _merged(t1, t1q, before, t * v, inside, count)
            s, t = s * w, t * w
        s0, s0q = _merged(s0, s0q, before, s, inside, count)
        t0, t0q = _merged(t0, t0q, before, t, inside, count)
    tl.store(out_ptr + row, s0)
    tl.store(out_ptr + rows + row, s0q)
    tl.store(out_ptr + 4 * rows + row, t0)
    tl.store(out_ptr + 5 * rows + row, t0q)
    if WEIGHTED:
        tl.store(out_ptr + 2 * rows + row, s1)
        tl.store(out_ptr + 3 * rows + row, s1q)
        tl.store(out_ptr + 6 * rows + row, t1)
        tl.store(out_ptr + 7 * rows + row, t1q)


@triton.jit
def _standard(
    moments_ptr, factor_ptr, row, rows, C, P,
    FACTOR: tl.constexpr, OVER: tl.constexpr, BATCH_NORM: tl.constexpr, TAU: tl.constexpr,
    BB: tl.constexpr,
):  # fmt: skip
    """mean, gain, centre, pull of a row; moments_ptr: at this map's and weight's pair."""
    one = tl.sum(tl.zeros((2,), moments_ptr.dtype.element_ty), 0) + 1.0
    factor = tl.load(factor_ptr + row) if FACTOR else one
    mean, gain, centre, pull = one * 0.0, factor / TAU, one * 0.0, one * 0.0
    if OVER != "none":
        mean = tl.load(moments_ptr + row)
        if OVER == "batch":
            image = tl.arange(0, BB)
            real = image < rows // C
            at = image * C + row % C
            factors = tl.load(factor_ptr + at, real, other=0.0) if FACTOR else one
            means = tl.load(moments_ptr + at, real, other=0.0) * factors
            squares = tl.load(moments_ptr + rows + at, real, other=0.0) * factors * factors
            middle = tl.sum(means, 0) / (rows // C)
            apart = tl.where(real, means - middle, 0.0)
            spread = tl.sum(squares + P * apart * apart, 0)
            centre = mean * factor - middle
            count = (rows // C) * P * one
        else:
            spread = tl.load(moments_ptr + rows + row) * factor * factor
            count = P * one
        if BATCH_NORM:
            inverse = 1.0 / (tl.sqrt(spread / count + 1e-5) * TAU)
            pull = TAU * TAU / count
        else:
            fewer = tl.maximum(count - 1.0, 1.0)
            std = tl.sqrt(spread / fewer)
            inverse = 1.0 / ((std + 1e-6) * TAU)
            # where a channel is constant the deviation has no derivative: taken as zero
            divisor = tl.where(std > 0.0, std, 1.0) * fewer
            pull = tl.where(std > 0.0, TAU * TAU * (std + 1e-6) / divisor, 0.0)
        gain = factor * inverse
        centre = centre * inverse
    return mean, gain, centre, pull


@triton.jit
def _further(top_s, sum_s, top_t, sum_t, gap, own, cross, z_s, z_t, inside):
    """Running sums of two softmaxes, each relative to the largest logit so far.

    own: sum e^z_s z_s, gap: sum e^z_t (z_t - z_s), cross: sum e^z_t z_s.
    """
    high_s = tl.maximum(top_s, tl.max(tl.where(inside, z_s, float("-inf")), 0))
    high_t = tl.maximum(top_t, tl.max(tl.where(inside, z_t, float("-inf")), 0))
    e_s = tl.where(inside, tl.exp(z_s - high_s), 0.0)
    e_t = tl.where(inside, tl.exp(z_t - high_t), 0.0)
    shrink_s, shrink_t = tl.exp(top_s - high_s), tl.exp(top_t - high_t)
    sum_s = sum_s * shrink_s + tl.sum(e_s, 0)
    sum_t = sum_t * shrink_t + tl.sum(e_t, 0)
    gap = gap * shrink_t + tl.sum(e_t * (z_t - z_s), 0)
    own = own * shrink_s + tl.sum(e_s * z_s, 0)
    cross = cross * shrink_t + tl.sum(e_t * z_s, 0)
    return high_s, sum_s, high_t, sum_t, gap, own, cross


@triton.jit
def _finished(
    s_ptr, t_ptr, weight_ptr, out_ptr, row, rows, P,
    mean_s, gain_s, centre, pull, mean_t, gain_t,
    top_s, sum_s, top_t, sum_t, gap, own, cross,
    WEIGHTED: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the fields of a row; with eps another pass over it, as p_t and p_s must be known."""
    lse_s, lse_t = top_s + tl.log(sum_s), top_t + tl.log(sum_t)
    own = own / sum_s
    if EPS > 0:
        value, quotient, cross = own * 0.0, own * 0.0, own * 0.0
        for first in range(0, P, BLOCK):
            p = first + tl.arange(0, BLOCK)
            inside = p < P
            s = tl.load(s_ptr + p, inside, other=0.0)
            t = tl.load(t_ptr + p, inside, other=0.0)
            if WEIGHTED:
                w = tl.load(weight_ptr + p, inside, other=0.0)
                s, t = s * w, t * w
            z_s = (s - mean_s) * gain_s
            p_s = tl.where(inside, tl.exp(z_s - lse_s), 0.0)
            p_t = tl.where(inside, tl.exp((t - mean_t) * gain_t - lse_t), 0.0)
            value += tl.sum(p_t * tl.log((p_t + EPS) / (p_s + EPS)), 0)
            q = p_t * p_s / (p_s + EPS)
            quotient += tl.sum(q, 0)
            cross += tl.sum(q * z_s, 0)
    else:
        value, quotient, cross = gap / sum_t + lse_s - lse_t, own * 0.0 + 1.0, cross / sum_t
    tl.store(out_ptr + VALUE * rows + row, value)
    tl.store(out_ptr + PULLED * rows + row, (quotient * own - cross) * pull)
    tl.store(out_ptr + MEAN_S * rows + row, mean_s)
    tl.store(out_ptr + GAIN_S * rows + row, gain_s)
    tl.store(out_ptr + LSE_S * rows + row, lse_s)
    tl.store(out_ptr + MEAN_T * rows + row, mean_t)
    tl.store(out_ptr + GAIN_T * rows + row, gain_t)
    tl.store(out_ptr + LSE_T * rows + row, lse_t)
    tl.store(out_ptr + QUOTIENT * rows + row, quotient)
    tl.store(out_ptr + CENTRE * rows + row, centre)


@triton.jit
def softmaxes(
    s_ptr, t_ptr, weights_ptr, factor_ptr, moments_ptr, out_ptr, C, P,
    WEIGHTED: tl.constexpr, FACTOR: tl.constexpr, OVER: tl.constexpr, BATCH_NORM: tl.constexpr,
    TAU: tl.constexpr, EPS: tl.constexpr, BB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The fields of each row, for both weights [2, B, P] or for none. BB: at least as many as images."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    w_ptr = weights_ptr + (row // C) * P
    v_ptr = w_ptr + rows // C * P
    s_ptr += row.to(tl.int64) * P
    t_ptr += row.to(tl.int64) * P
    mean_s, gain_s, centre, pull = _standard(
        moments_ptr, factor_ptr, row, rows, C, P, FACTOR, OVER, BATCH_NORM, TAU, BB
    )
    mean_t, gain_t, _, _ = _standard(
        moments_ptr + 4 * rows, factor_ptr, row, rows, C, P, FACTOR, OVER, BATCH_NORM, TAU, BB
    )
    zero = mean_s * 0.0
    low = zero + float("-inf")
    top_s, sum_s, top_t, sum_t, gap, own, cross = low, zero, low, zero, zero, zero, zero
    if WEIGHTED:
        mean_s1, gain_s1, centre1, pull1 = _standard(
            moments_ptr + 2 * rows, factor_ptr, row, rows, C, P, FACTOR, OVER, BATCH_NORM, TAU, BB
        )
        mean_t1, gain_t1, _, _ = _standard(
            moments_ptr + 6 * rows, factor_ptr, row, rows, C, P, FACTOR, OVER, BATCH_NORM, TAU, BB
        )
        top_s1, sum_s1, top_t1, sum_t1, gap1, own1, cross1 = low, zero, low, zero, zero, zero, zero
    for first in range(0, P, BLOCK):
        p = first + tl.arange(0, BLOCK)
        inside = p < P
        s = tl.load(s_ptr + p, inside, other=0.0)
        t = tl.load(t_ptr + p, inside, other=0.0)
        if WEIGHTED:
            w = tl.load(w_ptr + p, inside, other=0.0)
            v = tl.load(v_ptr + p, inside, other=0.0)
            top_s1, sum_s1, top_t1, sum_t1, gap1, own1, cross1 = _further(
                top_s1, sum_s1, top_t1, sum_t1, gap1, own1, cross1,
                (s * v - mean_s1) * gain_s1, (t * v - mean_t1) * gain_t1, inside,
            )  # fmt: skip
            s, t = s * w, t * w
        top_s, sum_s, top_t, sum_t, gap, own, cross = _further(
            top_s, sum_s, top_t, sum_t, gap, own, cross,
            (s - mean_s) * gain_s, (t - mean_t) * gain_t, inside,
        )  # fmt: skip
    _finished(
        s_ptr, t_ptr, w_ptr, out_ptr, row, rows, P, mean_s, gain_s, centre, pull, mean_t, gain_t,
        top_s, sum_s, top_t, sum_t, gap, own, cross, WEIGHTED, EPS, BLOCK,
    )  # fmt: skip
    if WEIGHTED:
        _finished(
            s_ptr, t_ptr, v_ptr, out_ptr + CENTRE * rows + rows, row, rows, P,
            mean_s1, gain_s1, centre1, pull1, mean_t1, gain_t1,
            top_s1, sum_s1, top_t1, sum_t1, gap1, own1, cross1, WEIGHTED, EPS, BLOCK,
        )  # fmt: skip
