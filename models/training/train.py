"""Trains, scores and writes the embedded model: `python -m models.training.train`.

Stages: tokenizer, vae, judge, diffusion, guidance, export, evaluate. Each leaves a checkpoint in the work folder and is
skipped, or resumed, when that is there. Delete the work folder to start afresh.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import time
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import data, dataset, diffusion, evaluate, export, guidance, judging, text, vae
from .compose import Composer
from .settings import ROOT, Settings, read

if TYPE_CHECKING:
    from .data import Sprites
    from .dataset import Pool

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
SHARES = (0.0, 0.35, 0.5, 0.65, 0.8, 1.0)
"""Shares of the guidance stage's student that are scored: see `Run.weigh`."""


class Run:
    """One training run.

    Args:
        settings: The configuration.
        out: Where the pipeline folder is written.
        judge: Where the judge is written.
        device: Where to train.
        seconds: Times to fill, by stage, instead of the configured steps.
        further: A pipeline folder whose autoencoder is kept and whose text encoder and UNet are trained further.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        judge: Path,
        device: str,
        seconds: dict[str, float],
        further: Path | None = None,
    ) -> None:
        self.settings, self.further = settings, further
        self.out, self.judge, self.device, self.seconds = out, judge, device, seconds

    @cached_property
    def sprites(self) -> Sprites:
        """The pictures, decoded once and kept in the work folder."""
        path = self.settings.work / "sprites.pickle"
        if path.exists():
            return pickle.loads(path.read_bytes())  # type: ignore[no-any-return]  # noqa: S301 - our own file
        sprites = data.load(data.fetch(self.settings.cache))
        path.write_bytes(pickle.dumps(sprites))
        return sprites

    @cached_property
    def composer(self) -> Composer:
        """The composer on the training device."""
        return Composer(self.sprites, self.device, self.settings.data.size)

    @cached_property
    def pool(self) -> Pool:
        """Scenes for the VAE."""
        began = time.monotonic()
        pool = dataset.compose_pool(self.composer, self.sprites, self.settings.data.pool, self.settings.seed + 11)
        log.info("composed %d scenes in %.0f s", len(pool.images), time.monotonic() - began)
        return pool

    @cached_property
    def held(self) -> Pool:
        """Scenes of held-out combinations, for measuring."""
        number = min(4000, self.settings.data.pool)
        return dataset.compose_pool(self.composer, self.sprites, number, self.settings.seed + 12, unseen=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, trained when it is not there."""
        if self.further is not None:
            return text.pipeline_tokenizer(self.further)
        folder = self.settings.work / "tokenizer"
        if not (folder / "merges.txt").exists():
            text.train_tokenizer(self.sprites, self.settings, folder)
        return text.load_tokenizer(folder)

    @cached_property
    def vae(self) -> Any:
        """The trained autoencoder."""
        folder = (self.further or self.settings.work) / "vae"
        if (folder / "config.json").exists():
            return vae.lean(vae.load(folder).to(self.device))
        trained = vae.train(self.settings, self.pool.images, self.held.images[:500], self.seconds.get("vae"))
        trained.save_pretrained(folder)
        return trained

    def train_judge(self) -> None:
        """Train the judge unless it is there."""
        if not (self.judge / "judge.safetensors").exists():
            pool = dataset.compose_pool(
                self.composer, self.sprites, self.settings.judge.scenes, self.settings.seed + 14
            )
            judging.train(self.settings, pool, self.held, self.judge)

    @cached_property
    def latents(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The training set of the diffusion model."""
        shape = self.settings.data
        path = self.settings.work / "latents.pt"
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            return saved["latents"], saved["ids"]
        result = self.encode(shape.scenes, self.settings.seed + 13)
        torch.save({"latents": result[0], "ids": result[1]}, path)
        return result

    def encode(self, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents and captions of new scenes."""
        began = time.monotonic()
        result = dataset.encode_scenes(
            self.composer,
            self.sprites,
            number,
            seed,
            self.settings.data.captions,
            partial(vae.encode, self.vae),
            text.encoder_of(self.tokenizer),
        )
        z = result[0][:2000].float()
        log.info("encoded %d scenes in %.0f s; mean %.3f std %.3f", number, time.monotonic() - began, z.mean(), z.std())
        return result

    def calibrate(self, encoder: Any, unet: Any) -> Any:
        """Run the guidance stage."""
        shape, seed = self.settings.guidance, self.settings.seed
        plain = self.encode(shape.scenes, seed + 15)
        began = time.monotonic()
        pairs = dataset.encode_pairs(
            self.composer,
            self.sprites,
            shape.pairs,
            seed + 16,
            partial(vae.encode, self.vae),
            text.encoder_of(self.tokenizer),
        )
        log.info("encoded %d pairs in %.0f s", shape.pairs, time.monotonic() - began)
        return guidance.calibrate(
            self.settings, encoder, unet, plain, pairs, self.tokenizer, self.seconds.get("guidance")
        )

    def train_guidance(self, folder: Path) -> None:
        """Run the guidance stage alone, on the text encoder and the UNet of a pipeline folder.

        Args:
            folder: A pipeline that has not been through this stage: a second time would weaken the prompt again.
        """
        encoder, unet = diffusion.parts(self.settings, self.tokenizer, torch.device(self.device), folder)
        self.finish(self.vae, encoder, self.calibrate(encoder, unet), self.out)

    def weigh(self, folder: Path) -> None:
        """Score several shares of the guidance stage's student, to choose `guidance.blend` by.

        Args:
            folder: The pipeline that the stage began with.
        """
        student = torch.load(self.settings.work / "guidance.pt", map_location=self.device, weights_only=True)["average"]
        scores = evaluate.Scores(self.settings, self.sprites, folder, self.judge, self.device)
        unet = scores.paint.pipe.unet
        teacher = {name: weight.clone() for name, weight in unet.state_dict().items()}
        for share in SHARES:
            unet.load_state_dict({name: old.float().lerp(student[name], share) for name, old in teacher.items()})
            log.info("share %.2f: %s", share, scores.glance())

    def train_all(self) -> None:
        """Run every stage."""
        autoencoder = self.vae
        self.__dict__.pop("pool", None)
        self.train_judge()
        encoder, unet = diffusion.train(
            self.settings, *self.latents, self.tokenizer, self.seconds.get("diffusion"), self.further
        )
        if self.settings.guidance.steps:
            self.finish(autoencoder, encoder, unet, self.settings.work / "before", quick=True)
            encoder, unet = encoder.to(self.device, torch.float32), unet.to(self.device, torch.float32)
            autoencoder.to(self.device, torch.float32)
            self.__dict__.pop("latents", None)
            unet = self.calibrate(encoder, unet)
        self.finish(autoencoder, encoder, unet, self.out)

    def finish(self, autoencoder: Any, encoder: Any, unet: Any, folder: Path, *, quick: bool = False) -> None:
        """Write the folder, score it and draw its sheets."""
        torch.backends.cudnn.benchmark = False  # many shapes, few calls each
        export.export(self.settings, autoencoder, encoder, self.tokenizer, unet, folder)
        scores = evaluate.Scores(self.settings, self.sprites, folder, self.judge, self.device)
        export.sheets(scores.paint, folder)
        table = scores.glance() if quick else scores.everything()
        (folder / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        log.info("scores of %s\n%s", folder.name, table if quick else evaluate.report(table))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "model" / "work", help="checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "kubediffusion-emoji")
    parser.add_argument("--judge", type=Path, default=ROOT / "models" / "judge")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--only",
        choices=("all", "guidance", "shares", "evaluate"),
        default="all",
        help="guidance: run that stage on the folder that --further names; shares: score how much of it to ship; "
        "evaluate: score the folder that is there",
    )
    parser.add_argument("--further", type=Path, help="a pipeline folder to train further; its autoencoder stays")
    parser.add_argument(
        "--seconds", action="append", default=[], metavar="STAGE=N", help="fill a time (vae, diffusion, guidance)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    seconds = {name: float(value) for name, value in (pair.split("=") for pair in args.seconds)}
    run = Run(read(args.config, args.work), args.out, args.judge, args.device, seconds, args.further)
    if args.only == "evaluate":
        scores = evaluate.Scores(run.settings, run.sprites, args.out, args.judge, args.device)
        table = scores.everything()
        (args.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        log.info("scores\n%s", evaluate.report(table))
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if args.only == "all":
        run.train_all()
    elif args.further is None:
        parser.error(f"--only {args.only} needs --further, a folder that has not been through the guidance stage")
    elif args.only == "guidance":
        run.train_guidance(args.further)
    else:
        run.weigh(args.further)


if __name__ == "__main__":
    main()
