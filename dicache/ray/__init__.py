"""Ray as an executor: `pip install 'dicache[ray]'`.

    with dicache.ray.executor(4) as executor:
        profile = dicache.calibrate(pipe, prompts, steps=28, executor=executor)

An actor per worker, and a thread here that waits for it. An actor that dies is replaced; its work is reported as lost,
with `concurrent.futures.BrokenExecutor`, and whoever handed it out may hand it out again.
"""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any

from dicache.errors import WorkerError
from dicache.reporting.log import LOGGER


def executor(workers: int, **resources: Any) -> "RayExecutor":  # noqa: ANN401
    """An executor of so many Ray actors; `resources` are each one's, as `num_gpus=1`. Joins the cluster that Ray is
    connected to, and says so where that has too little for them; else begins one on this machine, which ends with the
    executor.

    Raises WorkerError where Ray is not installed, or for fewer than one worker.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise WorkerError(f"workers is {workers!r}. Expected a whole number, 1 or more.")
    return RayExecutor(workers, resources)


class RayExecutor(Executor):
    """Of `executor`."""

    ray: Any
    actors: list[Any]
    own: threading.local

    def __init__(self, workers: int, resources: dict[str, Any]) -> None:
        self.ray, self._max_workers = _ray(), workers
        self.begun: bool = not self.ray.is_initialized()
        wanted = {"num_cpus": 1, **resources}
        if self.begun:
            self._begin(math.ceil(workers * wanted["num_cpus"]))
        self._warn(workers, wanted)
        self.actor: Any = self.ray.remote(**wanted)(_Actor)
        self.own, self.actors = threading.local(), list[Any]()
        self.waiting: ThreadPoolExecutor = ThreadPoolExecutor(workers, "dicache-ray")

    def _begin(self, cores: int) -> None:
        """Workers may share cores, as processes do."""
        try:
            self.ray.init(num_cpus=max(os.cpu_count() or 1, cores), log_to_driver=False, include_dashboard=False)
        except ValueError:  # a cluster runs on this machine, or is named by RAY_ADDRESS, and has what it has
            self.ray.init(log_to_driver=False)

    def _warn(self, workers: int, wanted: dict[str, Any]) -> None:
        """Actors for which there is no room are waited for, and nobody says why."""
        there = self.ray.cluster_resources()
        for option, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            needed = workers * wanted.get(option, 0)
            if needed > there.get(name, 0):
                LOGGER.warning(
                    "Ray: %d workers need %g of %s, and the cluster has %g: who has no room waits until it grows. Ask "
                    "for fewer workers, or for less, %s=..., for each.",
                    *(workers, needed, name, there.get(name, 0), option),
                )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":  # noqa: ANN401
        """As every executor's. The function and its arguments are pickled."""
        return self.waiting.submit(self._ask, fn, args, kwargs)

    def _ask(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """In a waiting thread, of its own actor."""
        actor = vars(self.own).get("actor")
        if actor is None:
            actor = self.own.actor = self.actor.remote()
            self.actors.append(actor)
        try:
            return self.ray.get(actor.run.remote(fn, args, kwargs))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayActorError as error:
            self.own.actor = None
            self.actors.remove(actor)
            raise BrokenExecutor("a Ray actor died") from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the actors, and Ray if it was begun here."""
        self.waiting.shutdown(wait, cancel_futures=cancel_futures)
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors.clear()
        if self.begun and self.ray.is_initialized():
            self.ray.shutdown()


class _Actor:
    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        return fn(*args, **kwargs)


def _ray() -> Any:  # noqa: ANN401
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise WorkerError("Ray is not installed: pip install 'dicache[ray]'.") from error
    return ray
