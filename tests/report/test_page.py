"""The page: whole in one file, safe with any text, and honest about what is missing."""

import csv
import json
import re

import pytest
import torch

from vqkern.report import Curve, Row, RunRecord, Strip, format_table, write_page, write_results
from vqkern.report.environment import PeakMemory, describe_environment
from vqkern.report.results import even_use

EVIL = "<script>alert('x')</script>&\"pic\".png"


def row(name, codebook_size=64):
    return Row(name, codebook_size, 0.5, 0.91, 50.0, 25.0, 0.8, 1e5, 512.0)


def record(rows=2):
    names = [f"tokenizer {i}" for i in range(rows)]
    strip = Strip(EVIL, EVIL, torch.zeros(3, 16, 16))
    strip.reconstructions.extend((name, torch.full((3, 16, 16), 0.1), 20.0) for name in names)
    return RunRecord(
        title="a run",
        command=f"vqkern demo --data {EVIL}",
        settings={"data": EVIL},
        environment={"torch": EVIL},
        usage_tokens=256,
        memory_note="test.",
        rows=[row(name) for name in names],
        curves=[Curve("stage I / MMD", "quantization error", [1, 2, 3], [3.0, 2.0, 1.0])],
        strips=[strip],
        usage={name: torch.arange(64).flip(0) for name in names},
        seconds=61.0,
    )


def page(tmp_path, built):
    write_page(built, tmp_path / "report.html", "A headline.", "A caveat.")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_escaped(tmp_path):
    text = page(tmp_path, record())
    assert (
        "http:" not in text
        and "https:" not in text
        and text.count("<script") == 1
        and "url(" not in text.replace("url(#", "")
    )
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]*)", text)
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "&lt;script&gt;" in text and "A headline." in text and "A caveat." in text
    assert all(f"<th scope='row'>tokenizer {i}</th>" in text for i in range(2))
    assert "91.0 %" in text and "of 98.2 %" in text
    for image in re.findall(r"<img [^>]*>", text):
        assert "alt='" in image
    assert text.count("role='img'") == text.count("<svg") == 2


@pytest.mark.parametrize("rows", [0, 1])
def test_unfinished_run_says_so_and_leaves_out_what_is_missing(tmp_path, rows):
    built = record(rows)
    built.stopped = "Interrupted during stage I, 3 of 10 steps done."
    text = page(tmp_path, built)
    assert "Unfinished" in text and "3 of 10 steps" in text
    assert ("Held-out regions" in text) == ("Codebook use" in text) == (rows > 0)


def test_table_prints_every_row_and_what_even_use_would_give():
    text = format_table(record())
    assert "tokenizer 0" in text and "tokenizer 1" in text and "91.0 %" in text
    assert "utilization of 98.2 % at 64 codes" in text
    assert even_use(4 * 65536, 65536) == pytest.approx(0.98168, abs=1e-5)


def test_files_hold_the_unrounded_figures(tmp_path):
    built = record()
    write_results(built, tmp_path)
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["tokenizer 0", "tokenizer 1"]
    assert float(lines[0]["quantization_error"]) == 0.5
    described = json.loads((tmp_path / "results.json").read_text())
    assert described["rows"][1]["utilization"] == 0.91
    assert described["curves"][0]["values"] == [3.0, 2.0, 1.0]


def test_environment_and_memory_are_measured():
    facts = describe_environment(torch.device("cpu"))
    assert facts["torch"] == torch.__version__ and facts["processor"]
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    before = memory.read()
    block = torch.ones(32 * 2**20)  # 128 MiB
    assert memory.read() > before + 100
    del block
