"""The committed configuration, typed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DataSettings:
    """What the scenes are made of; see config.toml."""

    cache: str
    size: int
    pool: int
    scenes: int
    captions: int


@dataclass(frozen=True)
class TokenizerSettings:
    """The size of the vocabulary."""

    vocabulary: int


@dataclass(frozen=True)
class VaeSettings:
    """The autoencoder and its training."""

    channels: list[int]
    latent_channels: int
    batch: int
    steps: int
    rate: float
    kl: float
    adversarial: float
    adversarial_from: float
    equivariance: float


@dataclass(frozen=True)
class JudgeSettings:
    """The judge's training."""

    scenes: int
    batch: int
    steps: int
    rate: float


@dataclass(frozen=True)
class DiffusionSettings:
    """The text encoder, the UNet and their training."""

    channels: list[int]
    layers: list[int]
    heads: int
    text_width: int
    text_layers: int
    text_inner: int
    batch: int
    steps: int
    rate: float
    ema: float
    empty: float
    beta_start: float
    beta_end: float


@dataclass(frozen=True)
class GuidanceSettings:
    """The calibration of the guidance scale and of negative prompts."""

    scenes: int
    pairs: int
    batch: int
    steps: int
    rate: float
    ema: float
    factor: float
    negatives: float
    blend: float


@dataclass(frozen=True)
class FlowSettings:
    """The flow-matching model: its text encoders, its transformer and their training."""

    text_width: int
    text_layers: int
    text_inner: int
    pooled_width: int
    pooled_layers: int
    pooled_inner: int
    heads: int
    head: int
    rope: list[int]
    double: int
    single: int
    length: int
    full_length: int
    full_from: float
    full_every: int
    scenes: int
    others: int
    sizes: list[list[int]]
    captions: int
    batch: int
    steps: int
    rate: float
    ema: float
    empty: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class DistilSettings:
    """The embedded guidance and the negative prompts of the flow-matching model."""

    pairs: int
    batch: int
    steps: int
    rate: float
    ema: float
    highest: float
    strongest: float
    bend: float
    negatives: float
    true_cfg: float


@dataclass(frozen=True)
class LoraSettings:
    """The adapters of the flow-matching model, and the judge that tells them apart."""

    rank: int
    scenes: int
    batch: int
    steps: int
    rate: float
    ema: float
    highest: float
    weights: dict[str, float]
    judged: int
    judge_batch: int
    judge_steps: int
    judge_rate: float


@dataclass(frozen=True)
class FlowEvaluateSettings:
    """How the scores of the flow-matching model are taken."""

    steps: int
    guidance: float
    true_cfg: float


@dataclass(frozen=True)
class EvaluateSettings:
    """How the scores are taken."""

    steps: int
    guidance: float
    subjects: int
    relations: int
    counts: int
    negatives: int


@dataclass(frozen=True)
class Settings:
    """All of config.toml, and where a run keeps its checkpoints."""

    seed: int
    data: DataSettings
    tokenizer: TokenizerSettings
    vae: VaeSettings
    judge: JudgeSettings
    diffusion: DiffusionSettings
    guidance: GuidanceSettings
    evaluate: EvaluateSettings
    flow_vae: VaeSettings
    flow: FlowSettings
    distil: DistilSettings
    lora: LoraSettings
    flow_evaluate: FlowEvaluateSettings
    work: Path

    @property
    def cache(self) -> Path:
        """Where downloads are kept."""
        path = Path(self.data.cache)
        return path if path.is_absolute() else ROOT / path


def read(path: Path, work: Path) -> Settings:
    """Read a configuration.

    Args:
        path: The TOML file.
        work: Folder for checkpoints.
    """
    raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    return Settings(
        raw["seed"],
        DataSettings(**raw["data"]),
        TokenizerSettings(**raw["tokenizer"]),
        VaeSettings(**raw["vae"]),
        JudgeSettings(**raw["judge"]),
        DiffusionSettings(**raw["diffusion"]),
        GuidanceSettings(**raw["guidance"]),
        EvaluateSettings(**raw["evaluate"]),
        VaeSettings(**raw["flow_vae"]),
        FlowSettings(**raw["flow"]),
        DistilSettings(**raw["distil"]),
        LoraSettings(**raw["lora"]),
        FlowEvaluateSettings(**raw["flow_evaluate"]),
        work,
    )
