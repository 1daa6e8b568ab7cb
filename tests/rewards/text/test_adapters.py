import json

import numpy as np
import pytest

pytest.importorskip("peft", reason="pip install 'mirepoix[text]'")

import torch

from mirepoix import interpolate
from mirepoix.checkpoints import open_weights
from mirepoix.merging import LoraAdapter, adapter_delta, open_adapter
from mirepoix.rewards import Expert, simplex_lattice, sweep
from mirepoix.rewards.text import AdaptedWeights, TextModel, TextStart, interpolate_adapters, soup
from mirepoix.rewards.text._libraries import quiet
from mirepoix.types import InputError

PROMPTS = ["the film is", "the plot was dull and", "the"]


def logits(start, theta):
    model = TextModel(start, device="cpu")
    model.write_(theta)
    with torch.no_grad():
        return model.network(**start.tokenizer(PROMPTS, return_tensors="pt", padding=True)).logits.double()


def dense(start, adapters, shares):
    """W_0 + sum lambda s B A, layer by layer with loops over the rank."""
    theta = {name: tensor.double().numpy().copy() for name, tensor in dict(start.weights).items()}
    for adapter, share in zip(adapters, shares, strict=True):
        for module, layer in adapter.layers.items():
            b, a = adapter.factors(module)
            for k in range(layer.rank):
                theta[f"{module}.weight"] += share * layer.scale * np.outer(b[:, k], a[k])
    return theta


def random_adapter(expert, seed):
    """An adapter of the same layers with factors of its own."""
    (adapter,) = expert.adapters.values()
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(size=shape).astype(np.float32)
        for layer in adapter.layers.values()
        for name, shape in (layer.a, layer.b)
    }
    return LoraAdapter(adapter.config, tensors, f"random {seed}")


