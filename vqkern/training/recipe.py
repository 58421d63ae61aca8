"""Recipes: everything that determines a training run, as frozen dataclasses.

A recipe is one YAML file with the names below; `vqkern.training.config` reads and checks it.
"""

from dataclasses import dataclass, field

from vqkern.data import CROPS
from vqkern.losses import ADVERSARIAL, AUGMENTATIONS, PIXEL

# What each trainer moves. Everything else is frozen.
TRAINERS: dict[str, tuple[str, ...]] = {
    "stage_1": ("quantizer",),
    "stage_2": ("decoder",),
    "stage_2_joint": ("encoder", "quantizer", "decoder"),
    "from_scratch": ("encoder", "quantizer", "decoder"),
}
PRECISIONS = ("fp32", "bf16", "fp16")
DISCRIMINATORS = ("none", "patchgan", "dino")
SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class TokenizerSettings:
    """Where encoder and decoder come from: one of the two.

    Attributes:
        pretrained: Folder that `save_pretrained` wrote, or the folder of an earlier run.
        architecture: A fresh one: `{name: conv, latent_dim: 8, ...}` with the fields of its config.
        start_images: Training images whose principal components a fresh `conv` starts at; 0: none.
    """

    pretrained: str | None = None
    architecture: dict | None = None
    start_images: int = 0


@dataclass(frozen=True)
class QuantizerSettings:
    """The new quantizer: the arguments of `vqkern.build_quantizer`; dim is the encoder's.

    Attributes:
        name: Of the preset and its structures; None keeps the pretrained tokenizer's quantizer.
        codebook_size: Codes K of a token.
        options: Of the preset, such as `{commitment: 0.25}`.
    """

    name: str | None = None
    codebook_size: int = 16384
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DataSettings:
    """Training images.

    Attributes:
        folder: Of images, tar shards or volumes (`vqkern.data.open_source`); None: the five
            photographs that come with scikit-image, without the regions held out for evaluation.
        crop: Side of the crops in pixels.
        crop_kind: How a folder's images come to that side, one of `vqkern.data.CROPS`: var_random
            and adm_random resize and cut at random, as VAR and LlamaGen train; adm cuts the centre,
            as VQ-Transplant does; whole takes shards that have the size.
        flip: Mirrors half of a folder's crops.
        max_damaged: Share of the images that may be unreadable; the next takes the place of one.
        batch: Images a step, over all ranks and accumulated micro-batches.
        micro_batch: Images that a rank takes at once; None: all of its part.
        workers: Processes a rank that read images; 0 reads them in the loop.
    """

    folder: str | None = None
    crop: int = 256
    crop_kind: str = "var_random"
    flip: bool = True
    max_damaged: float = 0.0
    batch: int = 64
    micro_batch: int | None = None
    workers: int = 2


@dataclass(frozen=True)
class AdversarialSettings:
    """The discriminator: `discriminator: none` trains without one.

    Attributes:
        discriminator: none, patchgan (`width`, `layers` as in `PatchGAN`), or dino, whose frozen
            network comes from `dino_file`.
        kind: hinge, non_saturating, or hinge_non_saturating (`vqkern.losses.ADVERSARIAL`).
        weight: Of the adversarial loss in the decoder's.
        adaptive: Whether VQGAN's gradient balance multiplies the weight.
        start: Steps before which the discriminator takes no part.
        lr, betas, weight_decay: Its optimizer (AdamW), on the schedule of the others.
        augment: What is done to images before it sees them, some of colour, translation, cutout.
        bcr: Weight of balanced consistency under all three. lecam: Weight of LeCAM.
    """

    discriminator: str = "none"
    width: int = 64
    layers: int = 3
    dino_file: str | None = None
    kind: str = "hinge"
    weight: float = 0.5
    adaptive: bool = False
    start: int = 0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    augment: tuple[str, ...] = ()
    bcr: float = 0.0
    lecam: float = 0.0


