"""Batches made on a GPU beside the training: on a stream of their own, one ahead of the consumer."""

from collections.abc import Iterator

import torch

from fsd.types import Batch


class Ahead:
    """Runs what makes batches on its own stream of `device`.

    Two things keep memory from being reused too early: the consumer's stream waits for the event
    after a batch, and a batch's tensors are marked as used by that stream, so that the allocator
    gives their memory to the next batches only when the consumer's work on them is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def through(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each made while the consumer computes on the one before it.

        The consumer's stream is the one that is current when the first batch is asked for.
        """
        consumer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(consumer)  # on it the images came to the device
        self._waits = []
        asked = _now(consumer)
        upcoming = self._next(batches)
        while upcoming is not None:
            batch, made = upcoming
            upcoming = self._next(batches)  # before its step, so that both run at once
            consumer.wait_event(made)
            self._waits.append((asked, _now(consumer)))
            for tensor in (batch.images, *batch.targets):
                tensor.record_stream(consumer)
            yield batch
            del batch
            asked = _now(consumer)

    def _next(self, batches: Iterator[Batch]) -> tuple[Batch, torch.cuda.Event] | None:
        with torch.cuda.stream(self._stream):
            batch = next(batches, None)
            return None if batch is None else (batch, self._stream.record_event())

    def wait_s(self) -> float:
        """Seconds that the consumer's stream stood still for want of a batch since `through` began.

        Waits for the last batch that was handed out, and for nothing before: ask when an epoch is
        over. What the host spends on making a batch counts as far as the device was idle meanwhile.
        """
        if not self._waits:
            return 0.0
        self._waits[-1][1].synchronize()
        return sum(asked.elapsed_time(had) for asked, had in self._waits) / 1e3


def _now(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """When the stream comes to this point."""
    return stream.record_event(torch.cuda.Event(enable_timing=True))
