"""Measures what speed for quality costs: the embedded model's pictures with and without it, scored by the judge.

    python -m models.acceleration --out dist/acceleration --docs       # some 15 minutes on two cores
    python -m models.acceleration --out dist/acceleration --count 1000 # on a GPU
    python -m models.acceleration … --timed FOLDER                     # and how fast a larger model becomes
    python -m models.acceleration --read results.json --docs           # what was measured elsewhere

From the repository's root. The engine is the worker's own; beside it (``worker/src`` and ``resources/src`` on
``PYTHONPATH``, where they are not installed) this needs torch, diffusers, transformers and pydantic. Prompts hold
combinations kept from training, half of them one subject, half two in a relation, as the model card's scores do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from models.training.captions import plain_prompt
from models.training.dataset import label
from models.training.evaluate import SEEN, unseen_scenes
from models.training.judging import judge_module
from models.training.sampler import Sampler
from models.training.scenes import RELATIONS, Scene
from models.training.settings import ROOT

from kubediffusion.resources.generation_job import Acceleration
from kubediffusion.worker.engine import (
    ClosedBatchMonitor,
    EngineInfo,
    ImageId,
    ImageOutput,
    ImageRequest,
    Outcome,
    SamplingParameters,
)
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.accelerator import prepare
from kubediffusion.worker.execution.continuous import NAME, ContinuousEngine
from kubediffusion.worker.families.registry import Unsupported, family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MODEL = ROOT / "models" / "kubediffusion-emoji"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin acceleration -->", "<!-- end acceleration -->"
STEPS, GUIDANCE = 25, 7.5
CUDA = torch.cuda.is_available()

Found = dict[str, Any]


def wish(start: float | None = None, stop: float = 1.0, caching: int | None = None) -> Acceleration:
    """Return an acceleration: guidance from ``start`` to ``stop`` unless None, features cached unless None."""
    interval = None if start is None else {"start": start, "stop": stop}
    return Acceleration.model_validate(
        {"guidanceInterval": interval, "featureCaching": caching and {"interval": caching}}
    )


COMPARED: dict[str, Acceleration | None] = {
    "none": None,
    "guidance 0 to 0.8": wish(0.0, 0.8),
    "guidance 0 to 0.5": wish(0.0, 0.5),
    "guidance 0.2 to 0.8": wish(0.2, 0.8),
    "caching 2": wish(caching=2),
    "caching 3": wish(caching=3),
    "caching 5": wish(caching=5),
    "guidance 0 to 0.8, caching 2": wish(0.0, 0.8, caching=2),
}


class Album(ClosedBatchMonitor):
    """A monitor that keeps the pictures, in order."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Keep the outcome of an image."""
        self.outcomes[image_id.index] = outcome

    def pictures(self) -> Tensor:
        """Return all pictures as uint8: ``[images, 3, height, width]``."""
        made = []
        for index in sorted(self.outcomes):
            outcome = self.outcomes[index]
            if not isinstance(outcome, ImageOutput):
                raise outcome
            made.append(np.frombuffer(outcome.rgb, np.uint8).reshape(outcome.height, outcome.width, 3))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


