"""The shards of a plan on a Ray cluster, whose machines see the same folders: paths go out, counts come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.retrieval.store.plan import Plan


class ShardWriter(Protocol):
    """What an actor does."""

    def write(self, index: int) -> int:
        """Write one shard.

        Args:
            index: Of the plan's shards.

        Returns:
            How many images went through the model.
        """
        ...


def require_ray() -> Any:
    """The library.

    Returns:
        The package ``ray`` with ``ray.data``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("ray", "ray", "Embedding on a cluster (--ray)") from None
    return ray


def run_on_ray(make_worker: Callable[[], ShardWriter], plan: Plan, workers: int, address: str) -> int:
    """Let actors write all shards of a plan. An actor that dies is replaced, and its shard is written by the next.

    Args:
        make_worker: Loads the model, once in each actor.
        plan: Whose shards are written.
        workers: How many actors.
        address: Of the cluster; ``local`` makes one of this machine for the time of the call.

    Returns:
        How many images went through the model.

    Raises:
        ConfigurationError: There is no cluster at the address, or shards are left over.
        MissingExtraError: ``ray`` is not installed.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"There is no Ray cluster at {address}: {error}") from None
    try:
        # A few at a time: Ray would hold whatever it is handed in its object store (here: numbers of shards).
        rows = ray.data.from_items(
            [{"index": index} for index in range(len(plan.files))], override_num_blocks=len(plan.files)
        )

        class Actor:
            def __init__(self) -> None:
                self.worker = make_worker()

            def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
                return {"encoded": self.worker.write(int(row["index"]))}

        found = rows.map(Actor, concurrency=workers, max_restarts=-1, max_task_retries=-1).take_all()
        return sum(int(row["encoded"]) for row in found)
    finally:
        if own:
            ray.shutdown()
