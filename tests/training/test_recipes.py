"""Every recipe of the package: built at full size, without memory, and one real step, smaller."""

import json

import pytest
import torch
import yaml

from vqkern.losses import VisionTransformer
from vqkern.quantizers import build_quantizer
from vqkern.tokenizers import ConvConfig, build_tokenizer
from vqkern.training.build import config_of, quantizer_of
from vqkern.training.config import RECIPES, load_recipe, recipe_names
from vqkern.training.engine import train
from vqkern.training.state import build_discriminator

# Channels of the tokenizers that stages start from: VAR's has 32.
FULL_DIM = {"photographs": 8}
# A vqgan as small as it gets, f = 2.
SMALL_VQGAN = {"width": 32, "multipliers": [1, 2], "attention": [1], "blocks": 1}
# So that f = 8, or a vqgan's 2, gives the 16 x 16 places that VAR's scales are made for.
CROP = {
    "vq-transplant-stage-1": 128,
    "vq-transplant-from-scratch": 32,
    "fvq-var": 32,
    "photographs-var": 128,
}


def full_dim(name):
    return FULL_DIM.get(name.split("-")[0], 32)


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    """A file like DINO's public one, of a smaller transformer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(VisionTransformer(dim=64, depth=4, side=32, hidden=64).state_dict(), path)
    return str(path)


def needs_a_tokenizer(name):
    return "architecture" not in (load_file(name).get("tokenizer") or {})


def load_file(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", recipe_names())
def test_full_size_on_the_meta_device(name):
    more = ["--loss.lpips_file", "somewhere", "--loss.adversarial.dino_file", "somewhere"]
    more += ["--tokenizer.pretrained", "somewhere"] if needs_a_tokenizer(name) else []
    recipe = load_recipe(name, more)
    with torch.device("meta"):
        dim = full_dim(name)
        if recipe.tokenizer.architecture is not None:
            config = config_of(recipe.tokenizer.architecture)
            dim = config.latent_dim
        if recipe.quantizer.name is not None:
            quantizer = quantizer_of(recipe.quantizer, dim)
            sizes = quantizer.codebook_size
            assert sizes == recipe.quantizer.codebook_size
            if recipe.tokenizer.architecture is not None:
                tokenizer = build_tokenizer(config, quantizer)
                assert all(p.is_meta for p in tokenizer.parameters())
        build_discriminator(recipe.loss.adversarial, VisionTransformer())


# Each takes seconds to make its codes; `make soak` steps them.
LONG = {
    "fvq", "fvq-rq", "fvq-var", "mgvq", "vaevq", "vq-transplant-from-scratch",
    "vq-transplant-stage-2", "vq-transplant-stage-2-joint",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in recipe_names()]
)
def test_one_real_step_at_reduced_size(name, tmp_path, dino_file):
    dim = full_dim(name)
    small = {"latent_dim": dim, "widths": (8, 8), "blocks": (1, 1), "groups": 4}
    torch.manual_seed(0)
    more = ["--data.batch", "2", "--data.workers", "0", "--run.log_every", "1"]
    more += ["--optim.steps", "1", "--optim.warmup", "0", "--run.device", "cpu"]
    more += ["--data.crop", str(CROP.get(name, 64)), "--loss.adversarial.width", "4"]
    more += ["--loss.adversarial.start", "0"]
    if needs_a_tokenizer(name):
        quantizer = build_quantizer("vanilla", dim=dim, codebook_size=16, channel_dim=1)
        build_tokenizer(ConvConfig(**small), quantizer).save_pretrained(tmp_path / "base")
        more += ["--tokenizer.pretrained", str(tmp_path / "base")]
    elif load_file(name)["tokenizer"]["architecture"]["name"] == "vqgan":
        more += ["--tokenizer.architecture.z_channels", "8", "--data.micro_batch", "1"]
        for key, value in SMALL_VQGAN.items():
            more += [f"--tokenizer.architecture.{key}", str(value)]
        more += ["--tokenizer.architecture.latent_dim", "16"]
    else:
        more += ["--tokenizer.architecture.widths", "[8, 8]"]
        more += ["--tokenizer.architecture.blocks", "[1, 1]", "--tokenizer.start_images", "2"]
    described = load_file(name)
    if quantizer := described.get("quantizer"):
        small_codes = quantizer["name"].split("_")[0] not in ("bsq", "lfq", "fsq")
        more += ["--quantizer.codebook_size", "256"] if small_codes else []
        if "projected" in quantizer["name"]:
            more += ["--quantizer.options.projector_hidden", "8"]
    if described["loss"]["perceptual"] == "lpips":
        more += ["--loss.perceptual", "none", "--loss.adversarial.dino_file", dino_file]
    assert train(load_recipe(name, more), tmp_path / "run").skipped == 0
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert 0 < values["utilization"] <= 1 and values["error"] > 0
    adversarial = described["loss"].get("adversarial", {})["discriminator"] != "none"
    assert ("discriminator_loss" in values) == adversarial


SCALES = "scale_weights: [1, 1, 1, 2, 2, 2, 3, 3, 5, 5]"
W2 = "{name: wasserstein, weight: 0.2, squared: false}"
HARD = "commitment: 0.25, codebook_weight: 1.0"
ROWS = {  # what headers say other rows of the tables are
    "vq-transplant-stage-1": [
        {"name": "vanilla_var_projected", "options.alignment": "null"},
        {"name": "online_var_projected", "options.alignment": "null"},
        {"name": "wasserstein_var_projected", "options.alignment": W2},
        {
            "name": "ema_var_projected",
            "options": f"{{projector_form: after, commitment: 0.0, {SCALES}}}",
        },
    ],
    "unifying-view-stage-1": [
        {"name": "vanilla_halves_projected", "options.alignment": "null"},
        {"name": "online_halves_projected", "options.alignment": "null"},
        {"name": "wasserstein_halves_projected", "options.alignment": W2},
        {"name": "ema_halves_projected", "options": "{}"},
        {"name": "mmd_vp2_halves_projected"},
        {"name": "mmd_projected", "codebook_size": "16384"},
        {"name": "mmd_groups_projected", "options.groups": "8", "codebook_size": "16384"},
        {"name": "mmd_groups_projected", "options.groups": "4", "codebook_size": "128"},
    ],
    "unifying-view-sq-stage-1": [
        {"name": "lfq_halves_projected"},
        {
            "name": "fsq_halves_projected",
            "options": "{projector_dim: 16, projector_residual: false, commitment: 0.25}",
        },
    ],
    "fvq": [
        {"codebook_size": "262144"},
        {"name": "vanilla"},
        {"name": "linear"},
        {"name": "mlp"},
        {"options.depth": "4", "options.hidden": "64", "options.patch": "8"},
    ],
    "fvq-rq": [{"name": "vanilla_rq"}, {"name": "ema_rq"}],
    "vaevq": [
        {"options": f"{{rcs_weight: 0.0, dcr_weight: 0.0, {HARD}}}"},
        {"options": "{dcr_weight: 0.0}"},
        {"options": f"{{rcs_weight: 0.0, {HARD}}}"},
    ],
    "mgvq": [
        {"options": "{groups: 8}", "codebook_size": "2048"},
        {"name": "vanilla_groups"},
        {"name": "vanilla", "codebook_size": "32768", "options": "{commitment: 0.25}"},
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_other_rows_are_what_the_headers_say(name):
    header = (RECIPES / f"{name}.yaml").read_text()
    for row in ROWS[name]:
        more = ["--loss.lpips_file", "x", "--loss.adversarial.dino_file", "x"]
        more += ["--tokenizer.pretrained", "x"] if needs_a_tokenizer(name) else []
        for key, value in row.items():
            more += [f"--quantizer.{key}", value]
        recipe = load_recipe(name, more)
        architecture = recipe.tokenizer.architecture
        dim = 32 if architecture is None else architecture["latent_dim"]
        with torch.device("meta"):
            assert quantizer_of(recipe.quantizer, dim).dim == dim
        words = " ".join(line.removeprefix("# ") for line in header.splitlines())
        assert row.get("name", "").split("_")[0] in words
        assert row.get("options", "") in words


def test_headers_say_what_was_published_and_on_what():
    """Of the papers' recipes: figures, hardware and time, or that they are not known."""
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text()
        header = " ".join(line.removeprefix("#") for line in text.splitlines() if line[:1] == "#")
        if not name.startswith("photographs"):
            assert "ublished" in header and "rFID" in header, name
            assert any(word in header for word in ("H100", "A100", "A6000", "hardware")), name
            assert "hours" in header or "time" in header, name
            assert f"train {name} " in header, name
