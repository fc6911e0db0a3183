"""The masked KL terms at the heart of FSD."""

from torch import Tensor

from fsd.distill.kl import spatial_kl, standardise


def focused_kl(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    behind: Tensor,
    spatial: Tensor,
    channel: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Foreground and background KL of maps [B, C, H, W] under the teacher's attention."""
    weighted_s = student * spatial.sqrt()[:, None] * channel.sqrt()[..., None, None]
    weighted_t = teacher * spatial.sqrt()[:, None] * channel.sqrt()[..., None, None]
    terms = []
    for mask in (foreground, behind):
        s = standardise(weighted_s * mask.sqrt()[:, None], (0, 2, 3))
        t = standardise(weighted_t * mask.sqrt()[:, None], (0, 2, 3))
        terms.append(spatial_kl(s, t, 1.0, eps) / (s.shape[0] * s.shape[1]))
    return terms[0], terms[1]
