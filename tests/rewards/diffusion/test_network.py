import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")

from mirepoix.rewards.diffusion import DigitDiffusion
from mirepoix.rewards.diffusion._network import build_network, load_, noise_schedule, trainable_names
from mirepoix.types import InputError
from tests.reference import diffusion_weights as reference
from tests.rewards.diffusion import small


def sizes(task, which):
    network = build_network(task)
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() for name in trainable_names(network, which)), sum(
        parameter.numel() for parameter in parameters.values()
    )


def test_the_small_subset_is_an_eighth_of_the_parameters_at_the_default_widths():
    some, total = sizes(DigitDiffusion(), "small")
    assert (some, total) == (79_329, 652_321)
    assert some / total == pytest.approx(0.122, abs=0.001)
    assert sizes(DigitDiffusion(), "all") == (total, total)


def test_the_small_subset_is_norms_biases_and_embeddings():
    network = build_network(small.TASK)
    names = trainable_names(network, "small")
    assert "class_embedding.weight" in names
    assert "time_embedding.linear_1.weight" in names
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert {f"{path}.weight", f"{path}.bias"} <= set(names)
        elif isinstance(module, torch.nn.Conv2d):
            assert f"{path}.weight" not in names
            assert f"{path}.bias" in names


def test_first_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one, again, other = (build_network(small.TASK, seed).state_dict() for seed in (3, 3, 4))
    assert small.same(one, again)
    assert not small.same(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_written_in_place_from_torch_and_numpy():
    network = build_network(small.TASK, 1)
    place = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    theta = {
        name: tensor.numpy().copy() for name, tensor in build_network(small.TASK, 2).state_dict().items()
    }
    for array in theta.values():
        array.flags.writeable = False
    load_(network, theta)
    assert small.same(network.state_dict(), theta)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == place


def test_weights_that_do_not_fit_are_refused():
    network = build_network(small.TASK)
    theta = network.state_dict()
    with pytest.raises(
        InputError, match=r"theta: expected weights of the task's network, 'x' has shape \(2,\)"
    ):
        load_(network, {**theta, "x": torch.zeros(2)})
    with pytest.raises(InputError, match=r"'conv_in.bias' has shape nothing, expected \(8,\)"):
        load_(network, {name: x for name, x in theta.items() if name != "conv_in.bias"})
    with pytest.raises(InputError, match=r"expert 'a': .* has shape .*`task.channels` says their widths"):
        load_(network, build_network(DigitDiffusion(channels=(16, 16))).state_dict(), "expert 'a'")
    with pytest.raises(InputError, match=r"'conv_in\.bias' is not finite"):
        load_(network, {**theta, "conv_in.bias": torch.full((8,), torch.nan)})


def test_images_are_noised_by_the_cosine_schedule_until_nothing_is_seen_of_them():
    schedule = noise_schedule()
    image, noise = torch.linspace(-1, 1, 64).view(1, 1, 8, 8), torch.linspace(2, -2, 64).view(1, 1, 8, 8)
    for time in (0, 77, 199):
        found = schedule.add_noise(image, noise, torch.tensor([time])).flatten()
        expected = reference.noised(image.flatten().tolist(), noise.flatten().tolist(), time)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert reference.signal(199) < 1e-4
    assert len(noise_schedule(sampling=True).alphas_cumprod) == 200
