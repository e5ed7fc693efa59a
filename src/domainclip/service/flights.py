"""Equal requests at the same time are computed once, and what nobody waits for any more is not computed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Flights(Generic[T]):
    """Computations under way, by what they are of. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, T]]) -> tuple[Awaitable[T], bool]:
        """Compute something, or wait for who does already.

        Args:
            key: What it is of.
            compute: Begins the computation, which is cancelled when all who wait have left.

        Returns:
            What to await, and whether it was under way.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(compute()))
            flight.task.add_done_callback(lambda _: self._landed(key))
        return self._wait(flight, key), joined

    async def _wait(self, flight: _Flight[T], key: Hashable) -> T:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()

    def _landed(self, key: Hashable) -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.task.done():
            del self._flights[key]
            if not flight.task.cancelled():
                flight.task.exception()  # nobody may be left who asks for it
