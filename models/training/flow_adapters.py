"""Trains the adapters of the flow-matching model and the judge that tells them apart, and scores both.

`python -m models.training.flow_adapters line-drawing pixel-art hedgehog judge scores`, in one go or one by one.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from . import data, dataset, flow_lora, styles, vae
from .captions import plain_prompt
from .compose import Composer
from .evaluate import SEEN, unseen_scenes
from .export import sheet, small
from .flow import FlowModel
from .flow_data import Tokenizer, packed
from .flow_evaluate import load
from .judging import judge_module
from .sampler import Sampler
from .settings import ROOT, Settings, read
from .style_judging import train as train_judge

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
ADAPTERS = ("line-drawing", "pixel-art", data.GUEST)


class Adapters:
    """The adapters of one folder.

    Args:
        settings: The configuration.
        model: The pipeline folder.
        out: Where adapters are.
        judge: Where the judges are.
        device: Where to work.
        ends: Time (of `time.time`) at which an adapter's training is to have ended.
    """

    def __init__(
        self, settings: Settings, model: Path, out: Path, judge: Path, device: str, ends: float | None = None
    ) -> None:
        self.settings, self.model, self.out, self.judge = settings, model, out, judge
        self.device, self.ends = device, ends
        kept = settings.work / "sprites.pickle"
        self.sprites = data.kept(kept, settings.cache)
        self.tokenizer = Tokenizer(model, settings.flow.length)

    def train(self, name: str) -> None:
        """Train one adapter and write it."""
        settings = self.settings
        composer = Composer(self.sprites, self.device, settings.data.size)
        autoencoder = vae.lean(vae.load(self.model / "vae").to(self.device))
        generator = torch.Generator(self.device).manual_seed(settings.seed + 81)
        latents: list[Tensor] = []
        texts: list[str] = []
        share = styles.GUESTS if name == data.GUEST else 0.0
        for part in styles.draw_guests(self.sprites, settings.lora.scenes, settings.seed + 82, share):
            for piece in dataset.pieces(composer, part.layers, part.places, generator):
                images = styles.styled(piece, name) if name in styles.STYLES else piece
                latents += [packed(vae.encode(autoencoder, some)).half() for some in torch.split(images, 250)]
            texts += part.captions
        log.info("%s: encoded %d scenes", name, len(texts))
        base = FlowModel(settings, self.tokenizer)
        base.begin_with(self.model)
        ids = torch.from_numpy(self.tokenizer(texts)).to(self.device)
        path = self.out / f"{name}.safetensors"
        flow_lora.train(settings, base.to(self.device), torch.cat(latents), ids, path, self.ends)

    def scores(self, adapters: tuple[str | None, ...], number: int | None = None, steps: int | None = None) -> None:
        """Draw the same held-out prompts with each adapter, the guest's with its own and with none, and write scores.

        Of each set of pictures: which share is seen as each style, and in which share the guest is seen. Scores of
        adapters that are not asked for stay as they are in `scores.json`.

        Args:
            adapters: Names; None for the folder without one.
            number: Pictures a set, instead of the configured ones.
            steps: Denoising steps, instead of the configured ones.
        """
        judge: Any = judge_module().StyleJudge(self.judge, self.device)  # type: ignore[attr-defined,unused-ignore]
        places: Any = judge_module().Judge(self.judge, self.device)  # type: ignore[attr-defined,unused-ignore]
        number = number or self.settings.lora.judged
        sampler = Sampler(self.sprites, Random(self.settings.seed + 83))  # noqa: S311 - scenes, no secrets
        scenes = unseen_scenes(sampler, number, lambda s: 0 < len(s.items) < 3)
        asked = styles.guest_prompts(number)
        prompts = {"prompts": [plain_prompt(s) for s in scenes], data.GUEST: [prompt for prompt, _ in asked]}
        path = self.out / "scores.json"
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        table["judge"] = judge.about.get("held_out", {})
        paint = load(self.model, self.device, self.settings)
        paint.length, paint.steps = self.settings.flow.length, steps or paint.steps
        if not self.device.startswith("cuda"):
            paint.batch = 4
        rows: list[Tensor] = []
        for adapter in adapters:
            if adapter is not None:
                paint.pipe.load_lora_weights(self.out, weight_name=f"{adapter}.safetensors", adapter_name="one")
            for what, texts in prompts.items():
                if what == data.GUEST and adapter not in {None, data.GUEST}:
                    continue
                images = paint(texts, range(20_000, 20_000 + number))
                seen = judge.answers(images)
                scores: dict[str, Any] = {"images": number, "steps": paint.steps}
                scores |= {s: _share(seen["style"] == k) for k, s in enumerate(styles.STYLES)}
                scores[data.GUEST] = _share(seen["guest"] >= SEEN)
                if what == data.GUEST:
                    found = places.answers(images)["background"].argmax(1)
                    wanted = torch.tensor([places.backgrounds.index(name) for _, name in asked])
                    scores["background"] = _share(found == wanted)
                table[f"{adapter or 'none'}: {what}"] = scores
                log.info("%s: %s: %s", adapter or "none", what, scores)
                rows.append(images[:8])
                path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            if adapter is not None:
                paint.pipe.unload_lora_weights()
        small(sheet(torch.cat(rows), 8)).save(self.out / "samples.png", optimize=True)


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", choices=(*ADAPTERS, "judge", "scores"))
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "model" / "flow", help="decoded pictures")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "kubediffusion-emoji-flow")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "kubediffusion-emoji-flow-adapters")
    parser.add_argument("--judge", type=Path, default=ROOT / "models" / "judge")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ends", type=float, help="training ends then, in seconds since 1970")
    parser.add_argument("--adapter", choices=ADAPTERS, help="scores of this one alone")
    parser.add_argument("--images", type=int, help="pictures of a set of the scores")
    parser.add_argument("--steps", type=int, help="steps of a picture of the scores")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if args.device.startswith("cuda:"):
        torch.cuda.set_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    adapters = Adapters(read(args.config, args.work), args.model, args.out, args.judge, args.device, args.ends)
    for what in args.what:
        match what:
            case "judge":
                train_judge(adapters.settings, adapters.sprites, adapters.judge, adapters.device)
            case "scores":
                names: tuple[str | None, ...] = (args.adapter,) if args.adapter else (None, *ADAPTERS)
                adapters.scores(names, args.images, args.steps)
            case _:
                adapters.train(what)


if __name__ == "__main__":
    main()
