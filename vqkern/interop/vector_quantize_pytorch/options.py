"""Which options of vector-quantize-pytorch's VectorQuantize run here, and which do not."""

from __future__ import annotations

from torch import nn

# What needs the gradient of every distance, or codes that move with the batch.
NOT_HERE = {
    "affine_param": False,
    "codebook_diversity_loss_weight": 0.0,
    "commitment_use_cross_entropy_loss": False,
    "straight_through": False,
}


def require_supported(name: str, options: dict) -> None:
    """Raises for an option that is not computed here, naming it.

    Raises:
        ValueError: an option of `NOT_HERE` is on.
    """
    for option, off in NOT_HERE.items():
        if option in options and options[option] != off:
            raise ValueError(
                f"{name}: {option} must be {off!r} here, got {options[option]!r}; "
                "docs/interop.md lists what is supported"
            )


def require_numbers(name: str, **counts: int) -> None:
    """Raises unless every argument is a whole number of at least 1."""
    for label, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: {label} must be a whole number of at least 1, got {value!r}")


def resolve(
    *,
    dim: int,
    ema_update: bool | None,
    learnable_codebook: bool | None,
    rotation_trick: bool | None,
    directional_reparam: bool,
    vq_bridge: nn.Module | None,
    use_cosine_sim: bool,
    threshold_ema_dead_code: float,
    orthogonal_reg_weight: float,
    sync_update_v: float,
) -> tuple[bool, bool, bool]:
    """(ema_update, learnable_codebook, rotation_trick), with the defaults the others imply.

    Raises:
        ValueError: two options exclude each other.
    """
    by_gradient = directional_reparam or vq_bridge is not None
    ema_update = not by_gradient if ema_update is None else ema_update
    learnable = by_gradient if learnable_codebook is None else learnable_codebook
    rotate = not directional_reparam and dim > 1 if rotation_trick is None else rotation_trick
    conflicts = {
        "use_cosine_sim excludes learnable_codebook": use_cosine_sim and learnable,
        "use_cosine_sim excludes orthogonal_reg_weight": use_cosine_sim and orthogonal_reg_weight,
        "rotation_trick excludes directional_reparam": rotate and directional_reparam,
        "directional_reparam needs threshold_ema_dead_code above 0": directional_reparam
        and threshold_ema_dead_code == 0,
        "ema_update excludes learnable_codebook": ema_update and learnable,
        "vq_bridge needs learnable_codebook and excludes ema_update": vq_bridge is not None
        and (ema_update or not learnable),
        "sync_update_v must be in [0, 1], above 0 only with learnable_codebook": not (
            0 <= sync_update_v <= 1
        )
        or (sync_update_v > 0 and not learnable),
    }
    for conflict, there in conflicts.items():
        if there:
            raise ValueError(f"VectorQuantize: {conflict}")
    return ema_update, learnable, rotate


def refusal(module: nn.Module) -> str | None:
    """Why a VectorQuantize of that library is not one of those that run here; None: it is."""
    book = module._codebook
    sampler = getattr(book.gumbel_sample, "keywords", None)
    if sampler is None:
        return "its codebook has a sampling function of its own"
    on = {
        "affine_param": book.affine_param,
        "codebook_diversity_loss_weight": module.has_codebook_diversity_loss,
        "commitment_use_cross_entropy_loss": module.commitment_use_cross_entropy_loss,
        "stochastic_sample_codes": sampler.get("stochastic"),
        "straight_through": sampler.get("straight_through"),
        "use_cosine_sim with orthogonal_reg_weight": book.use_cosine_sim
        and module.has_codebook_orthogonal_loss,
    }
    names = [name for name, there in on.items() if there]
    if names:
        return f"option {', '.join(names)} is not supported"
    if book.use_cosine_sim and bool(book.initted):
        norms = book.embed.detach().float().norm(dim=-1)
        if bool((norms - 1).abs().max() > 1e-2):
            return (
                "use_cosine_sim with codes that are not of unit length "
                f"({float(norms.min()):.3g} to {float(norms.max()):.3g}): it compares by product"
            )
    return None