@dataclass(frozen=True)
class LossSettings:
    """What is lowered; the quantizer's own loss is part of it with `quantizer_weight`.

    Attributes:
        pixel: l1, l2 or charbonnier, or several with a weight each, as {l2: 2, charbonnier: 1};
            times `pixel_weight`.
        perceptual: none, or lpips with `perceptual_weight` and its network from `lpips_file`.
        adversarial: See `AdversarialSettings`.
    """

    pixel: str | dict = "l2"
    pixel_weight: float = 1.0
    quantizer_weight: float = 1.0
    perceptual: str = "none"
    perceptual_weight: float = 1.0
    lpips_file: str | None = None
    adversarial: AdversarialSettings = AdversarialSettings()

    @property
    def pixel_terms(self) -> dict[str, float]:
        """Weights by the names of the pixel losses."""
        return self.pixel if isinstance(self.pixel, dict) else {self.pixel: 1.0}


@dataclass(frozen=True)
class OptimSettings:
    """AdamW, and the course of its learning rates.

    Attributes:
        steps: Optimizer steps.
        lr: Peak rate of encoder and decoder. codebook_lr: Peak rate of the quantizer's parameters,
            a group of its own; None: `lr`.
        weight_decay: Of encoder and decoder. codebook_weight_decay: Of the quantizer's parameters,
            a pull of codes to the origin; by it, codes beyond the edge of the latents come back.
        warmup: Steps over which rates rise linearly from 0. hold: Fraction of all steps after which
            they begin to fall. shape: How they fall, constant, linear or cosine. final: Fraction
            of the peak at which they end.
        clip: Largest norm of the gradient; None does not clip.
        ema: Decay of the average of weights that is evaluated and exported; None: no average.
        precision: Of encoder and decoder, fp32, bf16 or fp16; quantization is float32 throughout.
        compile: Whether encoder and decoder go through torch.compile.
    """

    steps: int = 1000
    lr: float = 1e-4
    codebook_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    codebook_weight_decay: float = 0.0
    warmup: int = 0
    hold: float = 0.0
    shape: str = "linear"
    final: float = 0.0
    clip: float | None = 1.0
    ema: float | None = None
    precision: str = "fp32"
    compile: bool = False


@dataclass(frozen=True)
class RunSettings:
    """What does not change the result, but for `seed`.

    Attributes:
        device: auto, cpu or cuda.
        save_every, log_every, sample_every: Steps between checkpoints, lines of metrics.jsonl, and
            pictures of reconstructions; sample_every 0 makes none.
        keep: Checkpoints that are kept.
    """

    seed: int = 0
    device: str = "auto"
    save_every: int = 1000
    log_every: int = 50
    sample_every: int = 1000
    keep: int = 2


