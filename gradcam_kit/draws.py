"""Random numbers that depend on a seed and an image, but not on the batch, the position in it, or the device.

A `torch.Generator` would need a loop over the images. Instead, number j of an image is a hash of (seed, identity, j):
the finalizer of MurmurHash3 (Appleby, public domain), applied after each part is mixed in. No global random state is
used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradcam_kit.options import whole

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def uniform(
    shape: Sequence[int], identities: Int[Tensor, " n"], seed: int, stream: int | Int[Tensor, " n"] = 0
) -> Float[Tensor, "n *shape"]:
    """Return float32 draws from U(0, 1) that are never exactly 0 or 1.

    Args:
        shape: shape of the draws for one image.
        identities: number that identifies each image, such as its checksum.
        seed: an int of at most 64 bits.
        stream: number of a stream, for all images or for each of them. Different streams of the same image are
            independent.
    """
    seed = whole("seed", seed)
    key = _mix(torch.full_like(identities, seed * _GOLDEN & _WORD, dtype=torch.long))
    if high := seed >> 32 & _WORD:
        key = _mix(key ^ high)
    key = _mix(key + stream)
    key = _mix(key ^ (identities.long() & _WORD))
    key = _mix(key ^ ((identities.long() >> 32) & _WORD))
    count = math.prod(shape)
    numbers = torch.arange(1, count + 1, device=identities.device) * _GOLDEN & _WORD
    words = _mix(_mix(key[:, None] ^ numbers) + key[:, None])
    # A 23-bit integer plus one half is exact in float32, and the draws are symmetric around 1/2.
    return (((words >> 9).float() + 0.5) * 2.0**-23).reshape(len(identities), *shape)


def normal(
    shape: Sequence[int], identities: Int[Tensor, " n"], seed: int, stream: int | Int[Tensor, " n"] = 0
) -> Float[Tensor, "n *shape"]:
    """Return float32 draws from N(0, 1) by the Box-Muller transform; the arguments are those of `uniform`."""
    count = math.prod(shape)
    half = -(-count // 2)
    radius, angle = uniform((2, half), identities, seed, stream).unbind(1)
    radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].reshape(len(identities), *shape)


def checksums(images: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """Return a checksum of each image: the sum of its values' bit patterns times odd numbers, modulo 2^64.

    Integer arithmetic does not round, so the result depends neither on the batch nor on the device. The host does not
    wait for the device.
    """
    values = images.detach().flatten(1)
    bits = values.view(_BITS[values.element_size()]) if values.is_floating_point() else values
    if bits.element_size() == 8:
        # Products carry only upwards, so bring the high bits down: the low bits of a double may all be zero.
        bits = bits ^ (bits >> 32 & _WORD)
    factors = _mix(torch.arange(1, bits.shape[1] + 1, device=bits.device)) << 1 | 1
    return (bits * factors).sum(1)


def _mix(words: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Mix the bits of 32-bit words, held in int64, so that every input bit affects every output bit."""
    words = words & _WORD
    words = (words ^ (words >> 16)) * 0x85EBCA6B & _WORD
    words = (words ^ (words >> 13)) * 0xC2B2AE35 & _WORD
    return words ^ (words >> 16)
