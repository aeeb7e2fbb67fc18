# ruff: noqa: S311 - scenes, no secrets
"""The flow-matching model's training: its canvases, its forward pass, and what its guidance comes to."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from models.training import settings, vae
from models.training.canvas import spread
from models.training.compose import Composer, pack
from models.training.flow import FlowModel, times
from models.training.flow_data import Tokenizer, packed
from models.training.flow_distil import strength
from models.training.sampler import Sampler
from models.training.scenes import RELATIONS, Scene
from models.training.subjects import by_name

from unit.embedded_model.plain_sprites import SPRITES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> settings.Settings:
    read = settings.read(ROOT / "models/training/config.toml", tmp_path_factory.mktemp("work"))
    tiny = replace(read.flow, heads=1, head=16, rope=[4, 6, 6], single=1, text_layers=1, pooled_layers=1, length=16)
    return replace(read, flow=tiny)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(ROOT / "models/kubediffusion-emoji", 16)


def riding() -> Scene:
    table = by_name()
    scene = Scene(0, 0.7, [table["astronaut"], table["horse"]], RELATIONS.index("riding"))
    Sampler(SPRITES, random.Random(3)).place(scene)
    return scene


@pytest.mark.parametrize(("width", "height"), [(5 / 3, 1.0), (1.0, 5 / 3)])
def test_a_rider_stays_on_its_mount_on_a_wider_or_higher_canvas(width: float, height: float) -> None:
    before, scene = riding(), riding()
    spread(scene, SPRITES, width, height, random.Random(1))
    moves = [(b.x - a.x, b.y - a.y) for a, b in zip(before.layers[-2:], scene.layers[-2:], strict=True)]
    assert moves[0] == pytest.approx(moves[1])
    for a, b in zip(before.layers[-2:], scene.layers[-2:], strict=True):
        assert a.size == b.size
        assert b.box[0] > -0.1
        assert b.box[2] < width + 0.1
        assert b.box[3] < height + 0.05


def test_a_square_stays_as_it_is() -> None:
    scene = riding()
    spread(scene, SPRITES, 1.0, 1.0, random.Random(1))
    assert scene.layers == riding().layers


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 48)])
def test_scenes_that_are_no_squares_are_composed(width: int, height: int) -> None:
    scene = riding()
    spread(scene, SPRITES, width / 32, height / 32, random.Random(1))
    layers, places = pack([scene])
    composer = Composer(SPRITES, "cpu", 32, width, height)
    image = composer(torch.from_numpy(layers), torch.from_numpy(places), torch.Generator().manual_seed(1))
    assert image.shape == (1, 3, height, width)
    assert image.float().std() > 1


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    latents = torch.randn(2, 16, 4, 6)
    assert torch.equal(packed(latents), FluxPipeline._pack_latents(latents, 2, 16, 4, 6))  # noqa: SLF001


def test_the_forward_pass_is_the_transformers_own(config: settings.Settings, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = FlowModel(config, tokenizer).eval()
    for p in model.transformer.parameters():  # some begin at zero
        torch.nn.init.normal_(p, std=0.2)
    ids = torch.from_numpy(tokenizer(["a cat in the snow", "two dogs"]))
    x, t, g = torch.randn(2, 6, 64), torch.tensor([0.25, 0.5]), torch.tensor([1.0, 4.0])
    with torch.no_grad():
        words = model.words(ids, 32)
        ours = model(x, t, g, words, (2, 3))
        grid = FluxPipeline._prepare_latent_image_ids(1, 2, 3, torch.device("cpu"), torch.float32)  # noqa: SLF001
        theirs = model.transformer(
            hidden_states=x,
            timestep=t,
            guidance=g,
            pooled_projections=words[1],
            encoder_hidden_states=words[0],
            txt_ids=torch.zeros(32, 3),
            img_ids=grid,
        ).sample
    assert words[0].shape == (2, 32, config.flow.text_width)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_new_model_predicts_nothing_at_all(config: settings.Settings, tokenizer: Tokenizer) -> None:
    model = FlowModel(config, tokenizer)
    words = model.words(torch.from_numpy(tokenizer(["a cat"])), 16)
    assert not model(torch.randn(1, 4, 64), torch.tensor([0.5]), torch.tensor([1.0]), words, (2, 2)).any()


def test_shares_of_noise_cover_all_and_favour_the_middle() -> None:
    t = times(4096, 0.0, 1.0, torch.device("cpu"))
    assert 0 <= t.min() < 0.01
    assert 0.99 < t.max() <= 1
    assert t.mean() == pytest.approx(0.5, abs=0.02)
    assert ((t > 0.3) & (t < 0.7)).float().mean() > 0.5


def test_guidance_comes_to_one_at_one_and_to_ever_less_above(config: settings.Settings) -> None:
    k = strength(config.distil, torch.tensor([1.0, 3.5, 7.5, 12.0, 100.0]))
    assert k[0] == 1
    assert (k.diff() > 0).all()
    assert (k.diff()[1:] < k.diff()[:-1]).all()
    assert k[-1] <= config.distil.strongest


def test_a_widened_autoencoder_begins_with_what_the_old_one_knew(config: settings.Settings) -> None:
    torch.manual_seed(0)
    shape = replace(config.vae, channels=[8, 8], latent_channels=3)
    old = vae.new_vae(replace(config, vae=shape)).eval()
    new = vae.widen(vae.new_vae(replace(config, vae=replace(shape, latent_channels=5))), old).eval()
    image = torch.randn(1, 3, 8, 8)
    before, after = old.encode(image).latent_dist, new.encode(image).latent_dist
    assert torch.allclose(before.mean, after.mean[:, :3], atol=1e-5)
    assert torch.allclose(before.logvar, after.logvar[:, :3], atol=1e-5)
