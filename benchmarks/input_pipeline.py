"""Images a second from JPEG files to normalised batches, beside ``transformers``' own image processor.

    python benchmarks/input_pipeline.py             # the whole measurement, writes benchmarks/results/
    python benchmarks/input_pipeline.py --quick     # few and small images, to see that it runs

Both sides turn the same files into float32 batches ``[64, 3, 224, 224]``, in one process each and without worker
processes, and take turns. Files are in the system's file cache on both sides. What is timed:

- reference: ``PIL.Image.open(...).convert("RGB")``, with augmentation a random crop, mirroring and jitter by Pillow,
  then ``CLIPImageProcessorPil`` on the batch. It keeps nothing, so its later epochs are its first.
- ours: ``CLIPDataset``, the training loader and its collator, then ``ImageSpec.normalise``; with the process settings
  that training uses (``DeviceManager.optimize_for_device``). "Same settings" gives them to the reference too.

Both compute on one thread: Pillow has no more, and figures per core carry over to other machines.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _record import RESULTS, machine_facts, median, write_record
from _worker import Handler, Worker, serve

# name: (width, height, files, rows); rows beyond the files read them again, each row with a cache entry of its own.
SIZES = {"640x480": (640, 480, 64, 256), "2000x1500": (2000, 1500, 16, 64)}
QUICK_SIZES = {"320x240": (320, 240, 4, 8)}
SIDES = ("reference", "reference, same settings", "ours", "ours, prefetch thread")
QUICK_SIDES = ("reference", "ours")
RESOLUTION_PIXELS = 224
CROP_SCALE = 0.7
JITTER = 0.1


# --- in the worker ---


def make_photos(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG photographs of quality 90: bundled images cut at random, enlarged, with a sensor's noise laid on."""
    import numpy as np
    from PIL import Image
    from skimage import data

    sources = [Image.fromarray(image) for image in (data.coffee(), data.chelsea(), data.astronaut(), data.rocket())]
    generator = np.random.default_rng(width)
    paths = []
    for index in range(count):
        source = sources[index % len(sources)]
        fraction = generator.uniform(0.7, 1.0)
        cut_height = int(fraction * min(source.height, source.width * height / width))
        cut_width = int(cut_height * width / height)
        left = int(generator.integers(0, source.width - cut_width + 1))
        top = int(generator.integers(0, source.height - cut_height + 1))
        box = (left, top, left + cut_width, top + cut_height)
        photo = np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
        noisy = photo + generator.normal(0, 4, photo.shape).astype(np.float32)
        path = folder / f"{width}x{height}_{index:03}.jpg"
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def _augmented(image: Any, rng: Any) -> Any:
    """The package's augmentation as Pillow offers it: random crop, mirroring, contrast and brightness."""
    from PIL import Image, ImageEnhance, ImageOps

    shorter = min(image.size)
    area = shorter**2 * rng.uniform(CROP_SCALE, 1.0)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(image.width, round(math.sqrt(area * aspect)))
    height = min(image.height, round(math.sqrt(area / aspect)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    view = image.resize(
        (RESOLUTION_PIXELS, RESOLUTION_PIXELS), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    view = ImageEnhance.Contrast(view).enhance(1 + rng.uniform(-JITTER, JITTER))
    return ImageEnhance.Brightness(view).enhance(1 + rng.uniform(-JITTER, JITTER))


Epoch = Callable[[int], Iterator[Any]]
"""Yields the float32 batches of an epoch."""


def _reference(spec: dict[str, Any], augment: bool) -> Epoch:
    import random

    from PIL import Image
    from transformers import CLIPImageProcessorPil

    # An augmented view has its size already.
    processor = CLIPImageProcessorPil(do_resize=not augment, do_center_crop=not augment)
    rng = random.Random(0)

    def epoch(number: int) -> Iterator[Any]:
        paths = spec["paths"]
        for start in range(0, len(paths), spec["batch"]):
            images = []
            for path in paths[start : start + spec["batch"]]:
                with Image.open(path) as opened:
                    image = opened.convert("RGB")
                images.append(_augmented(image, rng) if augment else image)
            yield processor(images=images, return_tensors="pt")["pixel_values"]

    return epoch


def _ours(spec: dict[str, Any], augment: bool) -> Epoch:
    from transformers import CLIPImageProcessorPil

    from domainclip.config import CLIPFinetuningConfig
    from domainclip.data import CLIPDataset, ImageSpec, ImageTransform, PrefetchDataLoader
    from domainclip.data.batches import create_training_loader
    from domainclip.data.step_plan import StepPlan
    from domainclip.models import EncoderProcessor, make_tiny_clip

    config = CLIPFinetuningConfig(
        num_workers=0,
        shuffle=False,
        image_resolution=RESOLUTION_PIXELS,
        augment_images=augment,
        horizontal_flip=True,
        crop_scale=CROP_SCALE,
        color_jitter=JITTER,
    )
    processor = EncoderProcessor(make_tiny_clip().processor.tokenizer, CLIPImageProcessorPil(), "causal", 77)
    image_spec = ImageSpec.from_processor(processor.image_processor)
    pairs = [(Path(path), f"image {row}") for row, path in enumerate(spec["paths"])]
    dataset = CLIPDataset(pairs, processor, config, ImageTransform(config, augment=augment, spec=image_spec))
    size = {"rows": len(dataset), "batch_size": spec["batch"], "full_resolution": dataset.image_transform.resolution}
    plan = StepPlan.from_settings(config, config, config, seed=config.seed, **size)
    loader = create_training_loader(dataset, config, plan)
    batches = PrefetchDataLoader(loader) if spec["name"].endswith("prefetch thread") else loader

    def epoch(number: int) -> Iterator[Any]:
        loader.batch_sampler.set_position(number)  # type: ignore[union-attr]
        for batch in batches:
            yield image_spec.normalise(batch["pixels"])

    return epoch


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    import torch

    from domainclip.devices import DeviceManager

    torch.set_num_threads(1)
    done: list[str] = []
    if spec["name"] != "reference":
        done = [f"{what}: {reason}" for what, reason in DeviceManager(device="cpu").optimize_for_device()]
    side = _ours if spec["name"].startswith("ours") else _reference
    state: dict[str, Any] = {}

    def start(augment: bool) -> dict[str, Any]:
        """Forget everything: the next epoch is a first one."""
        state.clear()
        state["epoch"] = side(spec, augment)
        return {}

    def epoch(number: int) -> dict[str, Any]:
        shape: list[int] = []
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in state["epoch"](number):
            shape = list(batch.shape)
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "shape": shape,
        }

    def difference() -> dict[str, Any]:
        """Largest and mean difference from the reference, in steps of one 8-bit level (1/255)."""
        std = torch.tensor(CLIP_STD).view(3, 1, 1)
        ours, reference = _ours(spec, False)(0), _reference(spec, False)(0)
        steps = torch.cat([(a - b).abs() * std * 255 for a, b in zip(ours, reference, strict=True)])
        return {"largest": float(steps.max()), "mean": float(steps.mean())}

    from domainclip.data.images.image_spec import CLIP_STD

    return {"settings": done}, {"start": start, "epoch": epoch, "difference": difference}


def _photographer(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    """Makes the images in a process of its own: the one that measures stays small."""
    paths = make_photos(Path(spec["folder"]), spec["width"], spec["height"], spec["files"])
    sizes = [path.stat().st_size for path in paths]
    return {"paths": [str(path) for path in paths], "mean_kib": round(sum(sizes) / len(sizes) / 1024, 1)}, {}


# --- in the parent ---


def measure(paths: list[str], batch: int, repeats: int, sides: Sequence[str]) -> dict[str, Any]:
    """``{"plain" or "augmented": {side: {"first": …, "later": …}}}`` in images a second, wall and processor time."""
    script = Path(__file__).resolve()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(Worker(script, {"name": side, "paths": paths, "batch": batch})) for side in sides
        }
        for worker in workers.values():  # no one works while another still starts
            _ = worker.facts
        for kind, augment in (("plain", False), ("augmented", True)):
            taken: dict[str, dict[str, list[dict[str, Any]]]] = {s: {"first": [], "later": []} for s in sides}
            for repeat in range(repeats + 1):
                for worker in workers.values():
                    worker.ask("start", augment=augment)
                for number, when in enumerate(("first", "later", "later")):
                    for side in sides if repeat % 2 else reversed(sides):
                        answer = workers[side].ask("epoch", number=number)
                        if repeat:  # the first round loads libraries and fills the file cache
                            taken[side][when].append(answer)
            found[kind] = {
                side: {when: _rates(answers, len(paths)) for when, answers in epochs.items()}
                for side, epochs in taken.items()
            }
        found["difference_in_levels"] = workers["ours"].ask("difference")
        found["ours_settings"] = workers["ours"].facts["settings"]
    return found


def _rates(answers: list[dict[str, Any]], images: int) -> dict[str, float]:
    return {
        "pictures_per_s": round(images / median([answer["seconds"] for answer in answers]), 1),
        "pictures_per_cpu_s": round(images / median([answer["cpu_seconds"] for answer in answers]), 1),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes, sides, batch, repeats = SIZES, SIDES, 64, arguments.repeats
    if arguments.quick:
        sizes, sides, batch, repeats = QUICK_SIZES, QUICK_SIDES, 4, 1
    results: dict[str, Any] = {}
    facts = machine_facts()
    script = Path(__file__).resolve()
    for name, (width, height, files, rows) in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            order = {
                "name": "photographer",
                "folder": folder,
                "width": width,
                "height": height,
                "files": files,
            }
            with Worker(script, order) as photographer:
                paths = photographer.facts["paths"]
                mean_kib = photographer.facts["mean_kib"]
            result = measure([paths[row % files] for row in range(rows)], batch, repeats, sides)
        results[name] = {"files": files, "rows": rows, "mean_file_kib": mean_kib, **result}
        for kind in ("plain", "augmented"):
            for when in ("first", "later"):
                line = ", ".join(f"{side} {result[kind][side][when]['pictures_per_s']:.0f}/s" for side in sides)
                print(f"{name}, {kind}, {when}: {line}", flush=True)
        largest = result["difference_in_levels"]["largest"]
        print(f"{name}: largest difference {largest:.4f}/255", flush=True)
        if largest > 1.001:  # the float arithmetic of normalising and back
            raise SystemExit(f"{name}: a value differs by {largest:.3f}/255 from transformers' processor")
    return {
        "machine": facts,
        "quick": arguments.quick,
        "batch_size": batch,
        "resolution": RESOLUTION_PIXELS,
        "threads": 1,
        "repeats": repeats,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="times each first epoch is measured")
    parser.add_argument("--quick", action="store_true", help="eight small images, once")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON record")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(
            lambda spec: (_photographer if spec["name"] == "photographer" else _prepare)(spec),
            arguments.worker,
        )
        return
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    print(write_record("input_pipeline", run(arguments), arguments.output))


if __name__ == "__main__":
    main()
