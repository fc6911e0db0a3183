"""What float32 means on a GPU, and which of its algorithms cuDNN takes.

Both are settings of the process, and nothing of them matters on a CPU.
"""

import warnings

import torch


def ieee_float32() -> None:
    """Let float32 be IEEE's in convolutions and matrix products from now on.

    By itself cuDNN computes float32 convolutions in TF32, with 10 of 23 bits of the mantissa, and some
    environments ask for the same in matrix products. Autocast's bfloat16 is not touched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older switches are going to be dropped
        # Both generations of switches: torch's compiler and exporter read the older one, and raise
        # where the two differ.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def choose_algorithms(*, deterministic: bool) -> None:
    """deterministic: only those of cuDNN's algorithms that give the same bits every time.

    Never by timing them: a resumed process could choose others than the one it continues.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
