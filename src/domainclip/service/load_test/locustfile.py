"""The load test's requests for those who use locust (``pip install locust``).

    locust -f locustfile.py --host http://127.0.0.1:8000
    locust -f locustfile.py --host http://127.0.0.1:8000 --headless --users 16 --run-time 60s

``python -c "from domainclip.service.load_test import LOCUSTFILE; print(LOCUSTFILE)"`` says where this file is. What is
sent is chosen with ``--workload`` (``pairs``, ``embeddings-text``, ``embeddings-image``, ``classify``, ``search``,
``mix``), images of your own with ``--images DIR``, and a key is read from ``--api-key-file FILE``. Each user waits for
its answer before it sends again: this measures throughput, whereas latencies at a given rate are for
``domainclip bench serve``.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task

from domainclip.service.load_test.workload import Workload

_indices = itertools.count()  # of all users of this process, so that none sends what another has sent


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add to locust's options.

    Args:
        parser: Of locust's command line.
    """
    parser.add_argument("--workload", default="pairs", help="What is sent")
    parser.add_argument("--images", default="", help="A folder of images to send; left out, drawn ones")
    parser.add_argument("--repeat-share", type=float, default=0.0, help="Fraction of contents that were sent before")
    parser.add_argument("--api-key-file", default="", help="Its first line is the API key")
    parser.add_argument("--content-seed", type=int, default=0, help="Another one for each machine that sends")


class ServiceUser(FastHttpUser):
    """Sends one request after the other."""

    def on_start(self) -> None:
        """Read the options."""
        options = self.environment.parsed_options
        images = Path(options.images) if options.images else None
        self.workload = Workload(options.workload, images, options.content_seed, options.repeat_share)
        self.headers = {"Content-Type": "application/json"}
        if options.api_key_file:
            key = Path(options.api_key_file).read_text(encoding="utf-8").split()[0]
            self.headers["Authorization"] = f"Bearer {key}"

    @task
    def ask(self) -> None:
        """Send the next request; what was turned away (429) is counted apart from failures."""
        call = self.workload.call(next(_indices))
        body = call.body.decode()
        with self.client.post(call.path, data=body, headers=self.headers, catch_response=True) as response:
            if response.status_code == 429:
                response.request_meta["name"] = f"{call.path} turned away"
                response.success()
