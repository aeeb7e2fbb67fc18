"""The transformer's blocks as they are trained: diffusers' computation, in fewer and larger kernels.

What reads the same input is one matrix product, text and image stay one sequence through the single-stream blocks, and
everything is in the input's number format, where autocast would widen each normalisation to float32. The functions take
tensors alone, so that one compiled graph serves every block of a kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

EPSILON = 1e-6


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise [n, tokens, width], then scale and shift it by [n, width] (adaLN, Peebles & Xie, 2023)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def joined(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Apply several linear layers to one input; their outputs lie side by side."""
    return F.linear(x, torch.cat([w.to(x.dtype) for w in weights]), torch.cat([b.to(x.dtype) for b in biases]))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer in the input's number format."""
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """Split [n, tokens, width] into heads as wide as the weight, and normalise each by its root mean square."""
    heads = torch.unflatten(x, -1, (-1, len(weight)))
    return F.rms_norm(heads, (len(weight),), weight.to(x.dtype), EPSILON)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding [tokens, head] to [n, tokens, heads, head], whose neighbours are pairs."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    real, imaginary = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    crossed = torch.stack([-imaginary, real], -1).flatten(-2)
    return (x.float() * cos + crossed.float() * sin).to(x.dtype)


def attended(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attend, [n, tokens, heads, head] each, to [n, tokens, width]."""
    query, key = turned(query, cos, sin), turned(key, cos, sin)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


def single_weights(block: Any) -> tuple[Tensor, ...]:
    """Return a single-stream block's weights in the order that `single` takes."""
    attn = block.attn
    inputs = (attn.to_q, attn.to_k, attn.to_v, block.proj_mlp)
    layers = (block.norm.linear, block.proj_out)
    pairs = [t for layer in (*inputs, *layers) for t in (layer.weight, layer.bias)]
    return (*pairs, attn.norm_q.weight, attn.norm_k.weight)


def single(x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor) -> Tensor:
    """Do what diffusers' FluxSingleTransformerBlock does, to text and image in one sequence.

    Args:
        x: Text, then image, [n, tokens, width].
        condition: SiLU of the embedding of time, guidance and text, [n, width].
        cos: Rotary embedding, [tokens, head].
        sin: Rotary embedding, [tokens, head].
        weights: What `single_weights` returned.
    """
    modulation, out = weights[8:10], weights[10:12]
    shift, scale, gate = linear(condition, *modulation).chunk(3, -1)
    width = x.shape[-1]
    wide = joined(modulated(x, scale, shift), weights[0:8:2], weights[1:8:2])
    query, key, value, inner = torch.split(wide, [width, width, width, wide.shape[-1] - 3 * width], -1)
    query, key = normed(query, weights[12]), normed(key, weights[13])
    mixed = attended(query, key, torch.unflatten(value, -1, (-1, len(weights[12]))), cos, sin)
    both = torch.cat([mixed, F.gelu(inner, approximate="tanh")], -1)
    return x + gate.unsqueeze(1) * linear(both, *out)


def double_weights(block: Any) -> tuple[Tensor, ...]:
    """Return a double-stream block's weights in the order that `double` takes: the image's, then the text's."""
    attn = block.attn
    image = (attn.to_q, attn.to_k, attn.to_v, block.norm1.linear, attn.to_out[0], block.ff.net[0].proj, block.ff.net[2])
    text = (
        attn.add_q_proj,
        attn.add_k_proj,
        attn.add_v_proj,
        block.norm1_context.linear,
        attn.to_add_out,
        block.ff_context.net[0].proj,
        block.ff_context.net[2],
    )
    pairs = [[t for layer in layers for t in (layer.weight, layer.bias)] for layers in (image, text)]
    return (
        *pairs[0],
        attn.norm_q.weight,
        attn.norm_k.weight,
        *pairs[1],
        attn.norm_added_q.weight,
        attn.norm_added_k.weight,
    )


def double(
    image: Tensor, text: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what diffusers' FluxTransformerBlock does.

    Args:
        image: [n, image tokens, width].
        text: [n, text tokens, width].
        condition: SiLU of the embedding of time, guidance and text, [n, width].
        cos: Rotary embedding of text and image tokens, [tokens, head].
        sin: Rotary embedding, alike.
        weights: What `double_weights` returned.
    """
    streams = ((text, weights[16:]), (image, weights[:16]))
    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    gates: list[list[Tensor]] = []
    for x, own in streams:
        shift, scale, *later = linear(condition, *own[6:8]).chunk(6, -1)
        query, key, value = joined(modulated(x, scale, shift), own[0:6:2], own[1:6:2]).chunk(3, -1)
        heads = torch.unflatten(value, -1, (-1, len(own[14])))
        asked.append((normed(query, own[14]), normed(key, own[15]), heads))
        gates.append(later)
    query, key, value = (torch.cat([part[k] for part in asked], 1) for k in range(3))
    mixed = torch.split(attended(query, key, value, cos, sin), [text.shape[1], image.shape[1]], 1)
    out: list[Tensor] = []
    for (x, own), seen, later in zip(streams, mixed, gates, strict=True):
        gate, shift, scale, gate_inner = later
        y = x + gate.unsqueeze(1) * linear(seen, *own[8:10])
        inner = F.gelu(linear(modulated(y, scale, shift), *own[10:12]), approximate="tanh")
        out.append(y + gate_inner.unsqueeze(1) * linear(inner, *own[12:14]))
    return out[1], out[0]
