"""A whole load test: at one rate, with some clients, at the highest rate that keeps the objectives."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

from domainclip.client import ServiceError
from domainclip.errors import ConfigurationError
from domainclip.service.load_test.capacity import Capacity, CapacitySearch
from domainclip.service.load_test.http_client import ConnectionLost, ConnectionPool, Target
from domainclip.service.load_test.null_server import null_server
from domainclip.service.load_test.outcomes import Trial
from domainclip.service.load_test.slo import Slo
from domainclip.service.load_test.trial import TrialSettings, closed_loop, open_loop
from domainclip.waiting import Progress
from domainclip.words import counted

T = TypeVar("T")

_INDICES_OF_A_TRIAL = 10_000_000
_NULL_CLIENTS = 16


@dataclass
class LoadTest:
    """Trials of one service, none of which repeats the contents or the arrivals of another.

    Attributes:
        settings: Of all trials.
        slos: The objectives.
        say: Is told each trial when it has ended.
    """

    settings: TrialSettings
    slos: Sequence[Slo] = ()
    say: Callable[[Trial], object] = lambda trial: None

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    def check(self) -> None:
        """Send one request, so that a wrong address or key is named before the test.

        Raises:
            ServiceError: There is no good answer.
        """
        settings = self.settings
        call = settings.workload.call(next(self._numbers) * _INDICES_OF_A_TRIAL)

        async def send() -> tuple[int, bytes]:
            pool = ConnectionPool(settings.target, 1)
            answer = await pool.send(settings.target.request(call.path, call.body), settings.timeout)
            pool.close()
            return answer.status, answer.body

        place = f"http://{settings.target.host}:{settings.target.port}{call.path}"
        try:
            status, body = run_in_loop(send())
        except TimeoutError:
            raise ServiceError(f"{place} has not answered within {settings.timeout:g} s") from None
        except (OSError, ConnectionLost) as error:
            raise ServiceError(
                f"{place} cannot be reached ({error}). Start a service with `domainclip serve`"
            ) from None
        if status != 200:
            raise ServiceError(f"{place} has answered with status {status}: {_message_of(body)}", status=status)

    def at_rate(self, rate: float) -> Trial:
        """Make one trial in an open loop.

        Args:
            rate: Requests a second.

        Returns:
            Its figures; all requests are sent, whether or not the objectives can still be met.

        Raises:
            ConfigurationError: The rate is not positive.
        """
        return self._trial(rate, stop_early=False)

    def with_clients(self, clients: int) -> Trial:
        """Make one trial in a closed loop.

        Args:
            clients: Each waits for its answer before it sends again.

        Returns:
            Its figures.

        Raises:
            ConfigurationError: There is no client.
        """
        if clients < 1:
            raise ConfigurationError(f"There must be at least one client, got {clients}")
        first = next(self._numbers) * _INDICES_OF_A_TRIAL
        with Progress(None, f"Asking with {counted(clients, 'client')}"):
            trial = run_in_loop(closed_loop(self.settings, clients, self.slos, first))
        self.say(trial)
        return trial

    def highest_rate(self, start: float, tolerance: float = 0.05, repeats: int = 3) -> Capacity:
        """Search the highest rate that keeps all objectives.

        Args:
            start: The first rate, in requests a second.
            tolerance: How exactly, as a fraction.
            repeats: Trials of a rate of which most decide, an odd number.

        Returns:
            What was found.

        Raises:
            ConfigurationError: A value is out of range, or there is no objective.
        """
        if not self.slos:
            raise ConfigurationError("The highest rate needs an objective, such as p95=100ms")
        return CapacitySearch(lambda rate: self._trial(rate, stop_early=True), tolerance, repeats).run(start)

    def of_generator(self) -> Trial:
        """Send the same requests to a server that computes nothing: the most that this generator can send.

        Returns:
            The figures of a closed loop.

        Raises:
            CLIPFinetuningError: The null server does not start.
        """
        with null_server() as url:
            settings = replace(self.settings, target=Target.of(url))
            return LoadTest(settings, self.slos, self.say).with_clients(_NULL_CLIENTS)

    def _trial(self, rate: float, stop_early: bool) -> Trial:
        number = next(self._numbers)
        settings = replace(self.settings, seed=self.settings.seed + number)
        if stop_early:
            settings = replace(settings, seconds=self.seconds_at(rate))
        first = number * _INDICES_OF_A_TRIAL
        trial = run_in_loop(open_loop(settings, rate, self.slos, first, stop_early=stop_early))
        self.say(trial)
        return trial

    def seconds_at(self, rate: float) -> float:
        """How long a trial of the search counts: until two requests beyond each percentile are expected.

        Args:
            rate: Requests a second.

        Returns:
            Seconds, from once to ten times those of the settings.
        """
        seconds = self.settings.seconds
        needed = max((2 / (1 - slo.percent / 100) for slo in self.slos), default=0.0)
        return min(max(seconds, needed / rate), 10 * seconds)


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run in uvloop's event loop where it is installed, which leaves more of the machine to the service.

    Args:
        work: Of asyncio.

    Returns:
        Its result.
    """
    try:
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


def _message_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200].decode(errors="replace"))
