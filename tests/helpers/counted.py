"""What tensors do, counted: operations and the bytes that they move."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"empty", "empty_like", "empty_strided", "lift_fresh", "detach"}  # no kernel
GATHERS = {"index", "index_select", "embedding"}


class Counted(TorchDispatchMode):
    """Counts while it is entered; views and fresh memory are free."""

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in FREE:
            return out
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in GATHERS:  # of the table, what is asked for
            read = read[1:] + written
        elif name == "copy_":
            read = read[1:]
        self.operations += 1
        self.bytes += sum(map(_bytes, read + written))
        return out


def _bytes(tensor: Tensor) -> int:
    """Of its elements, each once, however often a broadcast repeats it."""
    count = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count
