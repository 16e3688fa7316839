"""Concurrent callers share the model: whoever arrives while it runs goes into the next group."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qwen3_embed_integrations.waiting import present_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from qwen3_embed_integrations.waiting import Caller


@dataclass(frozen=True)
class Item:
    """A text to compute.

    Attributes:
        ids: its token ids, prompt and end token included, shape (tokens,).
        prompt: the token ids of its prompt alone, without end token, shape (tokens,).
    """

    ids: NDArray[np.int64]
    prompt: NDArray[np.int64]


@dataclass(eq=False)
class Job:
    """What one caller wants, and what of it is done.

    Attributes:
        items: the texts.
        groups: positions in items that may run together; taken away as they run.
        budget: the most tokens to run at once.
        progress: told the positions of each group that is done.
        caller: who waits for the results.
        rows: the results so far, shape (hidden size,) each.
        running: groups that run right now.
        error: what went wrong, if anything.
    """

    items: Sequence[Item]
    groups: deque[list[int]]
    budget: int
    progress: Callable[[list[int]], object]
    caller: Caller = field(default_factory=present_caller)
    rows: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    running: int = 0
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.groups and not self.running

    def tokens(self, group: list[int]) -> int:
        """Count the tokens of a group."""
        return sum(len(self.items[position].ids) for position in group)


class Scheduler:
    """Runs the callers' groups one after the other.

    One caller computes at a time, its own groups or others': small groups that wait go together up to the budget. There
    is no delay, so that a single caller pays nothing for it.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._busy = False

    @property
    def waiting(self) -> int:
        """How many callers it computes for or keeps waiting."""
        return len(self._jobs) + self._busy

    def run(self, job: Job, compute: Callable[[Sequence[Item]], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Compute a job, together with what others want meanwhile.

        Args:
            job: at least one group.
            compute: gives each item's row, shape (n, hidden size); the same for all callers.

        Returns:
            float32 array, shape (n, hidden size), in the order of the items.

        Raises:
            CancelledError: its caller has left, and so have the groups that did not run yet.
            Exception: what computing this job's own items raised.
        """
        with self._turn:
            self._jobs.append(job)
        batch: list[tuple[Job, list[int]]] = []
        try:
            while batch := self._next_batch(job):
                self._run_batch(batch, compute)
                self._end_turn(batch)
                batch = []
        except BaseException:
            # An interrupt: what was taken of the others' goes back, and this job leaves.
            with self._turn:
                for other, group in batch:
                    other.groups.appendleft(group)
                    if other not in self._jobs:
                        self._jobs.appendleft(other)
                self._drop(job)
            self._end_turn(batch)
            raise
        if job.error is not None:
            raise job.error
        return np.stack([job.rows[position] for position in range(len(job.items))])

    def _next_batch(self, own: Job) -> list[tuple[Job, list[int]]]:
        """Wait for a turn and take groups of the longest waiting jobs; nothing once the own job is done."""
        with self._turn:
            self._turn.wait_for(lambda: own.done or not self._busy)
            for job in [job for job in self._jobs if job.caller.has_left]:
                job.error = CancelledError()
                self._drop(job)
            if own.done:
                return []
            self._busy = True
            batch: list[tuple[Job, list[int]]] = []
            tokens = 0
            for job in list(self._jobs):
                wanted = job.tokens(job.groups[0])
                if batch and tokens + wanted > own.budget:
                    continue
                tokens += wanted
                self._jobs.remove(job)
                batch.append((job, job.groups.popleft()))
                job.running += 1
                if job.groups:
                    # Behind the others, so that a caller with many texts does not keep a caller with one waiting.
                    self._jobs.append(job)
            return batch

    def _drop(self, job: Job) -> None:
        """Forget a job's groups that do not run yet."""
        job.groups.clear()
        if job in self._jobs:
            self._jobs.remove(job)

    def _end_turn(self, batch: list[tuple[Job, list[int]]]) -> None:
        with self._turn:
            for job, _ in batch:
                job.running -= 1
            self._busy = self._busy and not batch
            self._turn.notify_all()

    def _run_batch(
        self, batch: list[tuple[Job, list[int]]], compute: Callable[[Sequence[Item]], NDArray[np.float32]]
    ) -> None:
        try:
            rows = compute([job.items[position] for job, group in batch for position in group])
        except Exception as error:
            if len(batch) > 1:
                # Each by itself, so that an error reaches only the caller whose text it is.
                for part in batch:
                    self._run_batch([part], compute)
                return
            job = batch[0][0]
            with self._turn:
                job.error = error
                self._drop(job)
            return
        start = 0
        for job, group in batch:
            job.rows.update(zip(group, rows[start : start + len(group)], strict=True))
            start += len(group)
            job.progress(group)
