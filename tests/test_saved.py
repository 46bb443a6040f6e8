"""The saved model: it comes back with its answers, here and with timm alone, and lies cannot make it do harm."""

import ast
import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from advrbd.data.files import read_image
from advrbd.errors import ModelError
from advrbd.method.gate import Check
from advrbd.model.device import choose_device
from advrbd.model.factory import ModelSpec, Network, build, choose_model
from advrbd.model.saved import load_model, loading_code, save_model
from advrbd.pipeline import Cleaned
from advrbd.reports.report import Report
from advrbd.writing import printable

CPU = choose_device("cpu")
CLASSES = ("cat", "dog", "eel")
NARROW = {"channels": (16, 32, 64, 128)}
PAGE = (Path(__file__).parents[1] / "examples" / "clean.md").read_text(encoding="utf-8")
PAGE_CODE = [block for block in re.findall(r"```python\n(.*?)\n```", PAGE, re.DOTALL) if "create_model(" in block]

SPECS = {  # every kind of stem that small images change, then those that stay as timm makes them
    "auto": ModelSpec("resnet10t", 3, 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), choose_model("auto", 32, CPU)[1]),
    "plain conv1": ModelSpec("resnet18", 3, 32, arguments=NARROW),
    "deep conv1": ModelSpec("test_resnet", 3, 64),
    "second version": ModelSpec("resnetv2_18", 3, 32, arguments=NARROW),
    "deep second version": ModelSpec("resnetv2_18d", 3, 32, arguments=NARROW),
    "patchify": ModelSpec("convnext_atto", 3, 32),
    "conv_stem": ModelSpec("mobilenetv2_035", 3, 32, (0.1, 0.5, 0.7), (0.05, 0.2, 0.3)),
    "conv_stem of TensorFlow": ModelSpec("tf_mobilenetv3_small_minimal_100", 3, 32),
    "overlapping": ModelSpec("convnext_atto_ols", 3, 32),
    "transformer": ModelSpec("test_vit", 3, 32),
    "pretrained transformer": ModelSpec("test_vit", 3, 32, pretrained=True),
    "large transformer": ModelSpec("test_vit", 3, 96),
    "large": ModelSpec("resnet18", 3, 96),
}
CHANGED = list(SPECS)[:8]

# What somebody does who has timm and no advrbd: run the lines, transform the pictures as the comment says, ask. Twice,
# the second time without the line that changes the stem, to know that the pictures tell the difference.
WITHOUT_ADVRBD = """
import os, re, sys
from pathlib import Path
sys.modules["advrbd"] = None
import numpy, torch, torchvision.transforms
from PIL import Image

def ask(code, usage):
    names = {}
    try:
        exec(code, names)
    except RuntimeError:  # weights that don't fit
        return numpy.full((4, 3), numpy.nan)
    steps = eval("[" + re.search(r"#   (Resize.*)", usage)[1] + "]", vars(torchvision.transforms))
    look = torchvision.transforms.Compose(steps)
    pictures = torch.stack([look(Image.open(f"../{number}.png")) for number in range(4)])
    with torch.no_grad():
        return names["model"](pictures).numpy()

for folder in Path(sys.argv[1]).iterdir():
    if folder.is_dir():
        os.chdir(folder)
        code, usage = Path("code.py").read_text(), Path("usage.txt").read_text()
        numpy.save("answers.npy", ask(code, usage))
        numpy.save("unchanged.npy", ask(re.sub(r"(?m)^model\\..* = .*$", "", code), usage))
"""


def trained(spec: ModelSpec) -> Network:
    """As if it had learned: no scale, bias or statistic is the 0 or 1 of a fresh model, so that each of them counts."""
    generator = torch.Generator().manual_seed(0)
    network = build(spec, CPU, generator, fetch=False)
    with torch.no_grad():
        for tensor in network.backbone.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor += 0.5 * torch.rand(tensor.shape, generator=generator)
    return network.eval()


