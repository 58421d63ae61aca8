"""VQBridge: a small vision transformer over the whole codebook (FVQ, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.checks import require_whole
from .codes import Mapped, require_scale

VARIANTS = ("paper", "vit", "dit")
STARTS = ("spread", "gathered", "zero")
APART = 0.1  # gathered codes of a patch from each other, over the codes' deviation
EPS = 1e-6  # of the LayerNorms: codes that start at 1/K have variances of its size


def default_patch(num_codes: int) -> int:
    """Codes per token: the power of 4 that leaves about 1,024 tokens, 64 at most.

    FVQ's choices are 4, 16, 64 and 64 for 4,096, 16,384, 65,536 and 262,144 codes (section 4.2 and
    the released configurations).
    """
    return 4 ** min(3, max(0, math.ceil(math.log(max(1, num_codes / 1024), 4) - 1e-9)))


class VQBridge(Mapped):
    """Codes = unpatchify(LN(ViT(patchify(E)))): every code is a function of all (FVQ eq. 8 to 11).

    `patch` consecutive codes become one token by a shared linear map, `depth` pre-norm transformer
    blocks let the tokens exchange, and a shared linear map turns each token into `patch` codes.
    Nothing of it is needed once the codes are known: `VectorQuantizer.fold` keeps the codes alone.

    Args:
        embedding: the raw codes E [K, D]. K need not be a multiple of `patch` for the paper's
            variant: the last patch is filled up with zeros, and what comes out there is dropped.
        patch: p, codes per token; None takes `default_patch(K)`.
        hidden: channels d' of a token; None takes D (FVQ section 4.2), but 64 at least.
        depth: transformer blocks N.
        heads: attention heads.
        mlp_ratio: hidden channels of a block's MLP over `hidden`.
        variant: ``"paper"`` takes runs of p codes and applies LayerNorm to the tokens; ``"vit"``,
            the released `qbridge_ViT.py`, takes squares of the codebook seen as a sqrt(K) x sqrt(K)
            image and applies none; ``"dit"``, the released `qbridge.py`, also adds a fixed position
            and modulates every LayerNorm by a learned vector (adaLN-zero).
        start: ``"spread"`` starts with distinct codes of about unit variance, given raw codes of
            about unit variance; ``"gathered"`` with the same variance, but the codes of a patch
            close together, so that the gradient of one moves all of them its way; ``"zero"`` is the
            released last layer of zeros, all codes at the origin.
        scale: factor of the codes that ``"spread"`` and ``"gathered"`` start with.

    The keys of the state dict are those of the released checkpoints behind ``quantize.``.

    Raises:
        ValueError: a size does not fit, or a choice is unknown.
    """

    def __init__(
        self,
        embedding: nn.Module,
        *,
        patch: int | None = None,
        hidden: int | None = None,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        variant: str = "paper",
        start: str = "spread",
        scale: float = 1.0,
    ) -> None:
        super().__init__(embedding)
        _require_choice("variant", variant, VARIANTS)
        _require_choice("start", start, STARTS)
        require_scale(scale)
        if hidden is None:
            hidden = -(-max(64, self.dim) // heads) * heads
        patch = default_patch(self.num_codes) if patch is None else patch
        _require_sizes(patch=patch, hidden=hidden, depth=depth, heads=heads)
        if hidden % heads:
            raise ValueError(f"VQBridge: hidden must be a multiple of heads {heads}, got {hidden}")
        if variant == "paper":
            self.tokens = -(-self.num_codes // patch)
        else:
            self.tokens = _squares(self.num_codes, patch)
        self.patch = patch
        self.variant = variant
        self.qbridge = _Bridge(self, hidden, depth, heads, int(hidden * mlp_ratio))
        self.qbridge.initialise(start, scale)

    def forward(self) -> Tensor:
        """The codes [K, dim]."""
        return self.qbridge(self.embedding())[: self.num_codes]

    def macs(self) -> int:
        """Multiply-accumulates of the matrix products, attention included, and of the embedding.

        FVQ table 10 counts the paper's variant so: 4.30 G at 16,384 codes of 256 channels, 55.89 G
        at 262,144.
        """
        return self.embedding.macs() + self.qbridge.macs()

    def extra_repr(self) -> str:
        return f"patch={self.patch}, tokens={self.tokens}, variant={self.variant!r}"


class _Bridge(nn.Module):
    """Everything of a VQBridge but the raw codes; named like the released `qbridge`."""

    def __init__(self, owner: VQBridge, hidden: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        dim, patch, tokens = owner.dim, owner.patch, owner.tokens
        modulated = owner.variant == "dit"
        embed = _RunEmbed if owner.variant == "paper" else _SquareEmbed
        self.x_embedder = embed(dim, patch, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, heads, mlp, modulated) for _ in range(depth))
        self.final_layer = _Final(hidden, patch * dim, modulated)
        if modulated:
            self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(1, hidden)})
            self.register_buffer("pos_embed", sincos_positions(math.isqrt(tokens), hidden)[None])
        self.tokens, self.hidden, self.modulated = tokens, hidden, modulated

    def forward(self, codes: Tensor) -> Tensor:
        x = self.x_embedder(codes)
        condition = None
        if self.modulated:
            x = x + self.pos_embed[0].to(x.dtype)
            condition = self.y_embedder["embedding_table"].weight
        for block in self.blocks:
            x = block(x, condition)
        return self.x_embedder.unpatchify(self.final_layer(x, condition))

    def initialise(self, start: str, scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        embed = self.x_embedder.proj
        nn.init.xavier_uniform_(embed.weight.view(len(embed.weight), -1))
        nn.init.zeros_(embed.bias)
        if self.modulated:  # adaLN-zero: every block starts as the identity
            nn.init.normal_(self.y_embedder["embedding_table"].weight, std=0.02)
            for module in (*self.blocks, self.final_layer):
                nn.init.zeros_(module.adaLN_modulation[1].weight)
        last = self.final_layer.linear.weight
        if start == "zero":
            nn.init.zeros_(last)
        else:  # a token has unit variance in every channel; so then has a code
            nn.init.normal_(last, std=scale * self.hidden**-0.5)
        if start == "gathered":
            with torch.no_grad():
                maps = last.view(-1, self.x_embedder.dim, self.hidden)  # of every place in a patch
                maps.mul_(APART).add_(maps[:1].clone() * (1 / APART * (1 - APART**2) ** 0.5))

    def macs(self) -> int:
        embed = self.x_embedder.proj.weight.numel()
        ends = self.tokens * (embed + self.final_layer.linear.weight.numel())
        modulation = 0
        for module in (*self.blocks, self.final_layer):
            if self.modulated:
                modulation += module.adaLN_modulation[1].weight.numel()
        linear = sum(block.linear_macs() for block in self.blocks) * self.tokens
        attention = len(self.blocks) * 2 * self.tokens**2 * self.hidden
        return ends + modulation + linear + attention


class _RunEmbed(nn.Module):
    """Tokens of `patch` consecutive codes (FVQ eq. 8)."""

    def __init__(self, dim: int, patch: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.patch, self.hidden = dim, patch, hidden
        self.proj = nn.Linear(patch * dim, hidden)

    def forward(self, codes: Tensor) -> Tensor:
        missing = -len(codes) % self.patch
        tokens = F.pad(codes, (0, 0, 0, missing)).reshape(-1, self.patch * self.dim)
        return F.layer_norm(self.proj(tokens), (self.hidden,), eps=EPS)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(-1, self.dim)


class _SquareEmbed(nn.Module):
    """Tokens of sqrt(p) x sqrt(p) squares of the codebook seen as an image, row by row."""

    def __init__(self, dim: int, patch: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.edge = dim, math.isqrt(patch)
        self.proj = nn.Conv2d(dim, hidden, self.edge, stride=self.edge)

    def forward(self, codes: Tensor) -> Tensor:
        side = math.isqrt(len(codes))
        image = codes.T.reshape(1, self.dim, side, side)
        return self.proj(image).flatten(2)[0].T

    def unpatchify(self, tokens: Tensor) -> Tensor:
        grid = math.isqrt(len(tokens))
        squares = tokens.reshape(grid, grid, self.edge, self.edge, self.dim)
        return squares.transpose(1, 2).reshape(-1, self.dim)


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        tokens, hidden = x.shape
        qkv = self.qkv(x).reshape(tokens, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(1, 2, 0, 3).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed[0].transpose(0, 1).reshape(tokens, hidden))


class _Block(nn.Module):
    """x + attn(LN x), then x + mlp(LN x); with adaLN, each shifted, scaled and gated."""

    def __init__(self, hidden: int, heads: int, mlp: int, modulated: bool) -> None:
        super().__init__()
        self.attn = _Attention(hidden, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(hidden, mlp), "fc2": nn.Linear(mlp, hidden)})
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            x = x + self.attn(_normalised(x))
            return x + self._mlp(_normalised(x))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(condition).chunk(
            6, dim=-1
        )
        x = x + gate_1 * self.attn(_normalised(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self._mlp(_normalised(x) * (1 + scale_2) + shift_2)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp["fc2"](F.gelu(self.mlp["fc1"](x), approximate="tanh"))

    def linear_macs(self) -> int:
        """Per token, attention's products of tokens with each other left out."""
        layers = (self.attn.qkv, self.attn.proj, self.mlp["fc1"], self.mlp["fc2"])
        return sum(layer.weight.numel() for layer in layers)


