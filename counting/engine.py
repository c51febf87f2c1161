"""`moegauge count --engine`: the targets of a list as tasks of a Dask cluster; needs distributed (the `dask` extra).

A worker that dies loses nothing: the scheduler gives its tasks to another. Lines are written by the client alone, one a
target, so a task that ran twice is still one line.
"""

from __future__ import annotations

import importlib
import re
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from moegauge.counting.many import Count, Target, line_of
from moegauge.errors import MissingExtraError, UsageError
from moegauge.text import shown

CONNECT_S = 15.0
_ADDRESS = re.compile(r"(?:tcp|tls|ucx|wss?)://[^\s/]+:\d{1,5}")


@dataclass(slots=True)
class Cluster:
    """A running Dask cluster, as `many.run` uses what counts for it.

    Args:
        address: of the scheduler, e.g. `tcp://10.0.0.1:8786`.
        count: as `many.run` takes it; pickled, so a function of a module or an object of a class of one.
    Attributes:
        jobs: targets the cluster counts at a time: threads of its workers.
    """

    address: str
    count: Count
    _client: Any = field(init=False)
    _pool: Any = field(init=False)
    jobs: int = field(init=False)

    def __post_init__(self) -> None:
        """Connect.

        Raises:
            MissingExtraError: distributed is not installed. UsageError: no scheduler answers, or it has no worker.
        """
        check_available()
        if not _ADDRESS.fullmatch(self.address):
            advice = "For example: tcp://10.0.0.1:8786, as `dask scheduler` prints it."
            raise UsageError(f"--engine '{shown(self.address)}': no address of a Dask scheduler.", advice=advice)
        distributed: Any = importlib.import_module("distributed")  # a second that only --engine waits for
        try:
            self._client = distributed.Client(self.address, timeout=CONNECT_S, set_as_default=False)
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except (OSError, ValueError, TypeError, TimeoutError) as error:
            problem = (
                f"--engine '{shown(self.address)}': no Dask scheduler with a worker answers ({type(error).__name__})."
            )
            raise UsageError(problem, advice="Give the address `dask scheduler` prints, and start a worker.") from None
        self.jobs = max(1, sum(self._client.nthreads().values()))
        self._pool = self._client.get_executor(pure=False)

    def submit(self, target: Target) -> Future[str | None]:
        """The line of a target, as a task."""
        future: Future[str | None] = self._pool.submit(line_of, target, self.count)
        return future

    def close(self) -> None:
        """Let go of what has not been counted; the cluster runs on."""
        self._client.close()


def check_available() -> None:
    """Raises MissingExtraError unless distributed is installed."""
    if find_spec("distributed") is None:
        raise MissingExtraError("--engine", "dask")
