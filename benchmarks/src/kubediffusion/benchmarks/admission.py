"""``python -m kubediffusion.benchmarks.admission``: the worker's rules of admission, simulated. No GPU, no waiting.

Prints what docs/adr/0015-as-many-images-as-do-the-most.md says of them, as Markdown. The rules are the worker's own;
what a step takes was measured, and jobs come at random.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kubediffusion.worker.engine.throughput import count_entering
from kubediffusion.worker.engine.waits import PATIENCE, Waits

Seconds = Mapping[int, float]
"""Seconds of a step by batch size."""

Rule = Callable[[int, int, int, Seconds], int]
"""Returns how many images enter, from how many run, wait and have waited long enough, and the seconds of a step."""

H100: Seconds = {1: 0.0064, 2: 0.0099, 4: 0.0186, 8: 0.0330, 16: 0.0641}
"""Steps of Stable Diffusion 2.1's UNet at 512x512, compiled; see docs/performance.md."""

MORE_SIZES: Seconds = {**H100, 3: 0.01425, 6: 0.0258, 12: 0.04855}
"""H100 with sizes in between, each of which takes the mean of its neighbours."""

XL: Seconds = {1: 0.0325, 2: 0.0618, 4: 0.1261}
"""Steps of Stable Diffusion XL's UNet at 1024x1024, where larger batches do only a little more."""

ONE_BY_ONE: Seconds = {size: size * H100[1] for size in H100}
"""A device on which larger batches do nothing more."""

SEEDS = range(8)
COUNT = 1500
SHORT, MIXED, FEW_LONG = (25,), (10, 25, 50), (4,) * 5 + (150,)


@dataclass(eq=False)
class Served:
    """An image in the simulation of a worker.

    Attributes:
        came: Second at which it came.
        steps: How many it needs.
        left: How many are left.
        waited: Steps of others until its own first.
        seconds: In the worker.
    """

    came: float
    steps: int
    left: int = 0
    waited: int = 0
    seconds: float = 0.0


