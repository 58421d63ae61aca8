"""Every recipe of the package: built at full size, without memory, and one real step, smaller."""

import json

import pytest
import torch

from vqkern.quantizers import build_quantizer
from vqkern.tokenizers import ConvConfig, build_tokenizer
from vqkern.training.build import config_of, quantizer_of
from vqkern.training.config import load_recipe, recipe_names
from vqkern.training.engine import train
from vqkern.training.state import build_adversary

FULL_DIM = {"vq-transplant-stage-1": 32, "unifying-view-stage-1": 32}
# f = 8, so that crops of 128 give the 16 x 16 tokens that VAR's scales are made for.
CROP = {"vq-transplant-stage-1": 128}


def needs_a_tokenizer(name):
    return "architecture" not in (load_file(name).get("tokenizer") or {})


def load_file(name):
    import yaml

    from vqkern.training.config import RECIPES

    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", recipe_names())
def test_full_size_on_the_meta_device(name):
    more = ["--tokenizer.pretrained", "somewhere"] if needs_a_tokenizer(name) else []
    recipe = load_recipe(name, more)
    with torch.device("meta"):
        dim = FULL_DIM.get(name, 8)
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
        build_adversary(recipe.loss.adversarial)


@pytest.mark.parametrize("name", recipe_names())
def test_one_real_step_at_reduced_size(name, tmp_path):
    dim = FULL_DIM.get(name, 8)
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
    else:
        more += ["--tokenizer.architecture.widths", "[8, 8]"]
        more += ["--tokenizer.architecture.blocks", "[1, 1]", "--tokenizer.start_images", "2"]
    if load_file(name).get("quantizer"):
        more += ["--quantizer.codebook_size", "256"]
    assert train(load_recipe(name, more), tmp_path / "run").skipped == 0
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert 0 < values["utilization"] <= 1 and values["error"] > 0
    assert ("judge" in values) == (name == "photographs-vqgan")
