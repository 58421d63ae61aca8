"""The Python examples of the README and of every page in docs/ run as they stand."""

import re
from pathlib import Path

import pytest

from vqkern.quantizers import CODEBOOK_FREE, PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(page, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    )
]


@pytest.mark.parametrize("page,code", EXAMPLES)
def test_example_runs(page, code):
    exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize("name", [*PRESETS, *CODEBOOK_FREE, "mgvq", "ema_rq", "mmd_halves"])
def test_the_readme_s_autoencoder_takes_any_quantizer(name):
    (code,) = (e.values[1] for e in EXAMPLES if "Conv2d(3, 8" in e.values[1])
    options = {"fsq": "levels=(8,) * 8, ", "lfq": "", "bsq": ""}.get(name, "")
    size = {"fsq": 8**8, "lfq": 2**8, "bsq": 2**8}.get(name, 4096)
    code = code.replace(
        '"mmd", dim=8, codebook_size=4096', f'"{name}", dim=8, {options}codebook_size={size}'
    )
    if name == "vaevq":  # mean and variance of every channel
        code = code.replace("Conv2d(3, 8", "Conv2d(3, 16")
    exec(compile(code, name, "exec"), {})


def test_the_pages_have_examples_and_the_readme_both_commands():
    assert len(EXAMPLES) >= 3
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text and "make test" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
