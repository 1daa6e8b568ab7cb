import functools

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")

from diffusers import DDIMPipeline, DDIMScheduler

from mirepoix.rewards.diffusion import DiffusionEvaluation, DigitDiffusion
from mirepoix.rewards.diffusion._network import SCHEDULE, build_network, load_
from mirepoix.seeds import generator
from mirepoix.types import InputError
from mirepoix.weights import interpolate
from tests.rewards.diffusion import small

IMAGES, SEED, STEPS = 12, 5, 4
LABELS = torch.arange(IMAGES) % 10


@pytest.fixture(scope="module")
def evaluate():
    return DiffusionEvaluation(small.TASK, small.start(), images=IMAGES, seed=SEED, steps=STEPS)


@pytest.fixture(scope="module")
def experts():
    return {name: small.expert(name) for name in small.TASK.rewards}


def equal(a, b):
    return list(a) == list(b) and all((a[name] == b[name]).all() for name in a)


def with_weights(theta):
    network = build_network(small.TASK).eval()
    load_(network, theta)
    return network


def test_images_are_those_of_the_ddim_pipeline_of_diffusers(evaluate):
    network = with_weights(small.expert("boldness"))
    network.forward = functools.partial(network.forward, class_labels=LABELS)
    pipeline = DDIMPipeline(network, DDIMScheduler(**SCHEDULE))
    pipeline.set_progress_bar_config(disable=True)
    seeds = [generator("evaluation", SEED, i) for i in range(IMAGES)]
    ink = pipeline(
        batch_size=IMAGES, generator=seeds, eta=0.0, num_inference_steps=STEPS, output_type="np"
    ).images[..., 0]
    found = evaluate(small.expert("boldness"))
    for name, values in small.TASK.score(ink * 2 - 1, LABELS).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4)
    drawn = evaluate.images_of(small.expert("boldness"), IMAGES)
    assert np.abs(drawn / 255 - ink).max() < 0.003


def test_an_ensemble_averages_the_predictions_of_the_noise(evaluate, experts):
    shares = {"boldness": 0.7, "legibility": 0.3}
    schedule = DDIMScheduler(**SCHEDULE)
    schedule.set_timesteps(STEPS)
    images = torch.stack(
        [torch.randn(1, 8, 8, generator=generator("evaluation", SEED, i)) for i in range(IMAGES)]
    )
    networks = {name: with_weights(theta) for name, theta in experts.items()}
    with torch.no_grad():
        for time in schedule.timesteps:
            noise = sum(
                shares[name] * network(images, time, class_labels=LABELS).sample
                for name, network in networks.items()
            )
            images = schedule.step(noise, time, images).prev_sample
    found = evaluate.ensemble(experts, shares)
    for name, values in small.TASK.score(images, LABELS).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4)
    assert not equal(found, evaluate(interpolate(list(experts.values()), [0.3, 0.7])))


def test_all_rewards_are_measured_also_those_not_trained_on(evaluate):
    found = evaluate(small.start())
    assert tuple(found) == evaluate.rewards == ("legibility", "boldness", "symmetry")
    assert all(values.shape == (IMAGES,) and values.dtype == np.float64 for values in found.values())
    assert len(set(found["boldness"])) == IMAGES


