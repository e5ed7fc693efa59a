"""How soon the live page of a long run is there, and how heavy it is.

    python benchmarks/watch.py                  # 100,000 logged steps of 30 figures
    python benchmarks/watch.py --quick          # 1,000, to see that it runs

The folder is written first. ``server_ready_s`` is from the command to its address, ``snapshot_first_s`` from the first
request to the figures (all lines are read then), ``snapshot_again_s`` the same once more after a line was added. With
Chromium and npm's playwright-core (``NODE_PATH``), ``first_paint_ms`` and ``charts_ms`` are of the page's own clock,
from navigation to the first paint and to the charts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, median, write_record

FIGURES = 30
BROWSER = """
const { chromium } = require('playwright-core');
(async () => {
  const browser = await chromium.launch({ executablePath: process.argv[3], args: ['--no-sandbox'] });
  const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
  await page.goto(process.argv[2]);
  await page.waitForFunction(() => document.querySelectorAll('canvas').length > 5, { timeout: 60000 });
  const charts = await page.evaluate(() => performance.now());
  const paint = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0].startTime);
  console.log(JSON.stringify({ first_paint_ms: paint, charts_ms: charts }));
  await browser.close();
})();
"""


def write_run(folder: Path, steps: int) -> None:
    names = ["loss", "grad_norm", "learning_rate", "memory_mb", "samples_per_second", "logit_scale"]
    names += [f"part_{index}" for index in range(FIGURES - len(names))]
    values = np.random.default_rng(0).random((steps, FIGURES)).tolist()
    with open(folder / "metrics.jsonl", "w") as file:
        for step, row in enumerate(values, 1):
            file.write(json.dumps({"step": step, **dict(zip(names, row, strict=True))}) + "\n")


def fetched(url: str) -> tuple[float, int]:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=120) as answer:
        content = answer.read()
    return time.perf_counter() - began, len(content)


def in_browser(url: str) -> dict[str, float]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None or shutil.which("node") is None:
        return {}
    with tempfile.NamedTemporaryFile("w", suffix=".cjs") as script:
        script.write(BROWSER)
        script.flush()
        found = subprocess.run(["node", script.name, url, chromium], capture_output=True, text=True, timeout=180)
    return json.loads(found.stdout) if found.returncode == 0 else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    facts = machine_facts()
    steps = 1_000 if arguments.quick else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, steps)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "domainclip", "watch", str(folder), "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            url, ready = found[0], time.perf_counter() - began
            first, weight = fetched(f"{url}/data")
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": steps + 1, "loss": 0.5}) + "\n")
            again = [fetched(f"{url}/data")[0] for _ in range(5)]
            page = sum(
                fetched(f"{url}/{part}")[1]
                for part in ("", *re.findall(r'"(assets/[^"]+)"', urllib.request.urlopen(url).read().decode()))
            )
            browser: list[dict[str, Any]] = [each for _ in range(3) if (each := in_browser(url))]
        finally:
            process.kill()
            process.wait()
    results: dict[str, Any] = {
        "steps": steps,
        "figures": FIGURES,
        "server_ready_s": round(ready, 3),
        "snapshot_first_s": round(first, 3),
        "snapshot_again_s": round(median(again), 3),
        "page_and_assets_bytes": page,
        "snapshot_bytes": weight,
    }
    for key in ("first_paint_ms", "charts_ms"):
        if browser:
            results[key] = round(median([each[key] for each in browser]), 1)
    print(json.dumps(results, indent=1))
    print(write_record("watch", {"machine": facts, "quick": arguments.quick, "results": results}, arguments.output))


if __name__ == "__main__":
    main()
