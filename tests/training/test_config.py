"""Recipes: typed, strict, and each of those that come with the package can be run."""

import pytest
import yaml

from vqkern.cli import main
from vqkern.training.batches import Share
from vqkern.training.config import differences, from_mapping, load_recipe, to_mapping, to_yaml
from vqkern.training.recipe import DataSettings, Recipe

GOOD = {
    "trainer": "from_scratch",
    "tokenizer": {"architecture": {"name": "conv"}},
    "quantizer": {"name": "vanilla", "codebook_size": 64},
}


def written(tmp_path, described):
    file = tmp_path / "recipe.yaml"
    file.write_text(described if isinstance(described, str) else yaml.safe_dump(described))
    return str(file)


def test_overrides_are_typed_and_the_resolved_recipe_reads_back(tmp_path):
    more = ["--optim.lr", "5e-5", "--optim.betas=[0.8, 0.9]", "--data.micro_batch", "4"]
    more += ["--quantizer.options.commitment", "0.5", "--optim.clip", "null"]
    recipe = load_recipe(written(tmp_path, GOOD), more)
    assert recipe.optim.lr == 5e-5 and recipe.optim.betas == (0.8, 0.9)
    assert recipe.data.micro_batch == 4 and recipe.optim.clip is None
    assert recipe.quantizer.options == {"commitment": 0.5}
    again = load_recipe(written(tmp_path, to_yaml(recipe)))
    assert again == recipe and from_mapping(Recipe, to_mapping(recipe)) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--optim.learning_rate", "1"], "unknown key optim.learning_rate; known: steps, lr"),
        (["--optim.warm_up", "1"], "unknown key optim.warm_up; did you mean optim.warmup?"),
        (["--tariner", "x"], "unknown key tariner; did you mean trainer?"),
        (["--trainer", "stage_3"], "trainer: got 'stage_3', expected one of stage_1"),
        (["--optim.steps", "many"], "optim.steps: expected an integer, got 'many'"),
        (["--optim.steps", "1.5"], "optim.steps: expected an integer, got 1.5"),
        (["--optim.compile", "1"], "optim.compile: expected true or false, got 1"),
        (["--optim.lr", "-1"], "optim.lr: got -1.0, expected a finite number of at least 0"),
        (
            ["--optim.codebook_lr", "0.5", "--optim.codebook_weight_decay", "3"],
            "optim.codebook_weight_decay: got 3.0; a step takes rate x decay of a parameter away",
        ),
        (["--optim.betas", "[0.9]"], "optim.betas: expected a list like"),
        (["--optim", "3"], "optim: expected keys and values, got 3"),
        (["--data.batch", "0"], "data.batch: got 0, expected at least 1"),
        (["--loss.perceptual", "vgg"], "loss.perceptual: got 'vgg'"),
        (["--loss.perceptual", "lpips"], "lpips needs the file vgg16-397923af.pth"),
        (["--loss.adversarial.augment", "[blur]"], "loss.adversarial.augment: got 'blur'"),
        (["--tokenizer.pretrained", "x"], "tokenizer: expected either pretrained"),
        (["--trainer", "stage_2"], "tokenizer.pretrained: trainer stage_2 starts from"),
        (["--quantizer.name", "null"], "quantizer.name: a fresh tokenizer needs a quantizer"),
        (["--optim.lr"], "--optim.lr: expected a value after it"),
        (["optim.lr", "1"], "expected --some.key VALUE, got 'optim.lr'"),
        (["--optim.lr", "[1"], "--optim.lr: not YAML"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named_in_one_line(tmp_path, capsys, change, message):
    file = written(tmp_path, GOOD)
    assert main(["train", file, "--out", str(tmp_path / "run"), *change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: [", "not YAML"),
        ("- 1", "expected keys and values"),
        ("data: {batch: 4}", "trainer is missing"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_files_that_are_no_recipe_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(written(tmp_path, text))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match="'nothing' does not exist.*photographs-stage-1"):
        load_recipe("nothing")


def test_differences_name_every_value():
    old = to_mapping(from_mapping(Recipe, GOOD))
    new = to_mapping(from_mapping(Recipe, {**GOOD, "optim": {"lr": 1.0}, "data": {"crop": 64}}))
    assert differences(old, new) == ["data.crop: 256, now 64", "optim.lr: 0.0001, now 1.0"]
    assert differences(old, old) == []


def test_shares_of_a_batch_are_its_images_in_order_once_each():
    for ranks, size in ((1, None), (2, 3), (4, 3), (4, 1)):
        data = DataSettings(batch=12, micro_batch=size)
        shares = [Share.of(data, rank, ranks) for rank in range(ranks)]
        numbers = [n for share in shares for micro in share.numbers(5) for n in micro]
        assert numbers == list(range(60, 72))


@pytest.mark.parametrize(
    ("ranks", "size", "message"),
    [(5, None, "12 images cannot be shared by 5 ranks"), (2, 4, "6 images are not a multiple")],
)
def test_ranks_that_do_not_divide_the_batch_are_named(ranks, size, message):
    with pytest.raises(ValueError, match=message):
        Share.of(DataSettings(batch=12, micro_batch=size), 0, ranks)