def usage_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["advrbd"])["usage"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per model with the file, its answers without advrbd, and four pictures beside the folders."""
    root = tmp_path_factory.mktemp("saved")
    generator = np.random.default_rng(0)
    for number in range(4):
        blocks = generator.integers(0, 256, (4, 7, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)).save(root / f"{number}.png")
    for name, spec in SPECS.items():
        folder = root / name
        folder.mkdir()
        save_model(folder / "clean.safetensors", trained(spec), CLASSES)
        usage = usage_of(folder / "clean.safetensors")
        (folder / "usage.txt").write_text(usage)
        (folder / "code.py").write_text({"auto": PAGE_CODE[0], "large": PAGE_CODE[1]}.get(name, usage))
    subprocess.run([sys.executable, "-c", WITHOUT_ADVRBD, str(root)], check=True, timeout=300)
    return root


@pytest.mark.parametrize("name", SPECS)
def test_timm_alone_gives_the_answers_of_the_model(saved, name):
    network, classes = load_model(saved / name / "clean.safetensors")
    pictures = [read_image(saved / f"{number}.png", SPECS[name].image_size)[0] for number in range(4)]
    with torch.no_grad():
        expected = network(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255).numpy()
    answers, unchanged = np.load(saved / name / "answers.npy"), np.load(saved / name / "unchanged.npy")
    spread = expected.std(axis=0).min()  # how far it tells the pictures apart
    tolerance = 1e-5 + 1e-3 * spread
    assert spread > 100 * 1e-5
    assert np.allclose(answers, expected, rtol=0, atol=tolerance)
    assert np.allclose(unchanged, expected, rtol=0, atol=tolerance) == (name not in CHANGED)
    assert ast.literal_eval(usage_of(saved / name / "clean.safetensors").splitlines()[-1].lstrip("# ")) == classes


def test_the_page_shows_what_is_in_the_file(saved):
    for code, name in zip(PAGE_CODE, ("auto", "large"), strict=True):
        assert ast.dump(ast.parse(code)) == ast.dump(ast.parse((saved / name / "usage.txt").read_text()))
    assert PAGE_CODE[0].splitlines()[-4:] == (saved / "auto" / "usage.txt").read_text().splitlines()[-4:]
    shown = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "usage" in block)
    printed = subprocess.run(
        [sys.executable, "-c", shown], cwd=saved / "auto", check=True, timeout=300, capture_output=True, text=True
    )
    assert printed.stdout == (saved / "auto" / "usage.txt").read_text() + "\n"


def test_timm_takes_a_model_with_its_own_stem_as_a_checkpoint(saved):
    path = saved / "large" / "clean.safetensors"
    model = timm.create_model("resnet18", num_classes=3, checkpoint_path=str(path))
    assert all(torch.equal(tensor, load_file(path)[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="conv1"):
        timm.create_model("resnet18", checkpoint_path=str(saved / "plain conv1" / "clean.safetensors"), **NARROW)


@pytest.mark.parametrize("name", SPECS)
def test_there_are_three_statements_at_most(saved, name):
    statements = ast.parse((saved / name / "usage.txt").read_text()).body
    assert len([one for one in statements if not isinstance(one, ast.Import | ast.ImportFrom)]) <= 3


def test_the_file_is_numbers_and_a_header_and_no_pickle(saved):
    data = (saved / "auto" / "clean.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert set(header.pop("__metadata__")) == {"advrbd"}
    ranges = sorted(entry["data_offsets"] for entry in header.values())
    assert [begin for begin, _ in ranges] + [len(data) - start] == [0] + [end for _, end in ranges]


def test_layers_that_share_their_weights_are_saved_all_the_same(tmp_path):
    network = build(ModelSpec("coat_tiny", 3, 224), CPU, torch.Generator().manual_seed(0))
    names = [name for name, tensor in network.backbone.state_dict().items() if tensor.ndim > 2]
    weights = network.backbone.state_dict()
    assert len({weights[name].data_ptr() for name in names}) < len(names)  # it does share some
    save_model(tmp_path / "coat.safetensors", network, CLASSES)
    loaded, _ = load_model(tmp_path / "coat.safetensors")
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_the_same_model_is_the_same_file(tmp_path):
    network = trained(SPECS["deep conv1"])
    files = [tmp_path / str(number) / "clean.safetensors" for number in range(6)]
    for file in files:
        file.parent.mkdir()
        save_model(file, network, CLASSES)
    assert len({file.read_bytes() for file in files}) == 1


NASTY = st.sampled_from(["'", '"', '"""', "\\", "\n", "\r", "\x85", "\u2028", "\0", "\udcff", "\u202e", "#", ")", "{"])
NAMES = st.text() | st.lists(NASTY | st.just("import os; os.abort()")).map("".join)


@pytest.fixture(scope="module")
def small() -> Network:
    return build(SPECS["deep conv1"], CPU, torch.Generator())


def called(network: Network, name: str) -> Network:
    """The same network, as if timm had its model under another name."""
    renamed = copy.copy(network)
    renamed.spec = replace(network.spec, name=name)
    return renamed


@settings(max_examples=50)
@given(classes=st.lists(NAMES, min_size=1, max_size=3), path=NAMES, model=NAMES)
def test_names_stay_names_whatever_is_in_them(small, classes, path, model):
    code = loading_code(called(small, model), tuple(classes), path)
    harmless = loading_code(called(small, "MODEL"), ("cat",), "PATH")
    tree = ast.parse(code)
    literals = {node.value: node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert literals.keys() >= {path, model}
    expected = ast.dump(ast.parse(harmless)).replace("'MODEL'", repr(model)).replace("'PATH'", repr(path))
    assert ast.dump(tree) == expected
    assert ast.literal_eval(code.splitlines()[-1].lstrip("# ")) == tuple(printable(name) for name in classes)
    assert code.replace("\n", "").isprintable()


def test_a_saved_model_comes_back_with_its_classes_and_answers(tmp_path):
    spec = ModelSpec("test_resnet", 3, 16, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    network = build(spec, CPU, torch.Generator().manual_seed(0)).eval()
    cleaned = Cleaned(Report((), ()), (), Check("good", (), ()), {}, network, ("cat", "dog", "eel"), ())
    cleaned.save_model(tmp_path / "model.safetensors")
    loaded, classes = load_model(tmp_path / "model.safetensors")
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), loaded(images))
    assert classes == ("cat", "dog", "eel")


LIES = [
    {"name": "hf-hub:timm/resnet18"},
    {"name": "local-dir:."},
    {"name": 18},
    {"arguments": {"checkpoint_path": "x"}},
    {"arguments": None},
    {"class_count": 4},
    {"class_count": "many"},
    {"class_count": 2**40, "classes": ["a"]},
    {"image_size": 2**20},
    {"image_size": -32},
    {"arguments": {"stem_width": 2**16}},
    {"arguments": {"channels": [2**14] * 4}},
    {"mean": [float("nan")] * 3},
    {"image_size": 16.5},
    {"mean": [0.5]},
    {"mean": "abc"},
    {"classes": None},
    {"classes": "abc"},
    {"classes": {"a": 1, "b": 2, "c": 3}},
    {"classes": [1, None, {}]},
    {"arguments": {"channels": []}},
    {"mean": [10**400] * 3},
    {"std": [10**400] * 3},
    {"mean": [1e308] * 3},
    {"std": [0.0] * 3},
    {"std": [-0.25] * 3},
    {"unheard": "of"},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_file_that_lies_about_its_model_is_refused(saved, tmp_path, lie):
    path = saved / "deep conv1" / "clean.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["advrbd"])
    save_file(load_file(path), tmp_path / "model.safetensors", {"advrbd": json.dumps(about | lie)})
    with pytest.raises(ModelError):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("block", [None, "", "{", "[]", '"text"', "1", "{}"])
def test_a_file_without_a_description_is_refused(tmp_path, block):
    metadata = None if block is None else {"advrbd": block}
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ModelError, match="no model saved by advrbd"):
        load_model(tmp_path / "model.safetensors")


def test_code_in_a_received_file_is_neither_run_nor_needed(saved, tmp_path):
    path = saved / "deep conv1" / "clean.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["advrbd"])
    about["usage"] = f"open({str(tmp_path / 'owned')!r}, 'w')"
    save_file(load_file(path), tmp_path / "model.safetensors", {"advrbd": json.dumps(about)})
    assert load_model(tmp_path / "model.safetensors")[1] == CLASSES
    assert not (tmp_path / "owned").exists()
    del about["usage"]
    save_file(load_file(path), tmp_path / "older.safetensors", {"advrbd": json.dumps(about)})
    assert load_model(tmp_path / "older.safetensors")[1] == CLASSES


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="no model saved by advrbd"):
        load_model(tmp_path / "model.safetensors")


def header(text: bytes, claimed: int | None = None, rest: bytes = b"\0" * 4) -> bytes:
    """A safetensors file with this header, and the length that it claims for it."""
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + rest


TENSOR = '"{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        header(b"{}", claimed=2**62),
        header(b"{}", claimed=99_000_000),
        header(b"{" + b'"a":{' * 50_000),
        header(b'{"__metadata__":{"advrbd":3},' + TENSOR.format("w").encode() + b"}"),
        header(b'{"__metadata__":{"advrbd":"' + b"[" * 100_000 + b'"},' + TENSOR.format("w").encode() + b"}"),
        header(b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
        header(b"{" + TENSOR.format("../../w").encode() + b"}"),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_a_hostile_header_is_one_error(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="no model saved by advrbd"):
        load_model(tmp_path / "model.safetensors")


def test_weights_by_other_names_are_refused(saved, tmp_path):
    path = saved / "deep conv1" / "clean.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({f"x.{name}": tensor for name, tensor in load_file(path).items()}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(ModelError, match="other weights than its description says"):
        load_model(tmp_path / "m.safetensors")
