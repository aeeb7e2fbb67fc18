"""Trains, scores and writes the flow-matching model: `python -m models.training.flow_train`.

Stages: draw, vae, flow, distil, export, evaluate. Each leaves a checkpoint in the work folder and is skipped,
or resumed, when that is there. Several GPUs: `torchrun --nproc-per-node 2 -m models.training.flow_train`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from . import data, dataset, export, flow, flow_data, flow_distil, flow_edits, flow_evaluate, flow_trial, vae
from .compose import Composer
from .evaluate import report
from .loop import rank_and_world
from .settings import ROOT, Settings, read

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Sprites

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
STAGES = ("draw", "vae", "flow", "distil", "export", "evaluate")


class Run:
    """One training run.

    Args:
        settings: The configuration.
        out: Where the pipeline folder is written.
        judge: Where the judge is.
        device: Where to train.
        initial: A pipeline folder whose autoencoder to begin with and whose tokenizer to keep.
        until: Time (of `time.time`) at which to leave a checkpoint and stop.
        vae_seconds: Time to fill with the autoencoder's training instead of the configured steps.
        flow_steps: Steps of the flow stage instead of the configured ones.
        flow_ends: Time (of `time.time`) at which the flow stage is to have ended, instead of a number of steps.
        distil_ends: The same of the distil stage.
        flow_share: Share of the flow stage that is over already where it has no checkpoint.
        further: A pipeline folder of this model: its autoencoder stays, the rest is trained further.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        judge: Path,
        device: str,
        initial: Path,
        until: float | None = None,
        vae_seconds: float | None = None,
        flow_steps: int | None = None,
        flow_ends: float | None = None,
        distil_ends: float | None = None,
        flow_share: float = 0.0,
        further: Path | None = None,
    ) -> None:
        self.settings, self.out, self.judge = settings, out, judge
        self.device, self.initial = device, initial
        self.until, self.vae_seconds = until, vae_seconds
        self.flow_steps, self.flow_share = flow_steps, flow_share
        self.flow_ends, self.distil_ends = flow_ends, distil_ends
        self.further = further
        self.rank, self.world = rank_and_world()

    @cached_property
    def sprites(self) -> Sprites:
        """The pictures, decoded once and kept in the work folder."""
        return data.kept(self.settings.work / "sprites.pickle", self.settings.cache)

    @cached_property
    def tokenizer(self) -> flow_data.Tokenizer:
        """The first model's tokenizer, which both text encoders use."""
        return flow_data.Tokenizer(self.initial, self.settings.flow.length)

    def draw(self) -> None:
        """Draw the scenes to files; needs no GPU."""
        if not (self.settings.work / "drawn" / "all").exists():
            flow_data.draw_all(self.settings, self.sprites, self.initial)

    @property
    def vae_folder(self) -> Path:
        """Where the autoencoder is, or will be."""
        return (self.further or self.settings.work) / "vae"

    @cached_property
    def vae(self) -> Any:
        """The trained autoencoder."""
        folder = self.vae_folder
        if not (folder / "config.json").exists():
            composer = Composer(self.sprites, self.device, self.settings.data.size)
            number, seed = self.settings.data.pool, self.settings.seed + 70
            pool = dataset.compose_pool(composer, self.sprites, number, seed + self.rank)
            held = dataset.compose_pool(composer, self.sprites, min(500, number), seed - 1, unseen=True)
            log.info("composed")
            settings = replace(self.settings, vae=self.settings.flow_vae)
            seconds, initial = self.vae_seconds, self.initial / "vae"
            trained = vae.train(settings, pool.images, held.images, seconds, initial)
            if self.rank == 0:
                trained.save_pretrained(folder)
            self.wait()
        return vae.lean(vae.load(folder).to(self.device))

    @cached_property
    def encode(self) -> Any:
        """The autoencoder as a function from images to latents."""
        return partial(vae.encode, self.vae)

    def _kept(self, name: str, make: Any) -> Any:
        """Return what a file of this process's holds, or make it and keep it."""
        path = self.settings.work / f"{name}-{self.rank}-of-{self.world}.pt"
        if path.exists():
            return torch.load(path, map_location=self.device, weights_only=True)
        began = time.monotonic()
        made = make()
        torch.save(made, path)
        log.info("%s encoded in %.0f s", name, time.monotonic() - began)
        return made

    @cached_property
    def sizes(self) -> list[flow_data.Sizes]:
        """This process's encoded scenes."""
        out = []
        for width, height in self.settings.flow.sizes:

            def make(size: tuple[int, int] = (width, height)) -> tuple[Tensor, Tensor]:
                sizes = flow_data.encode_size(
                    self.settings, self.sprites, self.device, size, self.encode, self.rank, self.world
                )
                return sizes.latents, sizes.ids

            latents, ids = self._kept(f"latents-{width}x{height}", make)
            out.append(flow_data.Sizes(latents, ids, height // 16, width // 16))
        return out

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """This process's encoded pairs."""
        made: tuple[Tensor, Tensor, Tensor] = self._kept(
            "pairs",
            lambda: flow_data.encode_pairs(
                self.settings, self.sprites, self.device, self.encode, self.rank, self.world
            ),
        )
        return made

    def _save(self, model: Any, name: str) -> None:
        if self.rank == 0:
            torch.save(model.state_dict(), self.settings.work / name)

    def _trained(self, name: str) -> flow.FlowModel | None:
        path = self.settings.work / name
        if not path.exists():
            return None
        model = flow.FlowModel(self.settings, self.tokenizer).to(self.device)
        model.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        return model

    @property
    def fast(self) -> bool:
        """Whether to compile the blocks: where the trial stage found that to pay."""
        return flow_trial.passed(self.settings, self.world)

    def trial(self) -> None:
        """Find out whether compiled blocks are right and faster on this GPU; needs no scenes."""
        rank = torch.device(self.device).index or 0
        batch = self.settings.flow.batch // max(torch.cuda.device_count(), 1)
        flow_trial.run(flow_trial.Trial(self.settings, self.tokenizer, self.device, batch, self.further), rank)

    def train_flow(self) -> bool:
        """Train the model without guidance; say whether it is there."""
        if self._trained("flow-average.pt") is None:
            model = flow.train(
                self.settings,
                self.sizes,
                self.tokenizer,
                self.until,
                self.flow_steps,
                self.flow_ends,
                self.further,
                self.flow_share,
                fast=self.fast,
            )
            if model is None:
                return False
            self._save(model, "flow-average.pt")
        return True

    def distil(self) -> bool:
        """Embed guidance and teach negative prompts; say whether it is there."""
        if self._trained("distil-average.pt") is None:
            teacher = self._trained("flow-average.pt")
            if teacher is None:
                return False
            model = flow_distil.distil(
                self.settings,
                teacher,
                self.sizes,
                self.pairs,
                self.tokenizer,
                self.until,
                self.distil_ends,
                fast=self.fast,
            )
            if model is None:
                return False
            self._save(model, "distil-average.pt")
        return True

    def export(self) -> None:
        """Write the folder, of the last stage that is done or of the running average of the first."""
        if self.rank > 0:
            return
        model = self._trained("distil-average.pt") or self._trained("flow-average.pt")
        if model is None:
            model = flow.FlowModel(self.settings, self.tokenizer)
            saved = torch.load(self.settings.work / "flow.pt", map_location="cpu", weights_only=True)
            model.load_state_dict(saved["average"])
        flow_evaluate.export(vae.load(self.vae_folder), model, self.tokenizer, self.out)

    def scores(self) -> flow_evaluate.FlowScores:
        """Load the folder to be scored."""
        torch.backends.cudnn.benchmark = False  # many shapes, few calls each
        return flow_evaluate.FlowScores(self.settings, self.sprites, self.out, self.judge, self.device)

    def evaluate(self) -> None:
        """Score the folder and draw its sheets."""
        if self.rank > 0:
            return
        scores = self.scores()
        export.sheets(scores.paint, self.out)
        table = scores.everything()
        (self.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        log.info("scores\n%s", report(table))

    def edits(self) -> None:
        """Score edits and draw their sheet; the scores are a file of their own."""
        torch.backends.cudnn.benchmark = False
        scores = flow_edits.Edits(self.settings, self.sprites, self.out, self.judge, self.device)
        table = scores.edits(self.out)
        (self.out / "edits.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        log.info("edits %s", json.dumps(table, indent=1))

    def run(self, stages: list[str]) -> None:  # noqa: C901 - a list of names
        """Run stages in their order."""
        for stage in stages:
            match stage:
                case "draw":
                    if self.rank == 0:
                        self.draw()
                    self.wait()
                case "trial":
                    self.trial()
                case "encode":
                    log.info("%s scenes and %d pairs here", [len(s.latents) for s in self.sizes], len(self.pairs[0]))
                    self.wait()
                case "vae":
                    log.info("the autoencoder has %d latent channels", self.vae.config.latent_channels)
                    self.wait()
                case "flow" | "distil":
                    if not (self.train_flow() if stage == "flow" else self.distil()):
                        log.info("%s stops before its end; run it again to go on", stage)
                        self.export()
                        return
                    self.wait()
                case "export":
                    self.export()
                case "short":
                    table = json.loads((self.out / "scores.json").read_text(encoding="utf-8"))
                    table["short texts"] = self.scores().short()
                    (self.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
                case "edits":
                    self.edits()
                case "teacher":
                    log.info("teacher at guidance of %s", self.scores().teacher())
                case "glance":
                    log.info("glance %s", json.dumps(self.scores().glance(), indent=1))
                case _:
                    self.evaluate()

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "model" / "flow", help="checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "kubediffusion-emoji-flow")
    parser.add_argument("--judge", type=Path, default=ROOT / "models" / "judge")
    parser.add_argument("--initial", type=Path, default=ROOT / "models" / "kubediffusion-emoji")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--stages",
        default=",".join(STAGES),
        help="besides the stages of a run: trial, whether to compile, with --device cuda:K for each GPU; encode, the "
        "scenes; edits, the scores of edits; short, the scores "
        "with few text tokens; glance, a few scores; teacher, those of the model without guidance",
    )
    parser.add_argument("--seconds", type=float, help="stop training after so many, with a checkpoint")
    parser.add_argument("--vae-seconds", type=float, help="fill a time with the autoencoder's training")
    parser.add_argument("--flow-steps", type=int, help="steps of the flow stage instead of the configured ones")
    parser.add_argument("--flow-ends", type=float, help="the flow stage ends then, in seconds since 1970")
    parser.add_argument("--flow-share", type=float, default=0.0, help="share of the flow stage that is over already")
    parser.add_argument("--distil-ends", type=float, help="the distil stage ends then, alike")
    parser.add_argument("--further", type=Path, help="a folder of this model to train further; its autoencoder stays")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if "LOCAL_RANK" in os.environ:
        if args.device == "cpu":
            dist.init_process_group("gloo")
        else:
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(args.device)
            dist.init_process_group("nccl", device_id=torch.device(args.device))
        logging.getLogger().setLevel(logging.INFO if dist.get_rank() == 0 else logging.WARNING)
    elif args.device.startswith("cuda:"):
        torch.cuda.set_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # compiled blocks with it crashed once
    run = Run(
        read(args.config, args.work),
        args.out,
        args.judge,
        args.device,
        args.initial,
        until=None if args.seconds is None else time.time() + args.seconds,
        vae_seconds=args.vae_seconds,
        flow_steps=args.flow_steps,
        flow_ends=args.flow_ends,
        distil_ends=args.distil_ends,
        flow_share=args.flow_share,
        further=args.further,
    )
    run.run(args.stages.split(","))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
