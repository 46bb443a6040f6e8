"""A training step as a CUDA graph: recorded once, then replayed as one launch.

On small images a step is some hundred small kernels, and starting them one by one takes the processor longer than a GPU
needs to run them. Nothing else changes: the same kernels run on the same numbers.
(pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs")
"""

from collections.abc import Callable

import torch

from advrbd.errors import is_out_of_memory

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Trains on a batch, images float [B, 3, S, S] and labels int64 [B], and returns its loss, all on one device."""

FIRST = 3  # steps as they are, in which libraries choose their kernels and optimisers make their buffers


class Recorded:
    """The ``step``, which is recorded at its fourth call, with the sizes of that; earlier calls run it as it is.

    ``step`` must not read anything back from the GPU, and whatever it updates has to be a tensor there. One that can't
    be recorded, as it may be with an unusual model, is run as it is every time.
    """

    def __init__(self, step: Step) -> None:
        self._step, self._calls = step, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = self._loss = torch.empty(0)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        if self._calls == FIRST + 1:
            self._record(images, labels)
        if self._graph is None:
            return self._aside(images, labels) if self._calls <= FIRST else self._step(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone()

    def _aside(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """On a stream of its own, as the one that is recorded will be."""
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            loss = self._step(images, labels)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        return loss

    def _record(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Nothing is trained by this: what is recorded doesn't run."""
        self._images, self._labels, graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        before, own = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
        try:
            # the outer context comes back to the stream from before even if the inner one, where it fails, doesn't
            with torch.cuda.stream(before), torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
                self._loss = self._step(self._images, self._labels)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return
        self._graph = graph