@dataclass(frozen=True)
class LogSettings:
    """Where else a run is logged, besides metrics.jsonl and samples/.

    Attributes:
        tensorboard: Whether RUN/tensorboard gets the same values and pictures.
    """

    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe:
    """One run. `trainer` is stage_1, stage_2, stage_2_joint or from_scratch.

    Raises:
        ValueError: values out of range, or that do not fit each other.
    """

    trainer: str
    tokenizer: TokenizerSettings = TokenizerSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
    data: DataSettings = DataSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        gan = self.loss.adversarial
        for name, value, known in (
            ("trainer", self.trainer, TRAINERS),
            *(("loss.pixel", name, PIXEL) for name in self.loss.pixel_terms or {"nothing": 0}),
            ("data.crop_kind", self.data.crop_kind, CROPS),
            ("loss.perceptual", self.loss.perceptual, ("none", "lpips")),
            ("loss.adversarial.discriminator", gan.discriminator, DISCRIMINATORS),
            ("loss.adversarial.kind", gan.kind, ADVERSARIAL),
            ("optim.shape", self.optim.shape, SHAPES),
            ("optim.precision", self.optim.precision, PRECISIONS),
            ("run.device", self.run.device, ("auto", "cpu", "cuda")),
            *(("loss.adversarial.augment", kind, AUGMENTATIONS) for kind in gan.augment),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        _check_numbers(self)
        _check_combination(self)


def _check_numbers(recipe: Recipe) -> None:
    for name, weight in recipe.loss.pixel_terms.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"loss.pixel.{name}: expected a number, got {weight!r}")
    data, optim, run, gan = recipe.data, recipe.optim, recipe.run, recipe.loss.adversarial
    for name, value, least in (
        ("quantizer.codebook_size", recipe.quantizer.codebook_size, 1),
        ("tokenizer.start_images", recipe.tokenizer.start_images, 0),
        ("data.crop", data.crop, 1),
        ("data.batch", data.batch, 1),
        ("data.micro_batch", data.batch if data.micro_batch is None else data.micro_batch, 1),
        ("data.workers", data.workers, 0),
        ("optim.steps", optim.steps, 1),
        ("optim.warmup", optim.warmup, 0),
        ("loss.adversarial.start", gan.start, 0),
        ("loss.adversarial.width", gan.width, 1),
        ("loss.adversarial.layers", gan.layers, 1),
        ("run.seed", run.seed, 0),
        ("run.save_every", run.save_every, 1),
        ("run.log_every", run.log_every, 1),
        ("run.sample_every", run.sample_every, 0),
        ("run.keep", run.keep, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    for name, value in (
        ("optim.lr", optim.lr),
        ("optim.codebook_lr", optim.codebook_lr),
        ("optim.weight_decay", optim.weight_decay),
        ("optim.codebook_weight_decay", optim.codebook_weight_decay),
        ("optim.clip", optim.clip),
        ("loss.pixel_weight", recipe.loss.pixel_weight),
        *((f"loss.pixel.{name}", weight) for name, weight in recipe.loss.pixel_terms.items()),
        ("loss.quantizer_weight", recipe.loss.quantizer_weight),
        ("loss.perceptual_weight", recipe.loss.perceptual_weight),
        ("loss.adversarial.weight", gan.weight),
        ("loss.adversarial.lr", gan.lr),
        ("loss.adversarial.weight_decay", gan.weight_decay),
        ("loss.adversarial.bcr", gan.bcr),
        ("loss.adversarial.lecam", gan.lecam),
    ):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a finite number of at least 0")
    rate = optim.lr if optim.codebook_lr is None else optim.codebook_lr
    for name, peak, decay in (
        ("optim.weight_decay", optim.lr, optim.weight_decay),
        ("optim.codebook_weight_decay", rate, optim.codebook_weight_decay),
        ("loss.adversarial.weight_decay", gan.lr, gan.weight_decay),
    ):
        if peak * decay >= 1:
            raise ValueError(
                f"{name}: got {decay}; a step takes rate x decay of a parameter away, so that at a "
                f"rate of {peak} it must be less than {1 / peak:g}"
            )
    if not 0 <= data.max_damaged <= 1:
        raise ValueError(f"data.max_damaged: got {data.max_damaged}, expected a share, 0 to 1")
    for name, value in (("hold", optim.hold), ("final", optim.final), ("ema", optim.ema)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"optim.{name}: got {value}, expected a number in [0, 1]")


def _check_combination(recipe: Recipe) -> None:
    tokenizer, fresh = recipe.tokenizer, recipe.trainer == "from_scratch"
    if (tokenizer.pretrained is None) == (tokenizer.architecture is None):
        raise ValueError(
            "tokenizer: expected either pretrained (a folder) or architecture (a fresh one); "
            "--tokenizer.pretrained FOLDER names the first"
        )
    if not fresh and tokenizer.pretrained is None:
        raise ValueError(f"tokenizer.pretrained: trainer {recipe.trainer} starts from a tokenizer")
    if tokenizer.architecture is not None and recipe.quantizer.name is None:
        raise ValueError("quantizer.name: a fresh tokenizer needs a quantizer, got none")
    if recipe.trainer == "stage_1" and recipe.quantizer.name is None:
        raise ValueError("quantizer.name: stage_1 needs the new quantizer, got none")
    if recipe.loss.perceptual == "lpips" and recipe.loss.lpips_file is None:
        raise ValueError(
            "loss.lpips_file: perceptual: lpips needs the file vgg16-397923af.pth, "
            "got none; perceptual: none trains without it"
        )
    gan = recipe.loss.adversarial
    if gan.discriminator == "dino" and gan.dino_file is None:
        raise ValueError(
            "loss.adversarial.dino_file: discriminator: dino needs the file "
            "dino_deitsmall16_pretrain.pth, got none; patchgan needs no file"
        )
    if recipe.trainer == "stage_1" and recipe.loss.adversarial.discriminator != "none":
        raise ValueError("loss.adversarial: stage_1 decodes no image that could be judged")
