"""Tables give what diffusers' own schedulers give, and schedulers that are not linear have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from kubediffusion.resources.testing import present
from kubediffusion.worker.execution.coefficients import DEPTH, SchedulerCoefficients, advanced, read_coefficients

# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

ROOT = Path(__file__).parents[3]
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
EMBEDDED = json.loads((ROOT / "models/kubediffusion-emoji/scheduler/scheduler_config.json").read_text())
TERMINAL_ZERO = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

SCHEDULERS = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
CASES: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, STABLE_DIFFUSION | {"prediction_type": kind})
        for name in SCHEDULERS
        for kind in ("epsilon", "v_prediction", "sample")
        if (name, kind) != ("PNDMScheduler", "sample")
    ),
    *((name, EMBEDDED) for name in SCHEDULERS),
    *((name, TERMINAL_ZERO | {"prediction_type": "v_prediction"}) for name in SCHEDULERS[:2]),
    ("EulerDiscreteScheduler", STABLE_DIFFUSION | {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", STABLE_DIFFUSION | {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", STABLE_DIFFUSION | {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", STABLE_DIFFUSION | {"solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    ("HeunDiscreteScheduler", STABLE_DIFFUSION),
    ("LMSDiscreteScheduler", STABLE_DIFFUSION),
]


def scheduler(name: str, config: dict[str, Any]) -> Any:
    return getattr(diffusers, name).from_config(config)


def model(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Something that is not linear, and depends on all that a UNet depends on."""
    return torch.tanh(latents) + torch.sin(3 * latents + timestep / 300)


def by_diffusers(own: Any, steps: int, noise: torch.Tensor) -> torch.Tensor:
    own.set_timesteps(steps)
    latents = noise * own.init_noise_sigma
    for timestep in own.timesteps:
        output = model(own.scale_model_input(latents, timestep), timestep)
        latents = own.step(output, timestep, latents, return_dict=False)[0]
    return latents


def by_table(table: SchedulerCoefficients, noise: torch.Tensor) -> torch.Tensor:
    history = torch.zeros(1, 2 * DEPTH, *noise.shape, dtype=noise.dtype)
    history[0, 0] = noise * table.initial
    for call in range(table.calls):
        output = model(history[:, 0] * table.scales[call], table.timesteps[call])
        history = advanced(history, output, table.weights[call][None].to(noise.dtype))
    return history[0, 0]


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((left - right).abs().max() / right.abs().max())


def names(value: Any) -> str:
    return value.removesuffix("Scheduler") if isinstance(value, str) else ""


@pytest.mark.parametrize("steps", [5, 8, 15, 25, 50])
@pytest.mark.parametrize(("name", "config"), CASES, ids=names)
def test_a_table_gives_what_the_scheduler_gives(name: str, config: dict[str, Any], steps: int) -> None:
    own = scheduler(name, config)
    table = read_coefficients(own, {"num_inference_steps": steps}, from_start=False)
    assert table is not None
    assert table.scheduler == name
    # Latents that begin at thousands (no signal at the first step) leave the bound's digits to float32's rounding,
    # which the processor decides: there both compute more exactly.
    dtype = torch.float64 if table.initial > 1000 else torch.float32
    noise = torch.randn(64, generator=torch.Generator().manual_seed(steps)).to(dtype)
    assert apart(by_table(table, noise), by_diffusers(own, steps, noise)) < 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_in_float64_only_the_schedulers_own_rounding_is_left(name: str) -> None:
    noise = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = scheduler(name, STABLE_DIFFUSION)
    table = present(read_coefficients(own, {"num_inference_steps": 25}, from_start=False))
    assert (
        apart(
            by_table(table, noise),
            by_diffusers(own, 25, noise),
        )
        < 1e-5
    )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", STABLE_DIFFUSION | {"clip_sample": True}),
        ("DDIMScheduler", STABLE_DIFFUSION | {"thresholding": True}),
        ("DPMSolverMultistepScheduler", STABLE_DIFFUSION | {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", STABLE_DIFFUSION | {"thresholding": True}),
        ("EulerAncestralDiscreteScheduler", STABLE_DIFFUSION),
        ("PNDMScheduler", STABLE_DIFFUSION | {"skip_prk_steps": False}),
        ("UniPCMultistepScheduler", STABLE_DIFFUSION),
    ],
    ids=names,
)
def test_a_scheduler_that_clips_draws_noise_or_looks_back_far_has_no_table(name: str, config: dict[str, Any]) -> None:
    assert read_coefficients(scheduler(name, config), {"num_inference_steps": 10}, from_start=False) is None


def test_making_a_table_leaves_the_scheduler_alone() -> None:
    own = scheduler("DPMSolverMultistepScheduler", EMBEDDED)
    before = dict(vars(own))
    read_coefficients(own, {"num_inference_steps": 7}, from_start=True)
    assert all(vars(own)[name] is value for name, value in before.items())


def test_slots_of_different_schedulers_share_an_update() -> None:
    noise = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    tables = [
        present(read_coefficients(scheduler(n, STABLE_DIFFUSION), {"num_inference_steps": 9 + i}, from_start=False))
        for i, n in enumerate(SCHEDULERS[:3])
    ]
    history = torch.zeros(3, 2 * DEPTH, 64)
    history[:, 0] = noise * torch.tensor([[table.initial] for table in tables])
    for call in range(9):
        scales = torch.stack([table.scales[call] for table in tables])[:, None]
        timesteps = torch.stack([table.timesteps[call] for table in tables])[:, None]
        weights = torch.stack([table.weights[call] for table in tables])
        history = advanced(history, model(history[:, 0] * scales, timesteps), weights)
    assert torch.equal(history[0, 0], by_table(tables[0], noise[0]))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_estimate_of_the_image_is_the_schedulers_own(name: str, kind: str) -> None:
    own = scheduler(name, STABLE_DIFFUSION | {"prediction_type": kind})
    table = present(read_coefficients(own, {"num_inference_steps": 10}, from_start=False))
    own.set_timesteps(10)
    latents = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for call, timestep in enumerate(own.timesteps):
        output = model(own.scale_model_input(latents, timestep), timestep)
        stepped = own.step(output, timestep, latents)
        weights = table.estimates[call].double()
        # Euler's timesteps lie between those of the training, by which its sigmas are interpolated.
        assert apart(weights[0] * latents + weights[1] * output, stepped.pred_original_sample) < 5e-3
        latents = stepped.prev_sample


def test_the_last_estimate_of_flow_matching_is_the_image() -> None:
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = present(read_coefficients(own, {"num_inference_steps": 7}, from_start=True))
    assert torch.allclose(table.weights[-1, [0, DEPTH]], table.estimates[-1], atol=1e-6)
