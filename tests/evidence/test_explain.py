"""The verdict, where the answer is known; and the numbers behind it, each by other means."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.evidence.explain_samples import apart, block, predictions, source, wrong_on

from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.checkpoints import write_weights
from mirepoix.diversity import q_diversity, ratio_error
from mirepoix.diversity._weight_cosine import weight_cosine_matrix
from mirepoix.evidence._explain import _optimism, explain
from mirepoix.evidence._paired import draw_images
from mirepoix.evidence._sources import _without_zeros
from mirepoix.evidence._verdict import _signed, judged
from mirepoix.metrics import nll
from mirepoix.types import InputError


def codes(content):
    return {reason["code"] for reason in content["verdict"]["reasons"]}


def text_of(content, code):
    return next(reason["text"] for reason in content["verdict"]["reasons"] if reason["code"] == code)


def row(content, name, side):
    return next(row[side] for row in content["total"]["rows"] if row["name"] == name)


def comparison(numbers, side, first, second):
    return next(
        one
        for one in numbers["comparisons"]
        if (one["side"], one["first"], one["second"]) == (side, first, second)
    )


# The verdict.


def test_a_clear_gain_is_confirmed_with_its_number():
    found = explain(source(block(apart(), apart())))
    verdict = found["verdict"]
    assert (verdict["ship"], verdict["trust"], verdict["forwards"]) == ("average", "high", 1)
    assert row(found, "average", "ood")["value"] == pytest.approx(0.98)
    assert row(found, "best", "ood")["value"] == pytest.approx(0.85)
    assert row(found, "mean", "ood")["value"] == pytest.approx(0.85)
    lead = comparison(found["total"], "ood", "average", "best")
    assert lead["value"] == pytest.approx(0.13)
    assert lead["seen"] == "gain"
    assert text_of(found, "confirmed").startswith("Confirmed on the OOD data: +13.0 points over run-0")
    assert verdict["sentences"][0].startswith("Ship the average of the 4 members: it needs no choice")
    assert verdict["sentences"][1].startswith(
        "It is right on 98.0 % of the OOD images, as on ID. There it is 13.0"
    )
    assert {"trust: yes", "confirmed on OOD data"} <= {badge["text"] for badge in verdict["badges"]}
    assert not any(reason["level"] == "warning" for reason in verdict["reasons"])
    # the ensemble of members that never fail together is right everywhere, as no two share an error
    assert row(found, "ensemble", "ood")["value"] == pytest.approx(1.0)
    assert verdict["alternative"]["forwards"] == 4
    json.dumps(found, allow_nan=False)


def test_members_that_hardly_differ_gain_nothing():
    same = wrong_on(400, range(60))
    right = dict.fromkeys(("run-0", "run-1", "run-2", "average"), same)
    found = explain(source(block(right, right)))
    assert {"alike", "no_gain", "equal"} <= codes(found)
    assert found["verdict"]["trust"] == "medium"
    assert found["verdict"]["alternative"] is None
    assert comparison(found["total"], "ood", "average", "best")["seen"] == "same"


def test_members_too_far_apart_are_not_averaged():
    right = apart(average=0.6)
    found = explain(source(block(right, right)))
    assert found["verdict"]["ship"] == "best"
    assert "far_apart" in codes(found)
    assert "45.0 points worse than the mean member" in text_of(found, "far_apart")
    assert found["verdict"]["sentences"][0].startswith("Ship run-0 (best on ID validation)")
    # a member replaces the average, and against the average it is confirmed: but the warning remains
    assert found["verdict"]["trust"] == "medium"


def test_one_weak_member_calls_for_the_greedy_soup():
    right = {f"run-{i}": wrong_on(400, range(20 * i, 20 * i + 40)) for i in range(3)}
    right |= {"run-3": wrong_on(400, range(240)), "average": wrong_on(400, range(100))}
    right |= {"greedy": wrong_on(400, range(30))}
    found = explain(source(block(right, right)))
    assert found["verdict"]["ship"] == "greedy"
    text = text_of(found, "weak_member")
    assert "run-3 is right on 40.0" in text
    assert "the others on 90.0" in text
    assert "the greedy soup" in text
    without = {name: value for name, value in right.items() if name != "greedy"}
    assert "leave it out" in text_of(explain(source(block(without, without))), "weak_member")


def test_one_member_has_nothing_to_combine():
    right = {"run-0": wrong_on(100, range(20))}
    found = explain(source(block(right, right)))
    assert found["verdict"]["ship"] == "member"
    assert "nothing to combine" in found["verdict"]["sentences"][0]
    assert "80.0" in found["verdict"]["sentences"][1]
    assert found["blocks"][0]["diversity"] == {}
    json.dumps(found, allow_nan=False)


def test_one_member_on_each_of_several_targets():
    right = {"run-0": wrong_on(100, range(20)), "average": wrong_on(100, range(20))}
    blocks = [replace(block(right, right), name=name, target=name, data_seed=0) for name in "xy"]
    found = explain(source(*blocks, data_seeds=1))
    assert found["verdict"]["ship"] == "member"
    assert [one["name"] for one in found["total"]["rows"]] == ["member"]
    json.dumps(found, allow_nan=False)


def test_far_apart_on_one_of_many_targets_needs_more_than_luck():
    right = {f"run-{i}": wrong_on(200, range(30 * i, 30 * i + 60)) for i in range(3)}
    fallen = right | {"average": wrong_on(200, range(68), range(130, 136))}  # 7 points below the mean member
    alone = explain(source(block(fallen, right | {"average": right["run-0"]})))
    assert "far_apart" in codes(alone)
    fine = right | {"average": wrong_on(200, range(10))}
    blocks = [
        replace(block(fallen if name == "a" else fine, fine), name=name, target=name, data_seed=0)
        for name in "abcdefghijklmnopqrst"
    ]
    seen = explain(source(*blocks, data_seeds=1), resamples=2000)
    assert seen["verdict"]["ship"] == "average"
    assert "far_apart" not in codes(seen)  # its interval at 99.75 % holds zero


def test_a_temperature_that_does_not_carry_over_is_told():
    sample = block(apart(average=0.01), apart(average=0.3), size=3.0)
    found = explain(source(sample))
    assert "does not carry over" in text_of(found, "calibration")
    level = next(r["level"] for r in found["verdict"]["reasons"] if r["code"] == "calibration")
    assert level == "warning"


def test_without_ood_labels_nothing_is_confirmed():
    found = explain(source(block(apart(), None)))
    assert (found["verdict"]["ship"], found["verdict"]["trust"]) == ("average", "low")
    assert "no_ood" in codes(found)


def test_without_id_data_nothing_is_chosen():
    right = apart(average=0.6)  # a bad average: but OOD labels do not choose
    found = explain(source(block(None, right)))
    assert found["verdict"]["ship"] == "average"
    assert "no_id" in codes(found)
    assert "contradicted" in codes(found)
    assert found["verdict"]["trust"] == "low"
    no_average = {name: value for name, value in right.items() if name != "average"}
    found = explain(source(block(None, no_average)))
    assert (found["verdict"]["ship"], found["verdict"]["forwards"]) == ("ensemble", 4)


def test_few_images_tell_nothing():
    tiny = {"run-0": wrong_on(12, 0, 1), "run-1": wrong_on(12, 2, 3), "average": wrong_on(12)}
    found = explain(source(block(tiny, tiny)))
    assert found["verdict"]["ship"] == "average"
    assert found["verdict"]["trust"] == "low"
    assert {"few_images", "id_too_small", "unknown"} <= codes(found)
    assert all(one["seen"] == "unknown" for one in found["total"]["comparisons"])


def test_what_is_good_on_id_data_and_not_on_ood_data_is_contradicted():
    found = explain(source(block(apart(), apart(average=0.5))))
    assert found["verdict"]["ship"] == "average"
    assert found["verdict"]["trust"] == "low"
    assert "35.0 points worse than run-0" in found["verdict"]["sentences"][1]


def test_the_ensemble_is_shipped_where_no_average_is_known():
    right = {name: value for name, value in apart().items() if name != "average"}
    found = explain(source(block(right, right)))
    assert (found["verdict"]["ship"], found["verdict"]["forwards"]) == ("ensemble", 4)
    assert "if 4 forwards per image are acceptable" in found["verdict"]["sentences"][0]
    assert "no_average" in codes(found)
    assert found["verdict"]["trust"] == "high"
    alike = dict.fromkeys(right, wrong_on(400, range(60)))
    assert explain(source(block(alike, alike)))["verdict"]["ship"] == "best"


def test_the_choice_never_reads_ood_labels():
    random = np.random.default_rng(3)
    for _ in range(10):
        inner = {f"run-{i}": random.random(120) < 0.7 for i in range(3)}
        inner |= {"average": random.random(120) < random.uniform(0.4, 0.9)}
        ships = set()
        for _ in range(3):
            outer = {name: random.random(90) < random.uniform(0.1, 0.9) for name in inner}
            ships.add(explain(source(block(inner, outer)), resamples=100)["verdict"]["ship"])
        ships.add(explain(source(block(inner, None)), resamples=100)["verdict"]["ship"])
        assert len(ships) == 1


def test_a_lead_that_comes_from_choosing_does_not_replace_the_average():
    random = np.random.default_rng(0)
    members = {f"run-{i}": random.random(150) < 0.8 for i in range(30)}
    best = max(members.values(), key=lambda right: right.sum())
    mean = float(np.mean([right.mean() for right in members.values()]))
    average = (
        best.copy()
    )  # differs from the best member on a dozen images only, and is as good as members are
    average[np.flatnonzero(best)[: round((best.mean() - mean) * 150)]] = False
    inner = {**members, "average": average}
    found = explain(source(block(inner, None)))
    lead = comparison(found["total"], "id", "average", "best")
    assert lead["seen"] == "loss"
    assert found["verdict"]["ship"] == "average"
    assert "are expected from being chosen on these images" in found["verdict"]["sentences"][0]


def test_optimism_is_that_of_chance_and_none_without_it():
    random = np.random.default_rng(1)
    alike = {f"run-{i}": random.random(200) < 0.8 for i in range(20)}
    scores = [right.mean() for right in alike.values()]
    lead = max(scores) - np.mean(scores)
    assert _optimism(block(alike, None), 0) == pytest.approx(lead, abs=0.02)  # all of it is chance
    clear = {f"run-{i}": wrong_on(200, range(i, 200, 2)) for i in range(2)} | {"run-2": wrong_on(200)}
    assert _optimism(block(clear, None), 0) == pytest.approx(0, abs=1e-9)


def test_confidence_is_judged_on_what_is_shipped_and_mended_on_id_data():
    sure = explain(source(block(apart(average=0.2), apart(average=0.2), size=20.0)))
    text = text_of(sure, "calibration")
    assert "overconfident" in text
    found = sure["total"]["calibration"][sure["verdict"]["ship"]]
    assert found["temperature"] > 2
    assert found["ood"]["ece"] == pytest.approx(0.15 if sure["verdict"]["ship"] == "best" else 0.2, abs=0.01)
    assert found["ood"]["ece_tempered"] < 0.01


def test_missing_classes_and_members_left_out_are_told():
    right = apart()
    sample = source(block(right, right, missing=2))
    found = explain(sample)
    assert "'3', '4'" in text_of(found, "missing_classes")
    noted = source(replace(block(right, right), notes=("run-9 is left out: NaN.",)))
    assert "run-9" in text_of(explain(noted), "left_out")
    assert explain(noted)["verdict"]["trust"] == "medium"  # a warning takes the highest trust away


def test_one_data_seed_is_told():
    found = explain(source(block(apart(), apart()), data_seeds=1))
    assert "one_seed" in codes(found)
    assert found["verdict"]["trust"] == "high"  # a note, as most jobs have one


def test_weights_alone_give_no_verdict(tmp_path):
    for k in range(2):
        write_weights(tmp_path / f"m{k}.safetensors", {"w": torch.tensor([float(k), 0.0])})
    from mirepoix.evidence._sources import source_of_files

    found = explain(source_of_files(weights=sorted(tmp_path.glob("*.safetensors"))))
    assert found["verdict"]["ship"] is None
    assert found["blocks"][0]["weights"]["to_average"] == [0.5, 0.5]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("interval", "differing", "images", "seen"),
    [
        (Interval(0.05, 0.01, 0.09), 20, 400, "gain"),
        (Interval(-0.05, -0.09, -0.01), 20, 400, "loss"),
        (Interval(0.05, 0.01, 0.09), 5, 400, "unknown"),  # five images against none may be chance
        (Interval(0.05, 0.01, 0.09), 20, 29, "unknown"),
        (Interval(0.0, -0.009, 0.009), 20, 400, "same"),
        (Interval(0.0, -0.02, 0.02), 20, 400, "unknown"),
        (Interval(0.0, 0.0, 0.0), 0, 299, "unknown"),  # the rule of three: 3/299 is above one point
        (Interval(0.0, 0.0, 0.0), 0, 300, "same"),
    ],
)
def test_a_difference_is_seen_small_or_cannot_be_told(interval, differing, images, seen):
    assert judged(interval, differing, images) == seen


def test_better_than_the_mean_member_alone_is_not_enough():
    inner = {name: right for name, right in apart(weak=0.05).items() if name != "average"}
    outer = {f"run-{i}": wrong_on(400, range(220 if i == 0 else 280)) for i in range(4)}
    found = explain(source(block(inner, outer)))
    verdict = found["verdict"]
    assert verdict["ship"] == "ensemble"  # ID data: each fails on other images
    alike = dict.fromkeys(inner, wrong_on(400, range(20)))
    found = explain(source(block(alike, outer)))
    verdict = found["verdict"]
    assert verdict["ship"] == "best"
    assert verdict["trust"] == "medium"  # better than the mean member, and nothing else to beat
    assert verdict["sentences"][1].startswith(
        "It is right on 45.0 % of the OOD images, 50.0 points below ID."
    )
    badges = {badge["text"] for badge in verdict["badges"]}
    assert {"trust: partly", "better than the mean member"} <= badges
    assert not any("confirmed" in text or "unknown" in text for text in badges)
    assert "confirmed" not in codes(found)


def test_the_largest_lead_is_named_with_the_numbers_that_the_rule_tests():
    right = {f"run-{i}": wrong_on(200, range(10 * i, 10 * i + 20)) for i in range(3)}
    right |= {"average": wrong_on(200, range(20)), "greedy": wrong_on(200, range(13, 20), range(190, 200))}
    found = explain(source(block(right, right)))
    text = found["verdict"]["sentences"][0]
    assert found["verdict"]["ship"] == "average"
    assert (
        "The greedy soup leads it by 1.5 points on ID validation" in text
    )  # 183 against 180; run-0 leads by 0
    level = 1 - 0.05 / 2
    draws = draw_images(
        ["greedy", "average"], {"all": np.stack([right["greedy"], right["average"]], 1) / 200}, resamples=4000
    )
    luck = found["total"]["optimism"]
    lead = draws.difference("greedy", "average", level)
    assert f"cannot be told from zero ({100 * level:.3g} % interval" in text or luck >= lead.value
    if luck < lead.value:
        low = float(text.split("interval ")[1].split(" to")[0].replace("−", "-"))
        assert low == pytest.approx(100 * (lead.low - luck), abs=0.6)


def test_a_rival_that_replaces_the_average_says_why():
    right = {f"run-{i}": wrong_on(400, range(40 * i, 40 * i + 40)) for i in range(3)}
    right |= {"average": wrong_on(400, range(100)), "greedy": wrong_on(400, range(10))}
    found = explain(source(block(right, right)))
    text = found["verdict"]["sentences"][0]
    assert text.startswith(
        "Ship the greedy soup, not the average: it leads it by 22.5 points on ID validation"
    )
    assert "is more than chance (97.5 % interval" in text


def test_a_gain_over_the_mean_member_alone_has_the_same_words_everywhere():
    members = {f"run-{i}": wrong_on(400, range(60 * i, 60 * i + (40 if i == 0 else 80))) for i in range(4)}
    right = members | {"average": wrong_on(400, range(240, 278))}
    verdict = explain(source(block(right, right)))["verdict"]
    badges = {badge["text"] for badge in verdict["badges"]}
    assert {"trust: partly", "better than the mean member", "not told from the best member"} <= badges
    assert verdict["sentences"][1].startswith(
        "It is right on 90.5 % of the OOD images, as on ID. There it is"
    )


def test_accuracy_about_chance_asks_for_the_order_of_labels():
    random = np.random.default_rng(0)
    outer = {name: random.random(400) < 0.2 for name in apart()}
    found = explain(source(block(apart(), outer)))
    assert "Are samples and labels in the same order?" in text_of(found, "chance")
    assert found["verdict"]["trust"] == "low"
    assert "chance" not in codes(explain(source(block(apart(), apart()))))


def test_targets_are_counted_as_better_equal_and_worse():
    blocks = []
    for name, average in (("a", 0.02), ("b", 0.15), ("c", 0.2)):
        one = replace(block(apart(), apart(average=average)), name=name, target=name, data_seed=0)
        blocks.append(replace(one, ood=replace(one.ood, domain_names=(name,))))
    found = explain(source(*blocks, data_seeds=1), resamples=200)
    assert "better on 1, equal on 1, worse on 1 of 3 targets" in text_of(found, "confirmed")


def test_members_of_unknown_origin_are_not_called_fine_tuned():
    right = {name: value for name, value in apart().items() if name != "average"}
    found = explain(source(block(right, right)))
    assert not found["one_start"]
    assert "If the members are networks from one start: make it (mirepoix soup)" in text_of(
        found, "no_average"
    )
    assert explain(replace(source(block(right, right)), kind="run"))["one_start"]


def test_an_end_that_touches_zero_is_zero_and_small_ends_keep_their_sign():
    draws = draw_images(["a", "b"], {"all": np.stack([np.full(50, 0.1 * 3 / 50), np.full(50, 0.3 / 50)], 1)})
    near = replace(
        draws, draws=draws.draws + np.array([[1e-16, 0.0]]) * np.arange(len(draws.draws))[:, None] / 100
    )
    assert not near.difference("a", "b").excludes_zero
    assert [_signed(value) for value in (0.0, 4e-4, -4e-4, 0.031)] == ["0.0", "+0.04", "−0.04", "+3.1"]


# The numbers.


def test_drawing_patterns_is_drawing_images():
    random = np.random.default_rng(0)
    right = (random.random((300, 3)) < [0.6, 0.7, 0.9]).astype(float)
    draws = draw_images(["a", "b", "c"], {"all": right / 300}, resamples=4000)
    plain = bootstrap(
        lambda drawn: [right[drawn, 2].mean(), (right[drawn, 2] - right[drawn, 0]).mean()],
        300,
        resamples=4000,
    )
    for ours, theirs in zip((draws.of("c"), draws.difference("c", "a")), plain, strict=True):
        assert ours.value == pytest.approx(theirs.value)
        assert ours.low == pytest.approx(theirs.low, abs=0.008)
        assert ours.high == pytest.approx(theirs.high, abs=0.008)
    assert draws.differing("a", "b") == int((right[:, 0] != right[:, 1]).sum())
    again = draw_images(["a", "b", "c"], {"all": right / 300}, resamples=4000)
    assert np.array_equal(again.draws, draws.draws)


def test_domains_are_drawn_each_on_its_own():
    # one domain all right, one all wrong: no draw of images within them moves the mean over domains
    rows = {"good": np.full((50, 1), 0.5 / 50), "bad": np.zeros((10, 1))}
    assert np.allclose(draw_images(["a"], rows).draws, 0.5)


def test_what_never_happened_may_still_happen():
    draws = draw_images(["a", "b"], {"all": np.full((100, 2), 0.01)})
    always, none = draws.of("a"), draws.difference("a", "b")
    assert (always.low, always.high) == pytest.approx(
        (1 - 0.029957, 1)
    )  # 0.97^100 = 0.0476: the rule of three
    assert (none.low, none.high) == pytest.approx((-0.029957, 0.029957), abs=1e-6)


def test_accuracy_is_the_mean_over_domains_of_a_side():
    right = {"run-0": wrong_on(90, range(30)), "run-1": wrong_on(90)}
    sample = predictions(right, domains=("a", "b", "c"))
    sample = replace(sample, domains=torch.cat([torch.zeros(30), torch.ones(60)]).long())
    one = replace(block(right, None), id=sample)
    found = explain(source(one))["blocks"][0]["individuals"]
    assert found[0]["id"]["value"] == pytest.approx(0.5)  # domain a 0 %, domain b 100 %


def test_all_targets_together_are_their_mean_and_share_images():
    first = replace(block(apart(), apart(200)), name="x", target="x", data_seed=0)
    second = replace(block(apart(average=0.1), apart(200, average=0.1)), name="y", target="y", data_seed=0)
    second = replace(second, ood=replace(second.ood, domain_names=("other",)))
    found = explain(source(first, second, data_seeds=1))
    total = found["total"]
    assert total["images"] == {"id": 400, "ood": 400}  # ID images are the same in both, OOD images are not
    assert row(found, "average", "id")["value"] == pytest.approx((0.98 + 0.9) / 2)
    one, two = (b["rows"] for b in found["blocks"])
    for mean, a, b in zip(total["rows"], one, two, strict=True):
        assert mean["ood"]["value"] == pytest.approx((a["ood"]["value"] + b["ood"]["value"]) / 2)
    assert "better on 2 of 2 targets" in text_of(found, "confirmed")


def test_diversity_has_the_intervals_of_drawn_images():
    random = np.random.default_rng(5)
    right = {f"run-{i}": random.random(250) < 0.7 for i in range(3)}
    sample = block(right, right)
    found = explain(source(sample), resamples=3000)["blocks"][0]["diversity"]["ood"]
    correct = sample.ood.correct()
    plain = bootstrap(
        lambda drawn: [float(ratio_error(correct[:, drawn])), float(q_diversity(correct[:, drawn]))],
        250,
        resamples=1000,
    )
    for name, theirs in zip(("ratio_error", "q_diversity"), plain, strict=True):
        assert found[name]["value"] == pytest.approx(theirs.value, rel=1e-5)
        assert found[name]["low"] == pytest.approx(theirs.low, rel=0.08)
        assert found[name]["high"] == pytest.approx(theirs.high, rel=0.08)
    guesses = sample.ood.logits.argmax(-1)
    pairs = [(guesses[i] != guesses[j]).double().mean() for i in range(3) for j in range(i)]
    assert found["disagreement"]["value"] == pytest.approx(float(sum(pairs) / 3))


def test_members_without_a_shared_error_are_infinitely_diverse_and_json():
    found = explain(source(block(apart(), apart())))["blocks"][0]["diversity"]["ood"]["ratio_error"]
    assert found == {"value": "infinite", "low": None, "high": None}


def test_the_loss_of_members_is_that_of_the_ensemble_and_diversity():
    sample = block(apart(), apart())
    loss = explain(source(sample))["blocks"][0]["loss"]["ood"]
    members = sample.ood.of(sample.members)
    mean = sum(float(nll(z, members.labels)) for z in members.logits) / 4
    assert loss["member"] == pytest.approx(mean)
    assert loss["ensemble"] == pytest.approx(float(nll(members.logits.mean(0), members.labels)))
    assert loss["diversity"] == pytest.approx(loss["member"] - loss["ensemble"])
    assert loss["diversity"] > 0


def test_the_curve_ends_at_the_ensemble_and_begins_at_the_mean_member():
    found = explain(source(block(apart(), apart())))
    curve = found["blocks"][0]["curve"]["ensemble"]
    assert [point["members"] for point in curve] == [1, 2, 3, 4]
    assert curve[0]["mean"] == pytest.approx(row(found, "mean", "ood")["value"])
    assert curve[-1]["mean"] == pytest.approx(row(found, "ensemble", "ood")["value"])


def test_angles_come_from_the_start_or_from_recorded_distances(tmp_path):
    random = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(3, 4, generator=random), "b": torch.randn(4, generator=random)}
    thetas = [
        {name: x + torch.randn(x.shape, generator=random) for name, x in start.items()} for _ in range(3)
    ]
    paths = {}
    for i, theta in enumerate(thetas):
        paths[f"run-{i}"] = tmp_path / f"run-{i}.safetensors"
        write_weights(paths[f"run-{i}"], theta)
    write_weights(tmp_path / "start.safetensors", start)
    expected = weight_cosine_matrix(thetas, relative_to=start).tolist()
    right = {name: wrong_on(50, i) for i, name in enumerate(paths)}
    given = replace(block(None, right), weights=paths, start=tmp_path / "start.safetensors")
    found = explain(source(given))["blocks"][0]["weights"]
    assert np.allclose(found["cosines"], expected)
    kept = replace(block(None, right), weights=paths, recorded={"distance_to_start": found["to_start"]})
    again = explain(source(kept))["blocks"][0]["weights"]
    assert np.allclose(again["cosines"], expected, atol=1e-6)
    alone = replace(block(None, right), weights=paths)
    assert explain(source(alone))["blocks"][0]["weights"]["cosines"] is None


def test_weights_that_do_not_fit_name_their_files(tmp_path):
    paths = {}
    for i in range(2):
        paths[f"run-{i}"] = tmp_path / f"run-{i}.safetensors"
        write_weights(paths[f"run-{i}"], {"w": torch.zeros(2 + i)})
    right = {name: wrong_on(50, i) for i, name in enumerate(paths)}
    with pytest.raises(InputError, match=r"run-1\.safetensors"):
        explain(source(replace(block(None, right), weights=paths)))


def test_several_data_seeds_give_the_terms_of_the_error(tmp_path):
    random = np.random.default_rng(2)
    blocks = []
    for seed in range(3):
        right = {f"run-{i}": random.random(80) < 0.7 for i in range(2)}
        right |= {"average": random.random(80) < 0.8}
        paths = {}
        for i in range(2):
            paths[f"run-{i}"] = tmp_path / f"{seed}-{i}.safetensors"
            write_weights(paths[f"run-{i}"], {"w": torch.tensor([float(seed), float(i)])})
        blocks.append(
            replace(
                block(right, right), name=f"x, data seed {seed}", target="x", data_seed=seed, weights=paths
            )
        )
    (terms,) = explain(source(*blocks, data_seeds=3))["terms"]
    assert (terms["replicates"], terms["members"]) == (3, 2)
    each = terms["terms"]
    whole = each["bias_squared"]["value"] + each["variance"]["value"] / 2 + each["covariance"]["value"] / 2
    assert whole == pytest.approx(each["ensemble_error"]["value"])
    assert terms["remainder"]["value"] == pytest.approx(terms["average_error"]["value"] - whole)
    assert (
        explain(source(*blocks, data_seeds=3))["total"]["images"]["ood"] == 80
    )  # the same images three times


def test_terms_that_are_skipped_are_told():
    blocks = [
        replace(block(apart(), apart()), name=f"x {seed}", target="x", data_seed=seed) for seed in range(2)
    ]
    found = explain(source(*blocks, data_seeds=2), resamples=200)
    assert found["terms"] == []
    assert "on x are not measured" in text_of(found, "changed")


def test_the_same_arguments_give_the_same_numbers():
    sample = source(block(apart(), apart()))
    assert json.dumps(explain(sample)) == json.dumps(explain(sample))


def test_probabilities_of_zero_can_be_combined_and_are_told():
    right = apart()
    sample = block(right, right)

    def hard(predictions):
        """Every class but one is impossible; where members differ, all are."""
        return replace(
            predictions, logits=torch.where(predictions.logits > 0, predictions.logits, -torch.inf)
        )

    zeros = _without_zeros(replace(sample, id=hard(sample.id), ood=hard(sample.ood)))
    found = explain(source(zeros), resamples=100)
    assert found["verdict"]["ship"] == "average"
    assert "on 800 images" in text_of(found, "changed")
    assert found["verdict"]["trust"] == "high"
    assert row(found, "average", "ood")["value"] == pytest.approx(0.98)
    # a member is wrong on 15 % of the images, by 100 nats there
    assert found["blocks"][0]["loss"]["ood"]["member"] == pytest.approx(15, rel=1e-4)
    json.dumps(found, allow_nan=False)
    assert _without_zeros(sample) is sample