class _Final(nn.Module):
    def __init__(self, hidden: int, out: int, modulated: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = _normalised(x)
        if condition is not None:
            shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self.linear(x)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def sincos_positions(side: int, hidden: int) -> Tensor:
    """Fixed 2-D positions [side^2, hidden]: sines and cosines of the column, then of the row."""
    if hidden % 4:
        raise ValueError(f"VQBridge: hidden must be a multiple of 4 for 'dit', got {hidden}")
    frequency = 10000.0 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    one_axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column = one_axis.repeat(side, 1)
    row = one_axis.repeat_interleave(side, dim=0)
    return torch.cat([column, row], dim=1).float()


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"VQBridge: {name} must be one of {choices}, got {value!r}")


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        require_whole(f"VQBridge: {name}", size)


def _squares(num_codes: int, patch: int) -> int:
    """Tokens of square patches; both the codebook and a patch must be squares that fit."""
    side, edge = math.isqrt(num_codes), math.isqrt(patch)
    if side**2 != num_codes or edge**2 != patch or side % edge:
        raise ValueError(
            "VQBridge: square patches need square numbers of codes and of codes per patch, sides "
            f"dividing, got codebook_size {num_codes} and patch {patch}; the variant 'paper' takes "
            "any"
        )
    return (side // edge) ** 2