@dataclass
class Painter:
    """An engine, and how it is asked.

    Attributes:
        engine: The engine.
        batch: Images at once.
    """

    engine: ContinuousEngine
    batch: int

    @classmethod
    def of(cls, folder: Path, batch: int) -> Painter:
        """Load a pipeline as the worker does, with nothing compiled."""
        load: Any = DiffusionPipeline.from_pretrained
        pipeline = load(str(folder), dtype=torch.float16 if CUDA else torch.float32, local_files_only=True)
        pipeline.to("cuda" if CUDA else "cpu")
        prepare(pipeline)
        family = family_of(pipeline)
        if isinstance(family, Unsupported):
            raise TypeError(f"this model runs by its own call, which knows no acceleration: {family.reason}")
        device = torch.cuda.get_device_name() if CUDA else "cpu"
        info = EngineInfo(NAME, type(pipeline).__name__, device, str(pipeline.dtype).removeprefix("torch."), "", {})
        engine = ContinuousEngine(pipeline, info, family, sizes_up_to(batch, prepared=CUDA))
        engine.warm_up()
        return cls(engine, batch)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], acceleration: Acceleration | None) -> Album:
        """Make images, batch by batch."""
        sampling = SamplingParameters(steps=STEPS, guidance=GUIDANCE, acceleration=acceleration)
        tasks = [
            ImageRequest(ImageId("", 1, index), prompt, None, seed, sampling)
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        album = Album()
        for first in range(0, len(tasks), self.batch):
            self.engine.run(tuple(tasks[first : first + self.batch]), album)
        return album

    def timed(
        self, prompts: Sequence[str], seeds: Sequence[int], acceleration: Acceleration | None
    ) -> tuple[Album, float]:
        """Make images, and return the seconds that each took, decoding included; on a CPU of one processor."""
        if CUDA:
            # Graphs are captured at first use.
            self.paint(prompts[: self.batch], seeds[: self.batch], acceleration)
            torch.cuda.synchronize()
        # Who else uses the machine's processors then matters less.
        clock = time.perf_counter if CUDA else time.process_time
        began = clock()
        album = self.paint(prompts, seeds, acceleration)
        return album, (clock() - began) / len(prompts)


def scenes_of(count: int) -> tuple[list[Scene], list[Scene]]:
    """Draw scenes of held-out combinations: of one subject, and of two in each relation alike."""
    sprites: Any = None  # nothing is composed
    sampler = Sampler(sprites, Random(7))  # noqa: S311 - scenes, no secrets
    single = unseen_scenes(sampler, count // 2, lambda scene: len(scene.items) == 1)
    for scene in single:
        scene.count = 1
    kinds = len(RELATIONS) - 1
    pairs: list[Scene] = []
    for number in range(count - count // 2):
        pairs += unseen_scenes(sampler, 1, lambda scene, kind=number % kinds + 1: scene.relation == kind)  # type: ignore[misc]
    return single, pairs


class Scores:
    """Judges pictures of the same scenes again and again.

    Args:
        single: Scenes of one subject, which come first.
        pairs: Scenes of two.
    """

    def __init__(self, single: list[Scene], pairs: list[Scene]) -> None:
        self._judge: Any = judge_module().Judge(ROOT / "models" / "judge", "cuda" if CUDA else "cpu")  # type: ignore[attr-defined,unused-ignore]
        self._one = len(single)
        shown, labels = label([*single, *pairs])
        self._shown, self._labels = torch.from_numpy(shown).bool(), torch.from_numpy(labels)
        self._usual: Tensor | None = None

    def of(self, pictures: Tensor) -> Found:
        """Return shares of pictures, and their distance, in levels of 255, from the first ones that were scored."""
        answers = self._judge.answers(pictures)
        # More likely than not, for everything that the scene shows.
        seen = ((answers["subjects"].sigmoid() >= SEEN) | ~self._shown).all(1)
        background = answers["background"].argmax(1) == self._labels[:, 0]
        relation = answers["relation"].argmax(1) == self._labels[:, 2]
        self._usual = pictures if self._usual is None else self._usual
        return {
            "subject": _share(seen[: self._one]),
            "both subjects": _share(seen[self._one :]),
            "relation": _share(relation[self._one :]),
            "background": _share(background),
            "levels": round(float((pictures.float() - self._usual.float()).abs().mean()), 2),
        }


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


def measure(count: int, batch: int, timed: Path | None, out: Path) -> Found:
    """Measure all, and write what is known after each part."""
    painter = Painter.of(MODEL, batch)
    single, pairs = scenes_of(count)
    prompts, seeds = [plain_prompt(scene) for scene in [*single, *pairs]], range(1000, 1000 + count)
    scores = Scores(single, pairs)
    found: Found = {
        "device": painter.engine.info.device,
        "dtype": painter.engine.info.torch_dtype,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        "threads": torch.get_num_threads(),
        "batch": batch,
        "prompts": {"one subject": len(single), "two subjects": len(pairs)},
        "embedded": {},
    }
    painter.paint(prompts[:1], seeds[:1], None)  # the first call of all loads and chooses kernels
    for name, acceleration in COMPARED.items():
        album, seconds = painter.timed(prompts, seeds, acceleration)
        found["embedded"][name] = scores.of(album.pictures()) | {"seconds": round(seconds, 5)}
        _write(out, found)
    if timed is not None:
        found["timed"] = {}
        painter = Painter.of(timed, batch)
        for name, acceleration in COMPARED.items():
            found["timed"][name] = round(painter.timed(prompts[: 2 * batch], seeds[: 2 * batch], acceleration)[1], 5)
            _write(out, found)
    return found


def _write(out: Path, found: Found) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(table(found), encoding="utf-8")


def table(found: Found) -> str:
    """Return the results as a Markdown table."""
    timed = found.get("timed", {})
    heads = ["acceleration", "subject", "both subjects", "relation", "background", "levels apart", "s/image"]
    heads += ["larger model: s/image"] if timed else []
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name, scores in found["embedded"].items():
        shares = [f"{100 * scores[what]:.1f} %" for what in ("subject", "both subjects", "relation", "background")]
        cells = [name, *shares, f"{scores['levels']:.1f}", f"{scores['seconds']:.3f}"]
        if name in timed:
            cells.append(f"{timed[name]:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    prompts = found["prompts"]
    about = [
        f"{prompts['one subject']} prompts of one subject and {prompts['two subjects']} of two",
        f"{STEPS} steps, guidance {GUIDANCE}, batches of {found['batch']}",
        *([f"processor seconds of {found['threads']} threads"] if found["device"] == "cpu" else []),
        f"{found['device']}, {found['dtype']}, nothing compiled",
        *(f"{name} {version}" for name, version in found["versions"].items()),
    ]
    return "\n".join([*lines, "", f"<sub>{', '.join(about)}</sub>", ""])


def publish(text: str) -> None:
    """Put the table into its place in ``docs/performance.md``."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:begin]}\n{text}{page[end:]}", encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure what speed for quality costs, on the embedded model.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "acceleration", help="folder for results")
    parser.add_argument("--count", type=int, default=64, help="prompts; half with one subject, half with two")
    parser.add_argument("--batch", type=int, default=16 if CUDA else 4, help="images at once")
    parser.add_argument("--timed", type=Path, help="another model's folder, of which only the speed is measured")
    parser.add_argument("--read", type=Path, help="measure nothing; take the results of this file")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    given = parser.parse_args()
    if given.count < 2:
        parser.error("--count: at least 2, one prompt of each kind")
    if given.read is None:
        found = measure(given.count, given.batch, given.timed, given.out)
    else:
        found = json.loads(given.read.read_text(encoding="utf-8"))
    text = table(found)
    sys.stdout.write(text)
    if given.docs:
        publish(text)


if __name__ == "__main__":
    main()