def test_same_weights_same_numbers_whatever_was_evaluated_before(evaluate, experts):
    first = evaluate(experts["boldness"])
    evaluate(experts["legibility"])
    evaluate.ensemble(experts, {"legibility": 0.5, "boldness": 0.5})
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        assert equal(first, evaluate(experts["boldness"]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    fresh = DiffusionEvaluation(small.TASK, experts["legibility"], images=IMAGES, seed=SEED, steps=STEPS)
    assert equal(first, fresh(experts["boldness"]))


def test_the_ends_of_a_front_are_the_experts(evaluate, experts):
    for name, coefficients in (("legibility", [1, 0]), ("boldness", [0, 1])):
        soup = interpolate(list(experts.values()), coefficients)
        assert equal(evaluate(soup), evaluate(experts[name]))
        shares = dict(zip(experts, coefficients, strict=True))
        assert equal(evaluate.ensemble(experts, shares), evaluate(experts[name]))


def test_an_ensemble_of_copies_is_the_copy(evaluate, experts):
    copies = {"a": experts["boldness"], "b": experts["boldness"]}
    for share in (0.5, 0.3):
        found = evaluate.ensemble(copies, {"a": share, "b": 1 - share})
        assert equal(found, evaluate(experts["boldness"]))


def test_an_image_is_the_same_among_more_images(experts):
    many, more = (
        DiffusionEvaluation(small.TASK, small.start(), images=images, steps=2) for images in (64, 70)
    )
    theta = experts["boldness"]
    assert all((values[:64] == many(theta)[name]).all() for name, values in more(theta).items())
    np.testing.assert_array_equal(more.images_of(theta, 3), many.images_of(theta, 64)[:3])
    np.testing.assert_array_equal(more.images_of(theta, 70)[:64], many.images_of(theta, 64))


def test_images_are_bytes_of_ink_with_their_prompts(evaluate, experts):
    drawn = evaluate.images_of(experts["boldness"], 4)
    assert (drawn.shape, drawn.dtype) == ((4, 8, 8), np.uint8)
    bold = evaluate(experts["boldness"])["boldness"][:4]
    np.testing.assert_allclose(drawn.mean(axis=(1, 2)) / 255, bold, atol=0.002)
    assert evaluate.prompts(12)[6:] == ["a six", "a seven", "an eight", "a nine", "a zero", "a one"]


def test_the_digest_names_what_decides_the_numbers(evaluate):
    fields = {"images": IMAGES, "seed": SEED, "steps": STEPS}
    changes = [{"images": 13}, {"seed": 6}, {"steps": 5}]
    others = [DiffusionEvaluation(small.TASK, small.start(), **{**fields, **change}) for change in changes]
    task = DigitDiffusion(channels=(8, 16), rewards=("symmetry",))
    others.append(DiffusionEvaluation(task, small.start(), **fields))
    assert len({evaluate.digest, *(other.digest for other in others)}) == 5
    again = DiffusionEvaluation(small.TASK, small.expert("boldness"), **fields)
    assert again.digest == evaluate.digest


def test_no_network_is_built_for_a_further_theta(evaluate, experts, monkeypatch):
    evaluate.ensemble(experts, {"legibility": 0.5, "boldness": 0.5})
    monkeypatch.setattr("mirepoix.rewards.diffusion._evaluate.build_network", None)
    for theta in experts.values():
        evaluate(theta)
    evaluate.ensemble(experts, {"legibility": 0.2, "boldness": 0.8})


def test_wrong_arguments_are_refused(evaluate, experts):
    for options, message in (
        ({"images": 0}, "images: expected at least 1, got 0"),
        ({"steps": 201}, "steps: expected 1 to 200, got 201"),
    ):
        with pytest.raises(InputError, match=message):
            DiffusionEvaluation(small.TASK, small.start(), **options)
    with pytest.raises(InputError, match="start: expected weights of the task's network"):
        DiffusionEvaluation(DigitDiffusion(), small.start())
    with pytest.raises(InputError, match="theta: expected weights of the task's network"):
        evaluate({})
    for call in (evaluate.prompts, lambda count: evaluate.images_of(small.start(), count)):
        for count in (0, 13):
            with pytest.raises(InputError, match=f"count: expected 1 to 12, .* got {count}"):
                call(count)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({"boldness": 1.0}, r"expected one for each expert \(boldness, legibility\), got boldness"),
        ({"boldness": 0.5, "legibility": 0.6}, "that sum to one"),
        ({"boldness": -0.5, "legibility": 1.5}, "0 or more"),
        ({"boldness": float("nan"), "legibility": 1.0}, "that sum to one"),
    ],
)
def test_wrong_coefficients_are_refused(evaluate, experts, coefficients, message):
    with pytest.raises(InputError, match=message):
        evaluate.ensemble(experts, coefficients)
