"""A frozen vision transformer whose features a discriminator reads, from DINO's public file."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkern.files import refused
from vqkern.public_files import PublicFile

# The authors publish no digest of it; what does not have its tensors is refused.
DINO_S = PublicFile(
    "dino_deitsmall16_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    None,
)
HEAD = 64  # channels of an attention head, in all of DINO's models
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x), with DINO's names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        split = self.attn["qkv"](self.norm1(x)).view(batch, tokens, 3, dim // HEAD, HEAD)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.attn["proj"](mixed)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    """Images [B, 3, S, S] in [-1, 1] to features of several depths, each [B, C, tokens].

    The features are those before the first block and after every quarter of the blocks: patch
    tokens, with the class token added to each (StyleGAN-T's projection).

    Args:
        dim: Channels C, a multiple of 64. depth: Blocks, a multiple of 4. patch: Side of a patch.
        side: Of the images, a multiple of `patch`. hidden: Channels of the MLPs, 4 C in DINO's.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        patch: int = 16,
        side: int = 224,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if dim % HEAD or depth % 4 or side % patch or min(dim, depth, side) < 1:
            raise ValueError(
                f"dim, depth, side: expected multiples of {HEAD}, 4 and patch = {patch}, "
                f"got {dim}, {depth}, {side}"
            )
        self.dim, self.side, self.quarter = dim, side, depth // 4
        tokens = (side // patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, stride=patch)})
        self.blocks = nn.ModuleList(Block(dim, hidden or 4 * dim) for _ in range(depth))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed["proj"](((images + 1) / 2 - self.mean) / self.std)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        features = [x]
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number % self.quarter == 0:
                features.append(x)
        return [(f[:, 1:] + f[:, :1]).transpose(1, 2) for f in features]


def load_vit(path: str | Path, *, expected: PublicFile = DINO_S) -> VisionTransformer:
    """DINO's transformer from its file, frozen and in eval mode; sizes are read off the shapes.

    The bias of the keys, which no attention depends on, is set to zero as the released
    discriminators do.

    Raises:
        ValueError: the file is missing, or does not hold such a transformer.
    """
    found = expected.find(path, "discriminator: dino")
    try:
        state = torch.load(found, map_location="cpu", weights_only=True)
        state = {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}
        depth = sum(name.endswith(".norm1.weight") for name in state)
        dim, _, patch, _ = state["patch_embed.proj.weight"].shape
        side = math.isqrt(state["pos_embed"].shape[1] - 1) * patch
        hidden = len(state["blocks.0.mlp.fc1.bias"])
        network = VisionTransformer(dim, depth, patch, side, hidden)
        network.load_state_dict(state)
    except Exception as error:  # what torch.load raises on other files is not told
        raise ValueError(
            f"discriminator: dino: {str(found)!r} is no file like {expected}: {refused(error)}"
        ) from error
    with torch.no_grad():
        for block in network.blocks:
            block.attn["qkv"].bias[dim : 2 * dim] = 0
    return network.eval().requires_grad_(False)
