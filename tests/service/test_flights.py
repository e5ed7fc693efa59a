"""Single flight beside a plain model: who waits gets the result, and what nobody waits for ends."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.service.flights import Flights


class Computation:
    """Counts what was begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.begun += 1
        try:
            return await asyncio.shield(self.result)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_one_of_several_may_leave() -> None:
    async def main() -> None:
        flights, compute = Flights[int](), Computation()
        waiting = []
        for number in range(4):
            awaitable, joined = flights.join("a", compute)
            assert joined is (number > 0)
            waiting.append(asyncio.ensure_future(awaitable))
            await turns()
        for gone in (waiting[0], waiting[2]):  # the first of all among them
            gone.cancel()
            await turns()
            assert gone.cancelled()
        assert compute.cancelled == 0 and len(flights) == 1
        compute.result.set_result(7)
        assert [await waiting[1], await waiting[3]] == [7, 7]
        await turns()
        assert (compute.begun, len(flights)) == (1, 0)

    asyncio.run(main())


def test_when_all_have_left_it_is_cancelled_and_begun_anew_for_the_next() -> None:
    async def main() -> None:
        flights, first, second = Flights[int](), Computation(), Computation()
        waiting = [asyncio.ensure_future(flights.join("a", first)[0]) for _ in range(3)]
        await turns()
        for each in waiting:
            each.cancel()
        await turns(2)
        awaitable, joined = flights.join("a", second)  # while the cancelled one is still ending
        assert not joined
        second.result.set_result(8)
        assert await awaitable == 8
        await turns()
        assert (first.cancelled, second.cancelled, len(flights)) == (1, 0, 0)

    asyncio.run(main())


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    async def main() -> None:
        flights, first, second = Flights[int](), Computation(), Computation()
        waiting = [asyncio.ensure_future(flights.join("a", first)[0]) for _ in range(3)]
        await turns()
        first.result.set_exception(ValueError("no"))
        for each in waiting:
            with pytest.raises(ValueError, match="no"):
                await each
        await turns()
        awaitable, joined = flights.join("a", second)
        assert not joined
        second.result.set_result(9)
        assert await awaitable == 9

    asyncio.run(main())


def test_a_failure_that_nobody_waits_for_is_no_noise() -> None:
    noise: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        flights, compute = Flights[int](), Computation()
        waiting = asyncio.ensure_future(flights.join("a", compute)[0])
        await turns()
        compute.result.set_exception(ValueError("no"))
        waiting.cancel()
        await turns(20)
        assert len(flights) == 0

    asyncio.run(main())
    assert noise == []


STEP = st.tuples(st.sampled_from(["join", "leave", "finish", "fail", "turn"]), st.integers(0, 2), st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_any_order_of_events(steps: list[tuple[str, int, int]]) -> None:
    async def main() -> None:
        flights = Flights[int]()
        under_way: dict[int, tuple[Computation, set[int]]] = {}
        waiting: dict[int, tuple[int, Computation, asyncio.Future[int]]] = {}
        expected: dict[int, object] = {}
        made: list[Computation] = []
        for step, key, who in steps:
            if step == "join":
                compute = Computation()
                awaitable, joined = flights.join(key, compute)
                assert joined == (key in under_way)
                if not joined:
                    under_way[key] = (compute, set())
                    made.append(compute)
                number = len(waiting)
                waiting[number] = (key, under_way[key][0], asyncio.ensure_future(awaitable))
                under_way[key][1].add(number)
            elif step == "leave":
                mine = sorted(under_way.get(key, (None, set[int]()))[1])
                if mine:
                    number = mine[who % len(mine)]
                    waiting[number][2].cancel()
                    expected[number] = "left"
                    under_way[key][1].discard(number)
                    if not under_way[key][1]:
                        del under_way[key]
            elif step in ("finish", "fail") and key in under_way:
                compute, numbers = under_way.pop(key)
                if step == "finish":
                    compute.result.set_result(who)
                else:
                    compute.result.set_exception(ValueError(who))
                    compute.result.exception()
                expected |= dict.fromkeys(numbers, (step, who))
            await turns()
            assert len(flights) == len(under_way)
        for number, (_, _, future) in waiting.items():
            if number not in expected:
                assert not future.done()
                future.cancel()
            elif expected[number] == "left":
                assert future.cancelled()
            else:
                how, value = expected[number]  # type: ignore[misc]
                assert future.result() == value if how == "finish" else str(future.exception()) == str(value)
        await turns()
        assert len(flights) == 0
        assert all(compute.begun == 1 for compute in made)
        await turns()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(main())
