"""Decoding in other processes, so that what hostile bytes do to a decoder costs a file, not the run.

Each process decodes one file at a time. One that crashes, or takes too long, is replaced; only the file that it was at
gets a status for it, after a second try where it crashed: the system may have ended it for what its neighbour did.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import LifoQueue
from threading import Lock

import joblib
import numpy as np

import advrbd
from advrbd.config import DecodingSettings
from advrbd.data.folder import DECODER_CRASHED, OK, TOO_LARGE, TOO_SLOW, UNREADABLE
from advrbd.data.worker import ANSWER, LENGTH, READY, REQUEST
from advrbd.errors import DecoderError

# the same modules as here, and none from the working directory, which may be the attacker's folder
PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from advrbd.data.worker import serve; serve({max_pixels}, {seconds})"
ATTEMPTS = 2
MOST_PROCESSES = 8
FILES_PER_PROCESS = 250  # another one isn't worth its start for fewer

Answer = tuple[str, int, int, bytes]  # status, height, width, pixels


class Decoders:
    """A context with up to ``count`` processes, for as many threads; they end with it, or with this process."""

    def __init__(self, settings: DecodingSettings, count: int) -> None:
        self._settings = settings
        self._lock, self._closed = Lock(), False
        self._running: set[_Process] = set()
        self._idle: LifoQueue[_Process | None] = LifoQueue()  # None: may be started; last in, first out starts few
        for _ in range(count):
            self._idle.put(None)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
        for process in tuple(self._running):
            process.end()

    def decode(self, files: Sequence[bytes], size: int) -> list[tuple[np.ndarray | None, str]]:
        """The image in each of ``files`` as uint8 [size, size, 3], and its status: without ``ok`` there is no image.

        Raises ``DecoderError`` when no process can be started.
        """
        return [
            (np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if status == OK else None, status)
            for status, height, width, pixels in self._answers(files, size)
        ]

    def measure(self, files: Sequence[bytes]) -> list[tuple[int, int]]:
        """Width and height, in pixels, of those of the images in ``files`` that have any; raises as ``decode`` does."""
        return [(width, height) for status, height, width, _ in self._answers(files, 0) if status == OK]

    def _answers(self, files: Sequence[bytes], size: int) -> list[Answer]:
        answers: list[Answer] = []
        ends = 0  # of processes at the file that is next
        process = self._idle.get()
        try:
            while len(answers) < len(files):
                process = process or self._start()
                came = list(process.ask(files[len(answers) :], size))
                answers += came
                if len(answers) == len(files):
                    break
                status, process = self._ended(process), None
                ends = 1 if came else ends + 1
                if status == TOO_SLOW or ends == ATTEMPTS:
                    answers.append((status, 0, 0, b""))
                    ends = 0
            return answers
        finally:
            self._idle.put(process)

    def _start(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise DecoderError("decoding was ended")
            process = _Process(self._settings)
            self._running.add(process)
            return process

    def _ended(self, process: "_Process") -> str:
        status = process.end()
        with self._lock:
            self._running.discard(process)
        return status


class _Process:
    """One process, for one thread at a time."""

    def __init__(self, settings: DecodingSettings) -> None:
        paths = [str(Path(advrbd.__file__).parents[1]), *filter(None, sys.path)]
        program = PROGRAM.format(max_pixels=int(settings.max_pixels), seconds=float(settings.seconds))
        self._ready = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", program, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries write there what they read in a file
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                process_group=0 if os.name == "posix" else None,  # Ctrl-C and Ctrl-Z are for the parent alone
            )
        except OSError as error:
            raise DecoderError(f"cannot start a process that decodes images: {error.strerror}") from error
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes, as asked for
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def ask(self, files: Sequence[bytes], size: int) -> Iterator[Answer]:
        """The answers on ``files``, as many as come before the process ends, or gives one that can't be."""
        with suppress(OSError, ValueError):
            if not self._ready:
                self._wait_until_ready()
            self._stdin.write(REQUEST.pack(len(files), size))
            for data in files:
                self._stdin.write(LENGTH.pack(len(data)))
                self._stdin.write(data)
            self._stdin.flush()
            for _ in files:
                yield self._answer(size)

    def end(self) -> str:
        """End the process, however it is; the status that its end means for the file that it was at."""
        self._process.kill()  # no effect on one that has ended itself
        code = self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with suppress(OSError, ValueError):
                pipe.close()
        return TOO_SLOW if code == -getattr(signal, "SIGALRM", 0) else DECODER_CRASHED

    def _answer(self, size: int) -> Answer:
        """The next answer; a ``ValueError`` if it is none."""
        name, height, width = ANSWER.unpack(self._read(ANSWER.size))
        status = name.rstrip(b"\0").decode("ascii")
        if status in (UNREADABLE, TOO_LARGE):
            return status, 0, 0, b""
        if status != OK or (size and (height, width) != (size, size)):
            raise ValueError("no answer that can be")
        return status, height, width, self._read(size * size * 3)

    def _read(self, length: int) -> bytes:
        data = self._stdout.read(length)
        if len(data) < length:
            raise ValueError("the process has ended")
        return data

    def _wait_until_ready(self) -> None:
        if self._stdout.read(len(READY)) != READY:
            code = self._process.wait()
            raise DecoderError(f"the process that decodes images ended at its start, with exit code {code}")
        self._ready = True


def how_many(files: int) -> int:
    """How many processes are worth their start for so many files."""
    return min(MOST_PROCESSES, joblib.cpu_count(), 1 + files // FILES_PER_PROCESS)
