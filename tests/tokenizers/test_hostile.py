"""Files that mean harm, or are broken: each refused with one clear line, and nothing else happens.

No code in them runs, nothing is written, and what they ask for is not allocated.
"""

import collections
import copy
import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizer_cases import TINY, tiny_file

from vqkern import build_quantizer
from vqkern.tokenizers import build_tokenizer, from_original, from_pretrained

MARK = "VQKERN_CODE_RAN"
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Runs:
    """A pickle that calls something."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def set_mark():
    os.environ[MARK] = "1"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The files that are damaged, by suffix, and a folder of our own."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_file(folder / "sound.safetensors", "llamagen")
    tiny_file(folder / "sound.pt", "llamagen")
    q = build_quantizer("vanilla_rq", dim=8, codebook_size=16, channel_dim=1)
    build_tokenizer(TINY, q).save_pretrained(folder / "own")
    return folder


# Damage to the bytes of a safetensors file: header (a dict) and data -> bytes.


def whole(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def edited(key, **changes):
    def damage(header, data):
        header[key] = {**header[key], **changes}
        return whole(header, data)

    return damage


def renamed(old, new):
    def damage(header, data):
        header[new] = header.pop(old)
        return whole(header, data)

    return damage


def without(*keys):
    def damage(header, data):
        return whole({k: v for k, v in header.items() if k not in keys}, data)

    return damage


def added(key, described):
    def damage(header, data):
        return whole({**header, key: described}, data)

    return damage


BIAS = "encoder.conv_in.bias"  # [32]


def overlapping(header, data):
    header[BIAS] = {**header[BIAS], "data_offsets": [4, 132]}
    return whole(header, data)


def all_in_one_place(header, data):
    for described in header.values():
        if described["shape"] == [32]:
            described["data_offsets"] = header[BIAS]["data_offsets"]
    return whole(header, data)


SAFETENSORS = {
    "empty": lambda h, d: b"",
    "seven bytes": lambda h, d: b"\0" * 7,
    "zeros": lambda h, d: b"\0" * 4096,
    "text": lambda h, d: b"<!doctype html><title>404</title>" * 9,
    "a pickle": lambda h, d: pickle.dumps(Runs(set_mark)),
    "header of 2^63 bytes": lambda h, d: whole(h, d, length=2**63),
    "header of 2^40 bytes": lambda h, d: whole(h, d, length=2**40),
    "header past the end": lambda h, d: whole(h, d, length=len(json.dumps(h)) + len(d) + 1),
    "header cut": lambda h, d: whole(h, d, length=len(json.dumps(h)) // 2),
    "header of 20 MB": lambda h, d: whole(json.dumps(h).encode() + b" " * 20 * 2**20, d),
    "header no JSON": lambda h, d: whole(b"{" * 900, d),
    "header a list": lambda h, d: whole(b"[]", d),
    "header nested": lambda h, d: whole(b'{"a":' * 50000 + b"1" + b"}" * 50000, d),
    "header not UTF-8": lambda h, d: whole(b'{"\xff": 1}', d),
    "data cut": lambda h, d: whole(h, d[:-1]),
    "data gone": lambda h, d: whole(h, b""),
    "data too long": lambda h, d: whole(h, d + b"\0" * 64),
    "offsets negative": edited(BIAS, data_offsets=[-128, 0]),
    "offsets reversed": edited(BIAS, data_offsets=[128, 0]),
    "offsets past the end": edited(BIAS, data_offsets=[2**40, 2**40 + 128]),
    "offsets of 2^64": edited(BIAS, data_offsets=[0, 2**64]),
    "offsets overlap": overlapping,
    "tensors in one place": all_in_one_place,
    "shape of 10^12": edited(BIAS, shape=[10**12]),
    "shape that overflows": edited(BIAS, shape=[2**32, 2**32, 2**32]),
    "shape negative": edited(BIAS, shape=[-32]),
    "shape of another rank": edited(BIAS, shape=[4, 8]),
    "dtype unknown": edited(BIAS, dtype="F31"),
    "dtype of integers": edited(BIAS, dtype="I32"),
    "dtype of half the bytes": edited(BIAS, dtype="F16", shape=[64]),
    "dtype of 8 bits": edited(BIAS, dtype="F8_E4M3", shape=[128]),
    "key missing": without(BIAS),
    "key unexpected": added("x", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "key renamed": renamed(BIAS, "encoder.conv_in.biased"),
    "key a path": renamed(BIAS, "../../encoder.conv_in.bias"),
    "key of a million letters": renamed(BIAS, "k" * 10**6),
    "a hundred thousand keys": lambda h, d: whole(
        {
            **h,
            **{
                f"encoder.conv_blocks.{n}.x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for n in range(100000)
            },
        },
        d,
    ),
    "levels by the thousand": renamed(BIAS, "decoder.conv_blocks.9999.res.0.norm1.bias"),
}


# Damage to the tensors: a state dict -> a state dict that either kind of file can hold.


def put(key, make):
    def damage(state):
        state[key] = make(state[key])
        return state

    return damage


def poisoned(value):
    def make(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return make


CODES = "quantize.embedding.weight"
TENSORS = {
    "NaN": put(CODES, poisoned(float("nan"))),
    "infinity": put("decoder.conv_out.weight", poisoned(float("inf"))),
    "minus infinity in a norm": put("encoder.norm_out.weight", poisoned(float("-inf"))),
    "codes transposed": put(CODES, lambda t: t.T.contiguous()),
    "no codes": put(CODES, lambda t: t[:0]),
    "codes without channels": put(CODES, lambda t: t[:, :0]),
    "codes of more channels": put(CODES, lambda t: torch.zeros(16, 9)),
    "one code as a vector": put(CODES, lambda t: t[0].clone()),
    "double precision": put(CODES, lambda t: t.double()),
    "half precision": put(BIAS, lambda t: t.half()),
    "a kernel of another size": put("quant_conv.weight", lambda t: torch.zeros(8, 8, 2, 2)),
    "a kernel of rank 2": put("quant_conv.weight", lambda t: t[:, :, 0, 0].clone()),
    "no channels at all": put("encoder.conv_in.weight", lambda t: t[:0]),
    "width 1": put("encoder.conv_in.weight", lambda t: torch.zeros(1, 3, 3, 3)),
    "gray images": put("encoder.conv_in.weight", lambda t: t[:, :1].clone()),
    "query of another size": put("encoder.mid.1.q.weight", lambda t: t[:8].clone()),
}


# Files by torch.save and by pickle.


def saved(make):
    def damage(state):
        file = io.BytesIO()
        torch.save(make(state), file)
        return file.getvalue()

    return damage


def bytes_of(change):
    def damage(state):
        return change(saved(lambda s: s)(state))

    return damage


def rezipped(change, compression=zipfile.ZIP_STORED):
    """A file by torch.save with its members changed: names and contents -> the same."""

    def damage(state):
        source = zipfile.ZipFile(io.BytesIO(saved(lambda s: s)(state)))
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", compression) as out:
            for name in source.namelist():
                for new, content in change(name, source.read(name)):
                    out.writestr(new, content)
        return target.getvalue()

    return damage


def expanded(state):
    state[BIAS] = torch.zeros(1).expand(10**12)
    return state


def view_past_its_storage(state):
    class Rebuild:
        def __reduce__(self):
            storage = torch.zeros(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (
                storage,
                2**40,
                (32,),
                (1,),
                False,
                collections.OrderedDict(),
            )

    state[BIAS] = Rebuild()
    return state


PICKLES = {
    "code": saved(lambda s: {**s, "x": Runs(set_mark)}),
    "a shell": saved(lambda s: Runs(os.system, f"touch {MARK}")),
    "eval": saved(lambda s: Runs(eval, f"__import__('os').environ.setdefault({MARK!r}, '1')")),
    "code as a key": saved(lambda s: {(): Runs(exec, "raise SystemExit")}),
    "getattr": saved(lambda s: {**s, "x": Runs(getattr, "a", "upper")}),
    "a path": saved(lambda s: {**s, "x": Path("/etc/passwd")}),
    "a whole module": saved(lambda s: {**s, "x": torch.nn.Linear(2, 2)}),
    "code without a zip": lambda s: pickle.dumps(Runs(set_mark)),
    "code, protocol 0": lambda s: pickle.dumps(Runs(set_mark), protocol=0),
    "code in the old format": lambda s: (
        pickle.dumps(119547037146038801333356)
        + pickle.dumps(1001)
        + pickle.dumps({})
        + pickle.dumps(Runs(set_mark))
    ),
    "empty": lambda s: b"",
    "text": lambda s: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "cut": bytes_of(lambda b: b[: len(b) // 2]),
    "end cut": bytes_of(lambda b: b[:-30]),
    "start cut": bytes_of(lambda b: b[100:]),
    "a zip of nothing": lambda s: b"PK\x05\x06" + b"\0" * 18,
    "a member gone": rezipped(lambda n, c: [] if n.endswith("data/3") else [(n, c)]),
    "a member cut": rezipped(lambda n, c: [(n, c[:-4] if n.endswith("data/3") else c)]),
    "members packed": rezipped(lambda n, c: [(n, c)], zipfile.ZIP_DEFLATED),
    "a bomb": rezipped(
        lambda n, c: [(n, b"\0" * 2**28 if n.endswith("data/3") else c)], zipfile.ZIP_DEFLATED
    ),
    "members with ..": rezipped(lambda n, c: [("../../" + n, c)]),
    "pickle of noise": rezipped(
        lambda n, c: [(n, bytes(range(256)) if n.endswith("data.pkl") else c)]
    ),
    "pickle that runs code": rezipped(
        lambda n, c: [(n, pickle.dumps(Runs(set_mark)) if n.endswith("data.pkl") else c)]
    ),
    "a list": saved(lambda s: list(s.values())),
    "a number": saved(lambda s: 3),
    "nothing in the wrapper": saved(lambda s: {"model": None}),
    "numbers for names": saved(lambda s: dict(enumerate(s.values()))),
    "text for tensors": saved(lambda s: {**s, BIAS: "zeros"}),
    "a list for a tensor": saved(lambda s: {**s, BIAS: [0.0] * 32}),
    "a nest of wrappers": saved(lambda s: {"model": {"model": s}}),
    "a sparse tensor": saved(lambda s: {**s, BIAS: torch.zeros(32).to_sparse()}),
    "a tensor on meta": saved(lambda s: {**s, BIAS: torch.zeros(32, device="meta")}),
    "complex numbers": saved(lambda s: {**s, BIAS: torch.zeros(32, dtype=torch.complex64)}),
    "a view of 10^12 numbers": saved(expanded),
    "a view past its storage": saved(view_past_its_storage),
}


# Damage to config.json of a folder of our own: a dict -> a dict, or bytes.


def nested(part, **changes):
    def damage(config):
        config[part] = {**config[part], **changes}
        return config

    return damage


CONFIGS = {
    "no JSON": lambda c: b"{",
    "nested 100,000 deep": lambda c: b"[" * 100000,
    "two megabytes": lambda c: json.dumps(c).encode() + b" " * 2**21,
    "not UTF-8": lambda c: b"\xff\xfe{}",
    "a list": lambda c: [c],
    "a later version": lambda c: {**c, "format_version": 99},
    "architecture a list": lambda c: {**c, "architecture": ["vqgan"]},
    "architecture's name a list": nested("architecture", name=["vqgan"]),
    "another architecture": nested("architecture", name="os.system"),
    "architecture's keys": nested("architecture", __class__="x"),
    "width of 10^18": nested("architecture", width=10**18),
    "width of 2^20": nested("architecture", width=2**20, z_channels=2**20),
    "10^9 blocks": nested("architecture", blocks=10**9),
    "10^5 levels": nested("architecture", multipliers=[1] * 10**5),
    "a kernel of 10^9": nested("architecture", quant_kernel=10**9 + 1),
    "width NaN": nested("architecture", width=float("nan")),
    "width text": nested("architecture", width="32"),
    "attention nowhere": nested("architecture", attention=[-1]),
    "quantizer a list": lambda c: {**c, "quantizer": []},
    "quantizer of no name": nested("quantizer", name=None),
    "quantizer's name of 10^6 parts": nested("quantizer", name="vanilla" + "_rq" * 10**6),
    "quantizer unknown": nested("quantizer", name="__import__"),
    "quantizer's option unknown": nested("quantizer", weights_only=False),
    "10^15 codes": nested("quantizer", codebook_size=10**15),
    "2^40 codes": nested("quantizer", codebook_size=2**40),
    "another number of codes": nested("quantizer", codebook_size=17),
    "codes of 10^12 channels": nested("quantizer", dim=10**12),
    "depth 10^9": nested("quantizer", depth=10**9),
    "depth 10^9 of own codebooks": nested("quantizer", depth=10**9, shared=False),
    "patches of 10^6": nested("quantizer", name="vanilla_var", patch_sizes=[1, 10**6]),
    "groups by the million": nested("quantizer", name="vanilla_groups", groups=10**6),
    "projectors of 10^9": nested("quantizer", name="vanilla_projected", projector_hidden=10**9),
    "commitment of 10^400": nested("quantizer", commitment=float("inf")),
    "another channel dimension": nested("quantizer", channel_dim=-1),
    "an original unknown": lambda c: {**c, "original": "../var"},
}


def refused(call, path, work):
    """Calls, and asserts all that must hold of a refusal."""
    before = {p: p.lstat().st_size for p in work.rglob("*")}
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert str(path.parent) in message, message  # which file it is
    assert "\n" not in message and len(message) < 2500, message
    assert MARK not in os.environ and not Path(MARK).exists()
    assert {p: p.lstat().st_size for p in work.rglob("*")} == before
    return message


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """Whatever these files ask for is not allocated: the peak stays where it was."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 700 * 1024  # KiB; the test's own bomb takes 256 MiB to make


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_safetensors(tmp_path, originals, damage):
    sound = (originals / "sound.safetensors").read_bytes()
    length = struct.unpack("<Q", sound[:8])[0]
    header = json.loads(sound[8 : 8 + length])
    header.pop("__metadata__", None)
    path = tmp_path / "t.safetensors"
    path.write_bytes(SAFETENSORS[damage](header, sound[8 + length :]))
    refused(lambda: from_original("llamagen", path), path, tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("damage", TENSORS)
def test_tensors(tmp_path, originals, damage, kind):
    state = TENSORS[damage](load_file(originals / "sound.safetensors"))
    path = tmp_path / f"t.{kind}"
    if kind == "pt":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    refused(lambda: from_original("llamagen", path), path, tmp_path)


@pytest.mark.parametrize("damage", PICKLES)
def test_pickles(tmp_path, originals, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_file(originals / "sound.safetensors")
    path = tmp_path / "t.pt"
    path.write_bytes(PICKLES[damage](state))
    message = refused(lambda: from_original("llamagen", path), path, tmp_path)
    if "code" in damage or damage in ("a shell", "eval", "getattr", "a path", "a whole module"):
        assert "can run code" in message or "cannot be read" in message
        assert "weights_only=False" not in message and "add_safe_globals" not in message


@pytest.mark.parametrize("damage", CONFIGS)
def test_configs(tmp_path, originals, damage):
    shutil.copytree(originals / "own", tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    damaged = CONFIGS[damage](copy.deepcopy(json.loads(path.read_text())))
    path.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
    refused(lambda: from_pretrained(tmp_path / "own"), path, tmp_path)


@pytest.mark.parametrize("damage", ["empty", "header of 2^40 bytes", "data cut", "a pickle"])
def test_weights_of_our_own(tmp_path, originals, damage):
    shutil.copytree(originals / "own", tmp_path / "own")
    path = tmp_path / "own" / "model.safetensors"
    sound = path.read_bytes()
    length = struct.unpack("<Q", sound[:8])[0]
    content = SAFETENSORS[damage](json.loads(sound[8 : 8 + length]), sound[8 + length :])
    path.write_bytes(content)
    refused(lambda: from_pretrained(tmp_path / "own"), path, tmp_path)


def test_links_and_folders_in_the_place_of_files(tmp_path):
    (tmp_path / "t.pt").mkdir()
    (tmp_path / "u.safetensors").symlink_to(tmp_path / "nowhere")
    for name in ("t.pt", "u.safetensors", "v.pt"):
        path = tmp_path / name
        assert "is missing" in refused(lambda p=path: from_original("var", p), path, tmp_path)


def test_the_sound_files_load(originals):
    """What is damaged above is nothing else."""
    for name in ("sound.pt", "sound.safetensors"):
        from_original("llamagen", originals / name)
    from_pretrained(originals / "own")
    cases = len(SAFETENSORS) + 2 * len(TENSORS) + len(PICKLES) + len(CONFIGS)
    assert cases >= 100
