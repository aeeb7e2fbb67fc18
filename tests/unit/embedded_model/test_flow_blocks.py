"""The transformer's blocks as they are trained: alike with diffusers', compiled or not, and with adapters."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from models.training import flow_blocks, flow_lora, flow_trial, settings
from models.training.flow import FlowModel, text_length
from models.training.flow_data import Tokenizer
from models.training.loop import Clock, decayed
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> settings.Settings:
    read = settings.read(ROOT / "models/training/config.toml", tmp_path_factory.mktemp("work"))
    tiny = replace(
        read.flow,
        heads=2,
        head=16,
        rope=[4, 6, 6],
        single=2,
        text_layers=1,
        pooled_layers=1,
        length=8,
        sizes=[[64, 64], [80, 48], [48, 80]],
    )
    return replace(read, flow=tiny, lora=replace(read.lora, rank=2, steps=3, batch=4))


@pytest.fixture(scope="module")
def tokenizer(config: settings.Settings) -> Tokenizer:
    return Tokenizer(ROOT / "models/kubediffusion-emoji", config.flow.length)


def model(config: settings.Settings, tokenizer: Tokenizer) -> FlowModel:
    torch.manual_seed(0)
    made = FlowModel(config, tokenizer)
    for p in made.transformer.parameters():  # some begin at zero
        torch.nn.init.normal_(p, std=0.2)
    return made


def test_blocks_have_the_outputs_and_gradients_of_diffusers_own(
    config: settings.Settings, tokenizer: Tokenizer
) -> None:
    net: Any = model(config, tokenizer).transformer
    image, text, condition = torch.randn(2, 6, 32), torch.randn(2, 4, 32), torch.randn(2, 32)
    rope = net.pos_embed(torch.arange(30.0).view(10, 3))
    given = {"hidden_states": image, "encoder_hidden_states": text, "temb": condition, "image_rotary_emb": rope}
    gate = torch.nn.functional.silu(condition)

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        net.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    block = net.transformer_blocks[0]
    theirs_text, theirs = block(**given)
    ours, ours_text = flow_blocks.double(image, text, gate, *rope, *flow_blocks.double_weights(block))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(ours_text, theirs_text, atol=1e-4)
    wanted = gradients(theirs.square().sum() + theirs_text.square().sum())
    assert torch.allclose(gradients(ours.square().sum() + ours_text.square().sum()), wanted, rtol=1e-3, atol=1e-2)

    block = net.single_transformer_blocks[0]
    theirs = torch.cat(block(**given), 1)
    ours = flow_blocks.single(torch.cat([text, image], 1), gate, *rope, *flow_blocks.single_weights(block))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(gradients(ours.square().sum()), gradients(theirs.square().sum()), rtol=1e-3, atol=1e-2)


def test_squares_and_other_sizes_have_as_many_tokens_together(config: settings.Settings) -> None:
    tokens = [width * height // 256 for width, height in config.flow.sizes]
    assert len({n + text_length(config, n) for n in tokens}) == 1
    assert text_length(config, tokens[0]) == config.flow.length
    assert text_length(config, 10_000) == config.flow.length


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it itself
def test_a_trial_compiles_all_in_whole_graphs_and_says_what_is_faster(
    config: settings.Settings, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def traced(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return compile_(function, backend="eager", **options)  # tracing alone: no machine code

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    trial = flow_trial.Trial(config, tokenizer, "cpu", 2)
    assert not flow_trial.passed(config, 1)
    flow_trial.run(trial, 0)
    assert compiled == [flow_blocks.double, flow_blocks.single]
    assert '"alike": 1.0' in flow_trial.result_path(config, 0).read_text()
    assert not flow_trial.passed(config, 2)


def share_at_start(clock: Clock, start: int) -> float:
    step, share = next(iter(clock.run(start)))
    assert step == start
    return share


def test_a_clock_ends_at_its_time_and_counts_what_was_spent() -> None:
    ends = time.time() + 0.4
    clock = Clock(10**9, ends)
    for _ in clock.run(0):
        assert time.time() < ends + 10
    assert time.time() >= ends
    again = Clock(10**9, time.time() + 0.4)
    again.load_state_dict({"spent": 0.4})
    assert share_at_start(again, 7) == pytest.approx(0.5, abs=0.15)
    assert clock.state_dict()["spent"] >= 0.4
    assert share_at_start(Clock(10, time.time() + 10, over=0.75), 0) == pytest.approx(0.75, abs=0.05)
    assert [step for step, _ in Clock(10).run(8)] == [8, 9]


def test_the_rate_warms_up_by_steps_and_decays_by_what_is_over() -> None:
    assert decayed(0.0, 0, warmup=10) == pytest.approx(0.1)
    assert decayed(0.0, 50, warmup=10) == 1
    assert decayed(0.5, 50, warmup=10) == pytest.approx(0.505)
    assert decayed(1.0, 50, warmup=10) == pytest.approx(0.01)


def test_an_adapter_is_nothing_at_first_and_is_written_for_diffusers(
    config: settings.Settings, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base = model(config, tokenizer)
    latents, ids = torch.randn(6, 16, 64), torch.from_numpy(tokenizer(["a cat"] * 6))
    lesson = flow_lora.Adapting(config, base)
    words = base.words(ids[:2], 8)
    given = (latents[:2], torch.tensor([0.2, 0.8]), torch.tensor([1.0, 3.0]), words, (4, 4))
    assert torch.equal(lesson.model(*given), base(*given))
    flow_lora.train(config, base, latents, ids, tmp_path / "one.safetensors")
    weights = load_file(tmp_path / "one.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    layers = dict(base.transformer.named_modules())
    for name, weight in weights.items():
        layer = layers[name.removeprefix("transformer.").rsplit(".", 2)[0]]
        assert weight.shape == ((2, layer.in_features) if "lora_A" in name else (layer.out_features, 2))


def test_an_adapter_does_in_diffusers_what_it_did_in_training(
    config: settings.Settings, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base = model(config, tokenizer)
    lesson = flow_lora.Adapting(config, base)
    for part in lesson.parts.values():
        torch.nn.init.normal_(part.up, std=0.2)
        for weight in part.parameters():
            weight.data = weight.data.half().float()  # as it is written
    flow_lora.save(lesson.parts, tmp_path / "one.safetensors")
    x, t, g = torch.randn(1, 16, 64), torch.tensor([0.5]), torch.tensor([3.0])
    words = base.words(torch.from_numpy(tokenizer(["a cat"])), 8)
    with torch.no_grad():
        wanted, before = lesson.model(x, t, g, words, (4, 4)), base(x, t, g, words, (4, 4))
        base.transformer.load_lora_adapter(load_file(tmp_path / "one.safetensors"), prefix="transformer")
        made = base.transformer(
            hidden_states=x,
            timestep=t,
            guidance=g,
            pooled_projections=words[1],
            encoder_hidden_states=words[0],
            txt_ids=torch.zeros(8, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, torch.device("cpu"), torch.float32),  # noqa: SLF001
        ).sample
    assert torch.allclose(made, wanted, atol=1e-4)
    assert not torch.allclose(made, before, atol=1e-2)
