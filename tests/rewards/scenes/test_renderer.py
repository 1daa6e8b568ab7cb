import numpy as np
import pytest
from sklearn.datasets import load_digits

from mirepoix.rewards.scenes import render
from mirepoix.rewards.scenes._renderer import BOLD, CANVAS, PARTS, THIN
from mirepoix.types import InputError

MANY = {"digits": (1, 2, 3), "scales": (0.5, 1.0, 2.0)}


def test_a_scene_says_what_is_on_its_canvas():
    handwriting = load_digits()
    images, scenes = render(40, **MANY)
    assert images.dtype == np.uint8
    assert images.shape == (40, CANVAS, CANVAS)
    for image, scene in zip(images, scenes, strict=True):
        rest = image.copy()
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            assert x1 - x0 == y1 - y0 == 8 * digit.scale
            assert 0 <= x0 < x1 <= CANVAS
            assert 0 <= y0 < y1 <= CANVAS
            pixels = handwriting.images[digit.sample]
            assert handwriting.target[digit.sample] == digit.label
            assert digit.stroke == ("thin" if pixels.mean() < THIN else "bold")
            assert digit.stroke == "thin" or pixels.mean() > BOLD
            drawn = image[y0:y1, x0:x1] * (16 / 255)
            side = y1 - y0
            small = drawn.reshape(8, side // 8, 8, side // 8).mean(axis=(1, 3)) if side >= 8 else drawn
            wanted = pixels if side >= 8 else pixels.reshape(4, 2, 4, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(small, wanted, atol=0.04)
            rest[y0:y1, x0:x1] = 0
        assert not rest.any()


def test_digits_do_not_overlap_and_are_of_different_classes():
    _, scenes = render(60, digits=3)
    for scene in scenes:
        covered = np.zeros((CANVAS, CANVAS), dtype=int)
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1
        assert len({digit.label for digit in scene.digits}) == 3


def test_a_relation_is_that_of_the_longer_distance():
    _, scenes = render(60, digits=(1, 3))
    for scene in scenes:
        assert len(scene.relations) == (3 if len(scene.digits) == 3 else 0)
        for relation in scene.relations:
            one, other = scene.digits[relation.first], scene.digits[relation.second]
            dx, dy = (q - p for p, q in zip(one.centre, other.centre, strict=True))
            if relation.name == "left of":
                assert dx >= abs(dy) + 2
            else:
                assert dy >= abs(dx) + 2


def test_no_handwriting_is_in_two_parts():
    seen = {}
    for part in PARTS:
        _, scenes = render(300, part=part, seed=PARTS.index(part))
        seen[part] = {digit.sample for scene in scenes for digit in scene.digits}
    assert min(len(samples) for samples in seen.values()) > 100
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_more_scenes_begin_with_the_same_ones():
    few, many = render(3, seed=5), render(7, seed=5)
    np.testing.assert_array_equal(few[0], many[0][:3])
    assert few[1] == many[1][:3]
    assert render(3, seed=6)[1] != few[1]
    assert render(3, seed=5, part="validation")[1] != few[1]


def test_everything_is_drawn_about_equally_often():
    _, scenes = render(1500, digits=(2, 3))
    digits = [digit for scene in scenes for digit in scene.digits]
    for values, expected in (
        ([digit.label for digit in digits], 1 / 10),
        ([digit.stroke for digit in digits], 1 / 2),
        ([len(scene.digits) for scene in scenes], 1 / 2),
    ):
        shares = np.unique(values, return_counts=True)[1] / len(values)
        np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(expected / len(values)))
    # Three large digits hardly fit, so a layout has at most two.
    shares = np.unique([digit.scale for digit in digits], return_counts=True)[1] / len(digits)
    assert shares.min() > 0.3


def test_global_generators_are_not_used():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    render(3)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: expected at least 1 scene, got 0"),
        ({"part": "all"}, "part: expected one of train, validation, test, got 'all'"),
        ({"digits": 4}, "digits: expected 1, 2 or 3, or several of them, got 4"),
        ({"digits": ()}, r"digits: expected 1, 2 or 3, or several of them, got \(\)"),
        ({"scales": (1.5,)}, r"scales: expected some of 0.5, 1.0, 2.0, got \(1.5,\)"),
        ({"digits": 3, "scales": (2.0,)}, "scales: expected a smaller one than 2 too"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        render(**{"count": 2, **arguments})