def at_random(
    lengths: Sequence[int], share: float = 0.7, seed: int = 0, seconds: Seconds = H100, count: int = COUNT
) -> list[Served]:
    """Return images that come at random, ``share`` of what the batches that do the most can do."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    rate = share * max(size / seconds[size] for size in seconds) / statistics.mean(lengths)
    return [
        Served(came, chance.choice(lengths))
        for came in itertools.accumulate(chance.expovariate(rate) for _ in range(count))
    ]


def in_order(running: int, waiting: int, late: int, seconds: Seconds) -> int:
    """Admit as the worker does."""
    return count_entering(running, waiting, sorted(seconds), seconds, late)


def by_turns(running: int, waiting: int, _: int, seconds: Seconds) -> int:
    """Admit everybody for whom there is a slot."""
    return min(waiting, max(seconds) - running)


def reluctantly(running: int, waiting: int, late: int, seconds: Seconds) -> int:
    """Admit as the worker does, but choose a larger size only where it does a tenth more."""
    sizes = sorted(seconds)
    best = max(running + late, 1)
    for images in range(best + 1, min(running + waiting, sizes[-1]) + 1):
        size, chosen = (next(size for size in sizes if size >= count) for count in (images, best))
        if images / seconds[size] > best / seconds[chosen] * (1.1 if size > chosen else 1):
            best = images
    return best - running


def static(running: int, waiting: int, _: int, seconds: Seconds) -> int:
    """Admit nobody into a batch that runs; only images of the same length run together."""
    return 0 if running else min(waiting, max(seconds))


def simulated(
    images: Sequence[Served], rule: Rule = in_order, seconds: Seconds = H100, patience: int | None = PATIENCE
) -> Sequence[Served]:
    """Serve images.

    Args:
        images: In the order in which they come; what happened to each is written into it.
        rule: Tells how many enter before a step.
        seconds: What a step takes.
        patience: For how many times its own steps an image waits at most; None without a bound.
    """
    sizes = sorted(seconds)
    size_for = [next(size for size in sizes if size >= images) for images in range(sizes[-1] + 1)]
    now, step, waits = 0.0, 0, Waits[Served]()
    coming, waiting, running = deque(images), list[Served](), list[Served]()
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].came)
        while coming and coming[0].came <= now:
            image = coming.popleft()
            waiting.append(image)
            image.left, image.waited = image.steps, step
        could = [image for image in waiting if image.steps == waiting[0].steps] if rule is static else waiting
        late = 0
        if patience is not None:
            # The worker's patience is a constant; with a clock that runs faster, so much less of it is needed.
            noted = {image: image.steps for image in could[: sizes[-1] - len(running)]}
            late = waits.note(noted, step * PATIENCE // patience)
        entering = could[: rule(len(running), len(could), late, seconds)]
        if entering:
            waiting = [image for image in waiting if image not in entering]
        for image in entering:
            image.waited = step - image.waited
        running += entering
        now, step = now + seconds[size_for[len(running)]], step + 1
        for image in running:
            image.left, image.seconds = image.left - 1, now - image.came
        running = [image for image in running if image.left]
    return images


def spread(images: Sequence[Served]) -> tuple[float, float]:
    """Return the median and the 95th percentile of the seconds in the worker."""
    seconds = [image.seconds for image in images]
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


class Runs:
    """The same jobs with every seed, served in one way."""

    def __init__(
        self, lengths: Sequence[int], rule: Rule = in_order, seconds: Seconds = H100,
        patience: int | None = PATIENCE, share: float = 0.7,
    ) -> None:  # fmt: skip
        self._runs = [simulated(at_random(lengths, share, seed, seconds), rule, seconds, patience) for seed in SEEDS]

    def spread(self, steps: int | None = None) -> tuple[float, float]:
        """Return p50 and p95 of the images with ``steps`` steps, or of all: means over the runs."""
        spreads = [spread([image for image in run if steps in {None, image.steps}]) for run in self._runs]
        return statistics.fmean(p50 for p50, _ in spreads), statistics.fmean(p95 for _, p95 in spreads)

    def mean(self) -> float:
        """Return the mean of the seconds in the worker."""
        return statistics.fmean(image.seconds for run in self._runs for image in run)

    def longest(self, steps: int) -> int:
        """Return the most steps that an image with ``steps`` steps waited."""
        return max(image.waited for run in self._runs for image in run if image.steps == steps)


def bounds() -> Iterator[str]:
    """Write the table of the bound on waiting."""
    yield "| steps of the jobs | | no bound | twice its steps | its steps |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for title, lengths in (("25", SHORT), ("10, 25 and 50", MIXED), ("five of 4 to one of 150", FEW_LONG)):
        batches = Runs(lengths, static, patience=None).spread()
        ways = [Runs(lengths, patience=patience) for patience in (None, PATIENCE, 1)]
        yield _row(title, "p50, p95", *(_pair(way.spread()) for way in ways))
        ratios = [[ours / theirs for ours, theirs in zip(way.spread(), batches, strict=True)] for way in ways]
        yield _row("", "against static batches", *map(_pair, ratios))
        for steps in sorted({lengths[0], lengths[-1]}) if len(lengths) > 1 else ():
            name = f"those of {steps}: p50, p95, longest wait in steps"
            yield _row("", name, *(f"{_pair(way.spread(steps))}, {way.longest(steps)}" for way in ways))


def variants() -> Iterator[str]:
    """Write the table of what was left out."""
    yield "| steps of the jobs | | as it is | only where it does a tenth more | sizes 3, 6 and 12 too |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for title, lengths in (("25", SHORT), ("10, 25 and 50", MIXED)):
        ways = [Runs(lengths), Runs(lengths, reluctantly), Runs(lengths, seconds=MORE_SIZES)]
        yield _row(title, "p50, p95", *(_pair(way.spread()) for way in ways))
        batches = Runs(lengths, static, patience=None), Runs(lengths, static, MORE_SIZES, None)
        yield _row("", "static batches", _pair(batches[0].spread()), "", _pair(batches[1].spread()))
    ways = [Runs(SHORT, rule, XL, share=0.9) for rule in (in_order, reluctantly)]
    yield _row("25, XL at 90 %", "mean", *(f"{way.mean():.2f}" for way in ways), "")


def sentences() -> Iterator[str]:
    """Write the single numbers."""
    yield f"- Images' steps a second: five in eight slots {5 / H100[8]:.0f}, four in four {4 / H100[4]:.0f}."
    for patience, title in ((PATIENCE, "bounded"), (None, "without a bound")):
        *_, short = simulated([Served(0.0, 150), Served(0.0, 150), Served(0.0, 4)], patience=patience)
        seconds = short.waited * H100[2]
        yield f"- A job of four steps beside two of 150, {title}, waits for {short.waited} steps, {seconds:.2f} s."
    bounded, unbounded = (
        Runs(SHORT, seconds=ONE_BY_ONE, patience=patience, share=0.9).mean() for patience in (PATIENCE, None)
    )
    ratio = bounded / unbounded
    yield f"- Where larger batches do nothing more, at 90 %, the mean is {ratio:.2f} times as long with the bound."


def _pair(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.2f}" for number in numbers)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print everything."""
    runs = f"{len(SEEDS)} runs (seeds {SEEDS[0]} to {SEEDS[-1]}) of {COUNT:,} jobs each"
    head = f"Seconds in the worker, means of {runs}, at 70 % of what full batches do where nothing else is said:"
    sys.stdout.write("\n".join([head, "", *bounds(), "", *variants(), "", *sentences(), ""]))


if __name__ == "__main__":
    main()