def test_an_expert_is_what_peft_computes(start, trained, tmp_path):
    import peft

    _, experts = trained
    expert = experts["sentiment"]
    expert.save_adapter(tmp_path / "adapter")
    with quiet():
        model = peft.PeftModel.from_pretrained(start.model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = model(**start.tokenizer(PROMPTS, return_tensors="pt", padding=True)).logits
    torch.testing.assert_close(found.double(), logits(start, expert), atol=1e-5, rtol=0)
    assert not torch.equal(expert[expert.changed[0]], start.weights[expert.changed[0]])
    assert set(expert) == set(start.weights)


def test_the_ends_of_a_soup_are_its_experts(trained):
    _, experts = trained
    for name in experts:
        one = soup(experts, {other: float(other == name) for other in experts})
        for key in one:
            assert torch.equal(one[key], experts[name][key])


def test_a_soup_is_the_average_of_dense_weights(start, trained):
    _, experts = trained
    adapters = [random_adapter(experts["length"], seed) for seed in (1, 2, 3)]
    members = {
        str(i): AdaptedWeights(start.weights, {str(i): adapter}, record=experts["length"].record)
        for i, adapter in enumerate(adapters)
    }
    shares = {"0": 0.2, "1": 0.5, "2": 0.3}
    exact = dense(start, adapters, shares.values())
    lazy = soup(members, shares)
    averaged = interpolate(list(members.values()), list(shares.values()))
    listed = interpolate_adapters(list(members.values()), list(shares.values()))
    for name, expected in exact.items():
        for theta in (lazy, averaged, listed):
            np.testing.assert_allclose(
                theta[name].numpy(), expected, atol=1e-5 * (1 + np.abs(expected).max())
            )
    negative = soup(members, {"0": 1.5, "1": -0.5, "2": 0.0})
    for name, expected in dense(start, adapters, (1.5, -0.5, 0)).items():
        np.testing.assert_allclose(negative[name].numpy(), expected, atol=1e-5 * (1 + np.abs(expected).max()))


def test_two_equal_experts_are_one(trained):
    """Scaling both factors by the root of lambda, as PEFT's 'linear' does, would double the change."""
    _, experts = trained
    expert = experts["sentiment"]
    both = soup({"a": expert, "b": expert}, {"a": 0.5, "b": 0.5})
    for name in both:
        torch.testing.assert_close(both[name], expert[name], atol=1e-7, rtol=0)


@pytest.mark.parametrize("mode", ["delta", "factor"])
def test_what_is_saved_says_the_same(start, trained, tmp_path, mode):
    _, experts = trained
    mixed = soup(experts, {"sentiment": 0.3, "length": 0.7}, lora_mode=mode)
    report = mixed.save_adapter(tmp_path / "adapter")
    assert report.mode == ("cat" if mode == "delta" else "factor")
    assert (report.lost_energy == 0) == (mode == "delta")
    loaded = AdaptedWeights(start.weights, {"x": open_adapter(tmp_path / "adapter")})
    torch.testing.assert_close(logits(start, loaded), logits(start, mixed), atol=1e-5, rtol=0)
    mixed.save_model(tmp_path / "model", start)
    torch.testing.assert_close(
        logits(TextStart(tmp_path / "model"), {}), logits(start, mixed), atol=1e-5, rtol=0
    )
    assert TextStart(tmp_path / "model").identity["tokenizer"] == start.identity["tokenizer"]
    with pytest.raises(InputError, match="exists already"):
        mixed.save_model(tmp_path / "model", start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_averaged_factors_are_wrong_by_the_cross_terms(start, trained):
    _, experts = trained
    adapters = [random_adapter(experts["length"], seed) for seed in (1, 2)]
    mixed = AdaptedWeights(
        start.weights, dict(zip("ab", adapters, strict=True)), {"a": 0.25, "b": 0.75}, mode="factor"
    )
    reports = {layer.module: layer for layer in mixed.factor_report().layers}
    for module, layer in adapters[0].layers.items():
        (b1, a1), (b2, a2) = (adapter.factors(module) for adapter in adapters)
        cross = -0.25 * 0.75 * layer.scale * (b1 - b2) @ (a1 - a2)
        exact = 0.25 * adapter_delta(adapters[0], module) + 0.75 * adapter_delta(adapters[1], module)
        change = (mixed[f"{module}.weight"].double() - start.weights[f"{module}.weight"].double()).numpy()
        np.testing.assert_allclose(change, exact + cross, atol=1e-4)
        assert reports[module].error == pytest.approx(np.linalg.norm(cross))
        assert reports[module].norm == pytest.approx(np.linalg.norm(exact))


def test_experts_go_into_a_sweep(trained, start):
    _, experts = trained
    members = [expert.expert(name) for name, expert in experts.items()]
    assert isinstance(members[0], Expert)
    assert members[0].start == start.fingerprint
    name = experts["length"].changed[0]
    front = sweep(
        members,
        simplex_lattice(list(experts), 2),
        lambda theta: {"sentiment": [float(theta[name].sum())], "length": [float(theta[name].abs().sum())]},
    )
    assert front.means[0, 0] == float(experts["length"][name].sum())


def test_experts_of_other_starts_are_refused(start, trained):
    _, experts = trained
    expert = experts["length"]
    half = {"sentiment": 0.5, "length": 0.5}
    stranger = AdaptedWeights(
        start.weights, expert.adapters, record={"start": {**expert.start, "tokenizer": "another"}}
    )
    with pytest.raises(InputError, match=r"'sentiment' and 'length': have different starts \(tokenizer\)"):
        soup({**experts, "length": stranger}, half)
    unknown = AdaptedWeights(start.weights, expert.adapters)
    with pytest.raises(InputError, match=r"does not say what it started from\. Pass force=True"):
        soup({**experts, "length": unknown}, half)
    assert soup({**experts, "length": unknown}, half, force=True).coefficients == half
    with pytest.raises(InputError, match="expected one number for each of sentiment, length, got sentiment"):
        soup(experts, {"sentiment": 1.0})
    with pytest.raises(InputError, match="expected adapted weights, got dict"):
        soup({"sentiment": {}, "length": expert}, half)
    with pytest.raises(InputError, match="expected at least one"):
        soup({}, {})
    with pytest.raises(InputError, match="expected 2, one per expert, got 1"):
        interpolate_adapters([expert, expert], [1.0])
    with pytest.raises(InputError, match="which the start does not have"):
        AdaptedWeights({"w": torch.zeros(1)}, expert.adapters)
    with pytest.raises(InputError, match="'delta' or 'factor'"):
        soup(experts, half, lora_mode="linear")


def test_a_layer_stored_the_other_way_round(trained):
    """GPT-2 stores its linear layers as (in, out)."""
    _, experts = trained
    (adapter,) = experts["length"].adapters.values()
    module = next(m for m, layer in adapter.layers.items() if layer.a[1][1] != layer.b[1][0])
    layer = adapter.layers[module]
    base = {
        f"{m}.weight": torch.zeros(layer_.b[1][0], layer_.a[1][1]) for m, layer_ in adapter.layers.items()
    }
    turned = {**base, f"{module}.weight": base[f"{module}.weight"].T.contiguous()}
    straight = AdaptedWeights(base, {"x": adapter})[f"{module}.weight"]
    assert torch.equal(AdaptedWeights(turned, {"x": adapter})[f"{module}.weight"], straight.T)
    assert layer.rank == 2


def test_adapters_lie_in_a_folder_that_peft_loads(trained, tmp_path):
    _, experts = trained
    experts["length"].save_adapter(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert str(tmp_path) not in json.dumps(config)
    assert all(".lora_" in name for name in open_weights(tmp_path / "a" / "adapter_model.safetensors"))
