"""Images a second of ``domainclip embed``, beside a plain loop and a loader of workers, and what a kill costs.

    python benchmarks/embed.py                          # 20,000 images, writes benchmarks/results/
    python benchmarks/embed.py --images 400 --blocks 2  # to see that it runs

A CLIP of ViT-B/32's shape with random weights (``--model`` takes another), JPEGs of 320 × 240. The sides take turns, a
block of images each:

- ``ours``: what the command does, a store apart: reading ahead in threads, the model, digests of the files;
- ``loop``: PIL, the processor of ``transformers`` and its model, 32 images at a time;
- ``loader``: the same in a ``DataLoader`` of two workers, clip-retrieval's way;
- ``decode``: our reading and resizing alone, and ``engine``: our model alone on images that are ready. The smaller of
  the two is the ceiling of any order of both that does not share the cores.

All in the same precision (``--precision``) on two threads. Then the whole command with its store; two workers of one
thread beside one; and ten kills at random times, after which the store has to have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, median, write_record

BATCH = 32
SIZE = (240, 320)


def make_images(folder: Path, count: int) -> list[Path]:
    """Smooth random colours with some grain, so that a JPEG has the size of a photograph's."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = draw.integers(0, 256, (12, 16, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        image += draw.integers(-12, 13, image.shape, np.int16)
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def save_model(folder: Path) -> None:
    """ViT-B/32 with random weights, and the tokenizer and processor of the tiny model at its resolution."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from domainclip.models.tiny import make_tiny_clip

    tiny = make_tiny_clip()
    torch.manual_seed(0)
    text = {
        "vocab_size": tiny.model.config.text_config.vocab_size,
        "eos_token_id": tiny.model.config.text_config.eos_token_id,
    }
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)
    tiny.processor.set_resolution(224)
    tiny.processor.save(folder)


def sides_of(model: Path, precision: str) -> dict[str, Callable[[Sequence[Path]], None]]:
    import torch
    from torch.utils.data import DataLoader, Dataset
    from transformers import AutoImageProcessor, AutoModel

    from domainclip import CLIPFinetuningConfig, ModelSession
    from domainclip.data.images.store import ImageStore
    from domainclip.resolve import resolve_for_inference

    def cast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

    config = CLIPFinetuningConfig(model_name=str(model), device="cpu")
    session = ModelSession.from_pretrained(resolve_for_inference(config))
    engine = session.engine(BATCH, cast, ImageStore(0))
    plain, processor = AutoModel.from_pretrained(model).eval(), AutoImageProcessor.from_pretrained(model)

    class Files(Dataset):
        def __init__(self, paths: Sequence[Path]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            return processor(images=Image.open(self.paths[index]).convert("RGB"), return_tensors="pt")["pixel_values"][
                0
            ]

    @torch.inference_mode()
    def encode(pixels: Any) -> None:
        with cast():
            plain.get_image_features(pixel_values=pixels)

    def ours(paths: Sequence[Path]) -> None:
        for _ in engine.encode_files(paths, digests=True):
            pass

    def loop(paths: Sequence[Path]) -> None:
        for start in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
            encode(processor(images=images, return_tensors="pt")["pixel_values"])

    def loader(paths: Sequence[Path]) -> None:
        for pixels in DataLoader(Files(paths), BATCH, num_workers=2):
            encode(pixels)

    def decode(paths: Sequence[Path]) -> None:
        for start in range(0, len(paths), BATCH):
            engine.pixels(list(paths[start : start + BATCH]))

    ready = torch.zeros(BATCH, 3, 224, 224, dtype=torch.uint8)
    ready.random_(0, 256, generator=torch.Generator().manual_seed(0))

    def model_alone(paths: Sequence[Path]) -> None:
        with engine._inference():
            for _ in range(0, len(paths), BATCH):
                engine._encode(ready)

    return {"ours": ours, "loop": loop, "loader": loader, "decode": decode, "engine": model_alone}


def command(images: Path, model: Path, output: Path, *more: str, threads: int = 2) -> tuple[list[str], dict[str, str]]:
    start = [sys.executable, "-m", "domainclip", "embed", str(images), "--model", str(model), "--output", str(output)]
    return [*start, *more, "device=cpu"], {**os.environ, "OMP_NUM_THREADS": str(threads)}


def digest_of(store: Path) -> str:
    found = hashlib.sha256()
    for path in sorted((store / "shards").glob("*.parquet")):
        found.update(path.read_bytes())
    return found.hexdigest()


def rate_of(store: Path, workers: int) -> float:
    """Images a second between the end of the first shard and the last: without the start of the program."""
    times = sorted(path.stat().st_mtime for path in (store / "shards").glob("*.parquet"))
    # Each worker's first shard began before the clock does.
    return 1024 * (len(times) - workers) / (times[-1] - times[0]) if len(times) > workers else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=8, help="rounds of the comparison")
    parser.add_argument("--block", type=int, default=256, help="images of a round")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    facts = machine_facts()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        images = base / "images"
        paths = make_images(images, arguments.images)
        model = arguments.model
        if model is None:
            model = base / "model"
            save_model(model)
        sides = sides_of(model, arguments.precision)
        for side in sides.values():
            side(paths[:BATCH])
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        order = list(sides)
        for block in range(arguments.blocks):
            at = block * arguments.block % max(1, len(paths) - arguments.block)
            part = paths[at : at + arguments.block]
            for name in order:
                started = time.perf_counter()
                sides[name](part)
                seconds[name].append(time.perf_counter() - started)
            order.reverse()
        rates = {name: len(part) / median(taken) for name, taken in seconds.items()}
        ceiling = min(rates["decode"], rates["engine"])
        print({name: round(rate, 1) for name, rate in rates.items()}, flush=True)
        content: dict[str, Any] = {
            "machine": facts,
            "model": "ViT-B/32 shape, random weights" if arguments.model is None else model.name,
            "precision": arguments.precision,
            "images_per_s": rates,
            "ours_times_loop": rates["ours"] / rates["loop"],
            "ours_times_loader": rates["ours"] / rates["loader"],
            "ours_of_ceiling": rates["ours"] / ceiling,
        }
        content["command"] = whole_command(images, model, base)
        content["kills"] = killed(images, model, base, arguments.kills, content["command"]["sha256"])
        print(write_record("embed", content, arguments.output))


def whole_command(images: Path, model: Path, base: Path) -> dict[str, Any]:
    """The command itself, by one worker and by two, of one thread each."""
    found: dict[str, Any] = {}
    for name, workers, threads in (("two_threads", 1, 2), ("one_worker_of_one_thread", 1, 1), ("two_workers", 2, 1)):
        line, environment = command(images, model, base / name, "--workers", str(workers), threads=threads)
        started = time.time()
        subprocess.run(line, env=environment, check=True, capture_output=True)
        found[name] = {"seconds": time.time() - started, "images_per_s": rate_of(base / name, workers)}
        print(name, found[name], flush=True)
    found["two_workers_times_one"] = found["two_workers"]["images_per_s"] / max(
        1e-9, found["one_worker_of_one_thread"]["images_per_s"]
    )
    found["sha256"] = digest_of(base / "one_worker_of_one_thread")
    return found


def killed(images: Path, model: Path, base: Path, kills: int, whole: str) -> dict[str, Any]:
    """SIGKILL at random times, then to the end: the same bytes?"""
    draw, store, times = random.Random(0), base / "killed", []
    line, environment = command(images, model, store, threads=1)
    while len(times) < kills:
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait = draw.uniform(8, 30)
        try:
            process.wait(wait)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            times.append(round(wait, 1))
    subprocess.run(line, env=environment, check=True, capture_output=True)
    return {"kills": len(times), "after_seconds": times, "same_bytes": digest_of(store) == whole}


if __name__ == "__main__":
    main()
