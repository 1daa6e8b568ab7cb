"""Adapters made, saved, loaded and merged by PEFT itself, where it is installed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of layers that it corrects by itself

from transformers.pytorch_utils import Conv1D  # noqa: E402

from mirepoix.checkpoints import open_weights, write_weights  # noqa: E402
from mirepoix.merging._lora import merge_adapters  # noqa: E402
from mirepoix.merging._lora_adapter import adapter_delta, open_adapter  # noqa: E402
from mirepoix.merging._lora_dense import merge_into_base  # noqa: E402

LAYERS = ["emb", "fc", "block.fc", "turned", "conv", "attn"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.fc = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 6)})
        self.turned = Conv1D(5, 6)
        self.conv = nn.Conv2d(2, 4, 3)
        self.attn = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, words, images):
        x = self.emb(words)
        x = self.attn(x, x, x)[0]
        x = self.turned(torch.tanh(self.block["fc"](torch.tanh(self.fc(x)))))
        return self.head(x).mean(dim=(1, 2)) + self.conv(images).mean(dim=(1, 2, 3))


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 11, (4, 7), generator=generator), torch.randn(
        4, 2, 5, 5, generator=generator
    ).double()


def train(base, folder, seed, **settings):
    """A PEFT adapter with random values everywhere, saved."""
    torch.manual_seed(seed)
    options = {"r": 2, "lora_alpha": 3, "target_modules": LAYERS, "modules_to_save": ["head"], **settings}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def load(base, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def dense(base, folder):
    return load(base, folder).merge_and_unload().state_dict()


def exact(base, folders, coefficients):
    """The base and the changes PEFT makes of it, weighted."""
    start, thetas = base.state_dict(), [dense(base, folder) for folder in folders]
    return {
        name: value + sum(c * (theta[name] - value) for c, theta in zip(coefficients, thetas, strict=True))
        for name, value in start.items()
    }


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6, msg=name)


@pytest.fixture
def base():
    torch.manual_seed(7)
    return Net().double().eval()


SETTINGS = [
    {"rank_pattern": {"fc": 3}, "alpha_pattern": {"block.fc": 5}},
    {"r": 1, "use_rslora": True},
    {"r": 4, "lora_alpha": 16, "rank_pattern": {"conv": 1}, "use_rslora": True},
]


@pytest.mark.parametrize("coefficients", [(0.5, 0.3, 0.2), (1.5, -0.7, 0.2)])
@pytest.mark.parametrize("mode", ["cat", "svd"])
def test_peft_loads_the_merged_adapter_and_computes_the_soup(tmp_path, base, mode, coefficients):
    settings = [{**options, "bias": "all" if mode == "svd" else "none"} for options in SETTINGS]
    folders = [train(base, tmp_path / f"member{i}", i, **options) for i, options in enumerate(settings)]
    merge_adapters(folders, tmp_path / "out", coefficients, mode=mode, rank=9 if mode == "svd" else None)
    soup = exact(base, folders, coefficients)
    assert_close(dense(base, tmp_path / "out"), soup)
    reference = copy.deepcopy(base)
    reference.load_state_dict(soup)
    with torch.no_grad():
        got, expected = load(base, tmp_path / "out")(*inputs()), reference(*inputs())
        assert (base(*inputs()) - expected).abs().max() > 0.01
    assert (got - expected).abs().max() < 1e-6


@pytest.mark.parametrize("options", SETTINGS)
def test_one_adapter_merged_is_that_adapter_to_peft(tmp_path, base, options):
    folder = train(base, tmp_path / "one", 0, **options)
    merge_adapters([folder], tmp_path / "out", [1.0])
    with torch.no_grad():
        assert torch.equal(load(base, folder)(*inputs()), load(base, tmp_path / "out")(*inputs()))


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_dense_merge_is_that_of_peft(tmp_path, base, use_dora):
    changed = {"bias": "all", "use_dora": use_dora, "target_modules": LAYERS[:-1]}
    settings = [{**options, **changed} for options in SETTINGS]
    folders = [train(base, tmp_path / f"member{i}", i, **options) for i, options in enumerate(settings)]
    write_weights(tmp_path / "base.safetensors", base.state_dict())
    for number, coefficients in enumerate([(1, 0, 0), (0.5, 0.25, 0.25), (1.0, -0.5, 0.25)]):
        out = tmp_path / f"{number}.safetensors"
        merge_into_base(tmp_path / "base.safetensors", folders, out, coefficients)
        assert_close(dict(open_weights(out)), exact(base, folders, coefficients))


def test_the_bias_of_a_factor_is_merged_as_peft_does(tmp_path, base):
    settings = [{**options, "lora_bias": True, "target_modules": ["fc", "conv"]} for options in SETTINGS]
    folders = [train(base, tmp_path / f"member{i}", i, **options) for i, options in enumerate(settings)]
    write_weights(tmp_path / "base.safetensors", base.state_dict())
    soup = exact(base, folders, (0.5, 0.7, -0.2))
    merge_adapters(folders, tmp_path / "out", (0.5, 0.7, -0.2))
    assert_close(dense(base, tmp_path / "out"), soup)
    merge_into_base(tmp_path / "base.safetensors", folders, tmp_path / "o.safetensors", (0.5, 0.7, -0.2))
    assert_close(dict(open_weights(tmp_path / "o.safetensors")), soup)


def test_the_change_of_a_layer_is_that_of_peft(tmp_path, base):
    folder = train(base, tmp_path / "one", 0, **SETTINGS[2])
    adapter, theta, start = open_adapter(folder), dense(base, folder), base.state_dict()
    for module in ("emb", "fc", "block.fc", "turned", "conv"):
        delta = adapter_delta(adapter, module, transposed=module == "turned")
        expected = theta[f"{module}.weight"] - start[f"{module}.weight"]
        torch.testing.assert_close(torch.tensor(delta), expected, rtol=1e-6, atol=1e-6)


def test_adapters_of_different_layers_are_loaded_by_peft(tmp_path, base):
    a = train(base, tmp_path / "a", 0, target_modules=["block.fc", "emb"], modules_to_save=None)
    b = train(base, tmp_path / "b", 1, target_modules=["conv"], modules_to_save=None, use_rslora=True)
    merge_adapters([a, b], tmp_path / "out", [0.75, -2], strict=False)
    assert_close(dense(base, tmp_path / "out"), exact(base, [a, b], [0.75, -2]))
    assert set(open_adapter(tmp_path / "out").layers) == {"block.fc", "emb", "conv"}


def test_linear_of_peft_doubles_the_average_of_copies_and_cat_does_not(tmp_path, base):
    folder = train(base, tmp_path / "one", 0, modules_to_save=None, lora_alpha=2, target_modules=["fc"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base, folder)
        model.load_adapter(folder, "twin")
        model.add_weighted_adapter(["default", "twin"], [0.5, 0.5], "linear", combination_type="linear")
        model.set_adapter("linear")
        linear = model.merge_and_unload().state_dict()["fc.weight"]
    merge_adapters([folder, folder], tmp_path / "out", [0.5, 0.5])
    start, one = base.state_dict()["fc.weight"], dense(base, folder)["fc.weight"]
    torch.testing.assert_close(linear - start, 2 * (one - start), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense(base, tmp_path / "out")["fc.weight"], one, rtol=1e-6, atol=1e-6)
