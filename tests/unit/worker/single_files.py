"""Writes tiny models as people have them: a checkpoint of everything in one file, a transformer in GGUF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file

_NAMES: Any = DIFFUSERS_TO_LDM_MAPPING

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(pipeline: Any, file: Path) -> Path:
    """Save a StableDiffusionPipeline in one safetensors file, under the names of the original code."""
    tensors = {f"model.diffusion_model.{_unet_name(key, pipeline.unet)}": value for key, value in _of(pipeline.unet)}
    tensors |= {f"first_stage_model.{_vae_name(key, pipeline.vae)}": value for key, value in _of(pipeline.vae)}
    # Transformers leaves out a part of the name that the files have.
    tensors |= {
        f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
        for key, value in _of(pipeline.text_encoder)
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


def save_gguf(module: torch.nn.Module, file: Path, architecture: str) -> Path:
    """Save a module in GGUF: matrices in blocks of 8 bits where they are divisible by blocks, all else in 32 bits."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in _of(module):
        array = value.float().numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _of(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.state_dict().items())


def _unet_name(key: str, unet: Any) -> str:
    layers = unet.config.layers_per_block + 1
    if key in (named := _NAMES["unet"]["layers"]):
        return str(named[key])
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key):
        kind, number, rest = found[1], int(found[2]), found[3]
        place = 2 * number if kind == "resnets" else 2 * number + 1
        return f"middle_block.{place}.{_resnet_name(rest) if kind == 'resnets' else rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)
    assert found is not None
    down, block, kind, number, rest = found[1] == "down", int(found[2]), found[3], int(found[4]), found[5]
    side, first = ("input_blocks", block * layers + 1) if down else ("output_blocks", block * layers)
    if kind == "downsamplers":
        return f"{side}.{first + layers - 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = "CrossAttn" in unet.config.up_block_types[block]
        return f"{side}.{first + layers - 1}.{2 if attends else 1}.{rest}"
    return (
        f"{side}.{first + number}.{0 if kind == 'resnets' else 1}.{_resnet_name(rest) if kind == 'resnets' else rest}"
    )


def _resnet_name(rest: str) -> str:
    part, _, kind = rest.rpartition(".")
    return f"{_UNET_RESNET[part]}.{kind}"


def _vae_name(key: str, vae: Any) -> str:
    if key in (named := _NAMES["vae"]):
        return str(named[key])
    side, _, rest = key.partition(".")
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
        return f"{side}.mid.block_{int(found[1]) + 1}.{found[2]}"
    if found := re.fullmatch(r"mid_block\.attentions\.0\.(.+)\.(\w+)", rest):
        return f"{side}.mid.attn_1.{_VAE_ATTENTION[found[1]]}.{found[2]}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest)
    assert found is not None
    direction, block, kind = found[1], int(found[2]), found[3]
    if direction == "up":
        block = len(vae.config.up_block_types) - 1 - block
    if kind == "resnets":
        return f"{side}.{direction}.{block}.block.{found[4]}.{found[5]}"
    return f"{side}.{direction}.{block}.{direction}sample.{found[5]}"
