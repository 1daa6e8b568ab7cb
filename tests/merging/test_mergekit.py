"""What mergekit means by its YAML: expected numbers come from running mergekit 0.1.5."""

import functools
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.checkpoints import write_weights
from mirepoix.merging import Average, Dare, ModelStock, Slerp, TaskArithmetic, Ties, merge
from mirepoix.merging._coefficients import resolve
from mirepoix.merging._mergekit import LARGEST, METHODS, read_mergekit
from mirepoix.types import InputError

RULES = {
    "average": Average,
    "task-arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "dare-ties": functools.partial(Dare, elect=True),
    "slerp": Slerp,
    "model-stock": ModelStock,
}
LAYERS = 4
LAYERED = [
    f"model.layers.{i}.{part}"
    for i in range(LAYERS)
    for part in ("self_attn.q.weight", "mlp.up.weight", "norm.weight")
]
NAMES = ["model.embed.weight", *LAYERED, "model.norm.weight", "lm_head.weight"]


def model(path, names=NAMES, layers=LAYERS):
    path.mkdir()
    write_weights(path / "model.safetensors", {name: np.zeros(1, "f4") for name in names})
    if layers is not None:
        (path / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "a", "b", "c"):
        model(folder / name)
    model(folder / "unknown", layers=None)
    return folder


@pytest.fixture
def read(models, monkeypatch):
    monkeypatch.chdir(models)

    def of(text):
        (models / "merge.yml").write_text(
            text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8"
        )
        return read_mergekit("merge.yml")

    return of


def listed(method, *models, base="base", **more):
    """A recipe, each model a name or a pair of a name and its parameters."""
    entries = [{"model": m} if isinstance(m, str) else {"model": m[0], "parameters": m[1]} for m in models]
    return {"merge_method": method, "models": entries, **({"base_model": base} if base else {}), **more}


def sliced(method, *models, layers=LAYERS, base="base", cut=None, **more):
    sources = [
        {"model": m if isinstance(m, str) else m[0], "layer_range": [0, layers]}
        | ({} if isinstance(m, str) else {"parameters": m[1]})
        for m in models
    ]
    more |= {"base_model": base} if base else {}
    return {"merge_method": method, "slices": [{"sources": sources, **(cut or {})}], **more}


W = {"weight": 0.5}
EXPECTED = [
    (
        listed("linear", ("a", {"weight": 1}), ("b", {"weight": 3}), base=None),
        ("a", "b"), None, "average", {"coefficients": [1.0, 3.0], "normalize": True, "extrapolate": False},
    ),
    (
        listed("linear", ("a", {"weight": 2}), ("b", {"weight": -1}), base=None, parameters={"normalize": False}),
        ("a", "b"), None, "average", {"coefficients": [2.0, -1.0], "normalize": False, "extrapolate": True},
    ),
    (
        listed("task_arithmetic", "base", ("a", {"weight": 0.4}), ("b", {"weight": -0.3}), parameters={"lambda": 0.8}),
        ("a", "b"), "base", "task-arithmetic", {"coefficients": [0.4, -0.3], "scale": 0.8},
    ),
    (
        listed("task_arithmetic", ("a", {"weight": 1}), ("b", {"weight": 3}), parameters={"normalize": True}),
        ("a", "b"), "base", "task-arithmetic", {"coefficients": [0.25, 0.75], "scale": 1.0},
    ),
    (
        listed("ties", ("a", W), ("b", {"weight": 1}), "base"),
        ("a", "b"), "base", "ties",
        {"coefficients": [0.5, 1.0], "density": 1.0, "scale": 1.0, "normalize": True, "scope": "tensor"},
    ),
    (
        listed("ties", ("a", W | {"density": 0.3}), ("b", W), ("c", W),
               parameters={"density": 0.2, "lambda": 2, "normalize": False}),
        ("a", "b", "c"), "base", "ties",
        {"coefficients": [0.5] * 3, "density": [0.3, 0.2, 0.2], "scale": 2.0, "normalize": False, "scope": "tensor"},
    ),
    (
        listed("dare_linear", ("a", W), parameters={"density": 0.5}),
        ("a",), "base", "dare",
        {"coefficients": [0.5], "density": 0.5, "scale": 1.0, "normalize": False, "rescale": "l1"},
    ),
    (
        listed("dare_ties", ("a", W), ("b", W), parameters={"density": 0.5, "rescale": False, "normalize": 1}),
        ("a", "b"), "base", "dare-ties",
        {"coefficients": [0.5, 0.5], "density": 0.5, "scale": 1.0, "normalize": True, "rescale": None},
    ),
    (
        listed("slerp", "a", "b", base="b", parameters={"t": 0.25}),
        ("b", "a"), None, "slerp", {"t": 0.25},
    ),
    (listed("slerp", "a", base="b", parameters={"t": 1}), ("b", "a"), None, "slerp", {"t": 1.0}),
    (listed("model_stock", "a", "b"), ("a", "b"), "base", "model-stock", {"scope": "tensor", "clamp": False}),
    (
        listed("model_stock", "a", "base", "b", parameters={"filter_wise": True}),
        ("a", "b"), "base", "model-stock", {"scope": "row", "clamp": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "members", "base", "method", "parameters"), EXPECTED)
def test_every_method_is_read_with_what_mergekit_does_by_default(
    read, values, members, base, method, parameters
):
    recipe = read(values)
    assert (recipe.members, recipe.base, recipe.method, recipe.parameters) == (
        members,
        base,
        method,
        parameters,
    )
    assert recipe.dtype is None
    assert json.loads(json.dumps(recipe.parameters)) == recipe.parameters
    RULES[method](**recipe.parameters).check([str(i) for i in range(len(members))])


def test_every_method_of_the_table_is_tested():
    assert {values["merge_method"] for values, *_ in EXPECTED} == set(METHODS)


# Tensors of six entries, and what mergekit 0.1.5 made of them with the recipe.
BASE = [1.0, -2.0, 0.5, 3.0, -1.0, 2.0]
A = [1.4, -2.1, 0.7, 2.0, -1.0, 2.5]
B = [0.7, -1.2, 0.8, 3.5, -1.6, 2.1]
ONE, HALF = {"weight": 1}, {"weight": 0.5}
MEASURED = [
    (
        listed("linear", ("a", ONE), ("b", {"weight": 3}), base=None),
        [0.875, -1.425, 0.775, 3.125, -1.45, 2.2],
    ),
    (listed("task_arithmetic", ("a", ONE), ("b", HALF)), [1.25, -1.7, 0.85, 2.25, -1.3, 2.55]),
    (
        listed("task_arithmetic", ("a", ONE), ("b", HALF), parameters={"normalize": True, "lambda": 0.8}),
        [1.133333, -1.84, 0.686667, 2.6, -1.16, 2.293333],
    ),
    (listed("ties", ("a", ONE), ("b", HALF)), [1.4, -1.2, 0.733333, 2.0, -1.6, 2.366667]),
    (
        listed("ties", ("a", ONE), ("b", HALF), parameters={"lambda": 0.8, "density": 0.5}),
        [1.32, -1.36, 0.5, 2.2, -1.48, 2.4],
    ),
    (
        listed("ties", ("a", {"weight": 1, "density": 0.5}), ("b", HALF), parameters={"normalize": False}),
        [1.4, -1.6, 0.65, 2.0, -1.3, 2.55],
    ),
    (listed("dare_linear", ("a", ONE), ("b", HALF)), [1.25, -1.7, 0.85, 2.25, -1.3, 2.55]),
    (listed("dare_ties", ("a", ONE), ("b", HALF)), [1.4, -1.6, 0.85, 2.0, -1.3, 2.55]),
    (
        listed("slerp", "b", "a", base="a", parameters={"t": 0.25}),
        [1.2462, -1.908, 0.7392, 2.425284, -1.173942, 2.444657],
    ),
    (listed("model_stock", "a", "b"), [0.931393, -2.480252, 0.156963, 3.343037, -0.588356, 1.588355]),
    (
        listed("model_stock", "a", "b", parameters={"filter_wise": True}),
        [0.949085, -2.356402, 0.245427, 3.522841, -0.37259, 1.372591],
    ),
]


@pytest.mark.parametrize(("values", "measured"), MEASURED)
def test_the_rule_that_is_read_gives_the_numbers_of_mergekit(tmp_path, values, measured):
    for name, numbers in {"base": BASE, "a": A, "b": B}.items():
        write_weights(tmp_path / f"{name}.safetensors", {"w": np.array(numbers, "f4").reshape(2, 3)})
    file = tmp_path / "merge.yml"
    text = yaml.safe_dump(values)
    for name in ("base", "a", "b"):
        text = text.replace(f"model: {name}\n", f"model: {name}.safetensors\n")
    file.write_text(text)
    recipe = read_mergekit(file)
    theta = merge(list(recipe.members), RULES[recipe.method](**recipe.parameters), base=recipe.base)
    np.testing.assert_allclose(np.asarray(theta["w"]).reshape(-1), measured, atol=2e-6)


# Numbers that differ from tensor to tensor.


def values_of(setting, names=NAMES):
    return [resolve([setting], ["m"], name)[0] for name in names]


def layer_of(name):
    return int(name.split(".")[2]) if ".layers." in name else None


def slow(settings, name):
    """The value of a tensor, read straight from the settings, the nearest first."""
    for setting in settings:
        if not isinstance(setting, list) or not isinstance(setting[0], dict):
            setting = [{"value": setting}]
        for item in setting:
            if item.get("filter", "*") == "*" or item["filter"] in name:
                value, layer = item["value"], layer_of(name)
                if not isinstance(value, list):
                    return value
                return (
                    np.interp((layer or 0) / (LAYERS - 1), np.linspace(0, 1, len(value)), value)
                    if len(value) > 1
                    else value[0]
                )
    return None


numbers = st.integers(-20, 20).map(lambda n: n / 8)
gradients = st.one_of(numbers, st.lists(numbers, min_size=1, max_size=6))
filters = st.sampled_from(
    ["self_attn", "mlp", "norm", "layers.2", "lm_head", ".", "*", "", "q.weight", "[a-z]"]
)
conditions = st.one_of(
    st.fixed_dictionaries({"filter": filters, "value": gradients}),
    st.fixed_dictionaries({"value": gradients}),
)
settings_ = st.one_of(gradients, st.lists(conditions, min_size=1, max_size=4))


@given(own=settings_, of_slice=settings_, whole=gradients)
def test_every_tensor_gets_what_the_nearest_setting_says_of_its_name_and_layer(models, own, of_slice, whole):
    values = sliced(
        "linear", (str(models / "a"), {"weight": own}), str(models / "b"), base=None,
        cut={"parameters": {"weight": of_slice}}, parameters={"weight": whole, "normalize": False},
    )  # fmt: skip
    (models / "law.yml").write_text(yaml.safe_dump(values))
    first, second = read_mergekit(models / "law.yml").parameters["coefficients"]
    np.testing.assert_allclose(values_of(first), [slow([own, of_slice, whole], n) for n in NAMES], atol=1e-12)
    np.testing.assert_allclose(values_of(second), [slow([of_slice, whole], n) for n in NAMES], atol=1e-12)


def test_a_list_of_numbers_becomes_one_pattern_per_layer(read):
    recipe = read(listed("slerp", "a", "base", parameters={"t": [0, 0.3, 1]}))
    layer = r"^model\.layers\.{}\."
    expected = [[layer.format(i), t] for i, t in enumerate([0, 0.2, 0.3 + 0.7 / 3, 1])]
    assert [p for p, _ in recipe.parameters["t"]] == [*(p for p, _ in expected), ""]
    # Tensors outside the layers get the first number.
    assert [t for _, t in recipe.parameters["t"]] == pytest.approx([*(t for _, t in expected), 0])


def test_filters_are_parts_of_names_and_not_patterns(read):
    t = [{"filter": "layers.1.", "value": 0.25}, {"filter": ".*", "value": 0.75}, {"value": 0.5}]
    setting = read(listed("slerp", "a", "base", parameters={"t": t})).parameters["t"]
    assert setting == [[r"layers\.1\.", 0.25], [r"\.\*", 0.75], ["", 0.5]]
    assert values_of(setting, ["model.layers.1.w", "model.layersx1.w"]) == [0.25, 0.5]


def test_a_star_is_every_name(read):
    t = [{"filter": "*", "value": 0.25}, {"value": 0.5}]
    assert read(listed("slerp", "a", "base", parameters={"t": t})).parameters["t"] == 0.25


def test_filters_are_no_patterns_over_layers_either(read):
    t = [{"filter": "m.p", "value": [0.25, 0.5]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.75}]
    setting = read(listed("slerp", "a", "base", parameters={"t": t})).parameters["t"]
    assert values_of(setting, ["model.layers.3.mlp.up.weight", "model.mlp.up.weight"]) == [0, 1]


def test_density_may_differ_from_layer_to_layer(read):
    recipe = read(
        listed("ties", ("a", {"weight": 1, "density": [1, 0.25]}), ("b", ONE), parameters={"density": 0.5})
    )
    first, second = recipe.parameters["density"]
    assert values_of(first)[:2] == [1, 1]
    assert values_of(first, ["model.layers.3.mlp.up.weight"]) == [0.25]
    assert second == 0.5
    Ties(**recipe.parameters).check(["0", "1"])


def test_density_of_one_in_the_end_is_the_default_for_what_no_filter_matches(read):
    density = [{"filter": "mlp", "value": 0.5}]
    recipe = read(listed("ties", ("a", ONE), parameters={"density": density}))
    assert recipe.parameters["density"] == [[["mlp", 0.5], ["", 1.0]]]


def test_a_weight_that_no_filter_matches_is_missing_when_the_tensor_is_merged(read):
    recipe = read(listed("linear", ("a", {"weight": [{"filter": "mlp", "value": 1}]}), ("b", ONE), base=None))
    with pytest.raises(InputError, match=r"no pattern of member m matches 'model\.embed\.weight'"):
        values_of(recipe.parameters["coefficients"][0])


def test_numbers_in_scientific_notation_are_numbers(read):
    assert read(
        "{merge_method: slerp, base_model: a, models: [model: b], parameters: {t: 1e-3}}"
    ).parameters == {"t": 0.001}


def layered(folder, names, layers=None):
    model(folder / "m", names, layers)
    (folder / "merge.yml").write_text(
        yaml.safe_dump(listed("slerp", "m", base="m2", parameters={"t": [0, 0.5, 1]}))
    )
    model(folder / "m2", names, layers)
    return read_mergekit(folder / "merge.yml").parameters["t"]


def test_an_only_layer_gets_the_last_number(tmp_path):
    setting = layered(tmp_path, ["h.0.w", "head"])
    assert values_of(setting, ["h.0.w", "head"]) == [1, 0]


def test_layers_may_come_first_in_the_name(tmp_path):
    setting = layered(tmp_path, ["0.w", "1.w", "2.sub.1.w", "head"])
    assert values_of(setting, ["0.w", "1.w", "2.sub.1.w", "head"]) == [0, 0.5, 1, 0]


def test_an_encoder_and_a_decoder_are_interpolated_each_by_itself(tmp_path):
    names = [f"{part}.block.{i}.w" for part in ("encoder", "decoder") for i in range(3)]
    others = ["one.0.w", *(f"four.{i}.w" for i in range(4))]
    setting = layered(tmp_path, [*names, *others], layers=3)
    assert values_of(setting, [*names, *others]) == [0, 0.5, 1, 0, 0.5, 1, *[0] * 5]


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        (["w"], None, r"parameters\.t: a list .* expected one list of layers, .*m2, got none"),
        (
            ["x.0.w", "y.0.w"],
            None,
            r"expected one list of layers, .* got x\. 0 to 0, y\. 0 to 0\. Use filters",
        ),
        (["x.0.w", "x.2.w"], None, r"got x\. 0 to 2"),
        (["x.0.w", "x.1.w"], 3, r"expected 3 layers, as its config\.json says"),
    ],
)
def test_layers_that_cannot_be_told_are_asked_for(tmp_path, names, layers, message):
    with pytest.raises(InputError, match=message):
        layered(tmp_path, names, layers)


def test_numbers_alone_need_no_weights_to_be_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "m.yml").write_text(yaml.safe_dump(listed("linear", ("a", ONE), ("b", ONE), base=None)))
    assert read_mergekit(tmp_path / "m.yml").parameters["coefficients"] == [1.0, 1.0]


# Which models.


def test_linear_averages_the_base_too_after_the_models_unless_it_is_one(read):
    assert read(listed("linear", "a", "b", parameters=ONE)).members == ("a", "b", "base")
    assert read(listed("linear", "a", "base", parameters=ONE)).members == ("a", "base")
    recipe = read(sliced("linear", "a", "b", parameters=ONE))  # of slices, sources alone count
    assert recipe.members == ("a", "b")
    assert any("base_model: is ignored" in note for note in recipe.notes)
    with pytest.raises(
        InputError, match=r"parameters\.weight: missing; linear counts the base model as a member"
    ):
        read(listed("linear", ("a", ONE), ("b", ONE)))


def test_parameters_of_the_base_are_not_used_and_noted(read):
    recipe = read(listed("ties", ("base", {"weight": 9}), ("a", ONE)))
    assert recipe.parameters["coefficients"] == [1.0]
    assert recipe.notes == ("models[0].parameters: ignored, for it is the base model",)


def test_one_slice_over_all_layers_is_a_list_of_models(read):
    cut = {"base_model": "a", "parameters": {"t": 0.25}}
    recipe = read(sliced("slerp", "base", "a", cut=cut, parameters={"t": 0.75}))
    assert recipe.members == ("a", "base")  # the slice's own base, and its own number
    assert recipe.parameters == {"t": 0.25}
    assert recipe.notes == ()


def test_without_a_configuration_the_slice_is_taken_for_whole_and_that_is_noted(tmp_path):
    for name in ("a", "b"):
        model(tmp_path / name, layers=None)
    (tmp_path / "m.yml").write_text(
        yaml.safe_dump(sliced("linear", "a", "b", layers=7, base=None, parameters=ONE))
    )
    notes = read_mergekit(tmp_path / "m.yml").notes
    assert len(notes) == 2
    assert "layer_range: [0, 7] is taken for all layers of" in notes[0]


@pytest.mark.parametrize(
    "slices",
    [
        [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "a", "layer_range": [2, 4]}]},
        ],
        [{"sources": [{"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [0, 3]}]}],
        [{"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "b", "layer_range": [0, 3]}]}],
        [{"sources": [{"model": "a", "layer_range": [1, 4]}, {"model": "b", "layer_range": [1, 4]}]}],
        [{"sources": [{"model": "unknown", "layer_range": [0, 0]}]}],
    ],
)
def test_slices_that_cut_or_reorder_layers_are_refused(read, slices):
    with pytest.raises(InputError, match="slices that cut or reorder layers are not supported"):
        read({"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}})


def test_paths_are_relative_to_the_file_or_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "a").mkdir(parents=True)
    (tmp_path / "here" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    file = tmp_path / "recipes" / "m.yml"
    file.write_text(
        yaml.safe_dump(listed("linear", "a", "b", str(tmp_path / "c"), base=None, parameters=ONE))
    )
    monkeypatch.chdir(tmp_path / "here")
    assert read_mergekit("../recipes/m.yml").members == ("../recipes/a", "b", str(tmp_path / "c"))
    (tmp_path / "here" / "a").mkdir()
    with pytest.raises(
        InputError, match=r"models\[0\]: 'a' is both in the folder of this file and in the current one"
    ):
        read_mergekit(file)
    (tmp_path / "here" / "a").rmdir()
    (tmp_path / "here" / "a").symlink_to(tmp_path / "recipes" / "a")
    assert read_mergekit(file).members[0] == str(tmp_path / "recipes" / "a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "org/name-7B",
            r"Nothing is downloaded here: fetch it with `hf download org/name-7B --local-dir org/name-7B`",
        ),
        ("org/name@v1", r"`hf download org/name --revision v1 --local-dir org/name` and write 'org/name'"),
        ("a+adapter", r"models\[0\]: there is no 'a\+adapter' .* merge the adapter into it first"),
        (
            "nowhere",
            r"models\[0\]: there is no 'nowhere' beside this file or in the current folder\. Write the path",
        ),
        ("x" * 5000, "there is no"),
    ],
)
def test_models_that_are_not_there_are_named_and_not_downloaded(read, name, message):
    with pytest.raises(InputError, match=message):
        read(listed("linear", name, "a", base=None, parameters=ONE))


# What is not a number.


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        ({}, None, 0),
        ({"dtype": "bfloat16"}, "bfloat16", 0),
        ({"out_dtype": "torch.float16"}, "float16", 0),
        ({"dtype": "float32", "out_dtype": "bfloat16"}, "bfloat16", 1),
        ({"dtype": "float32", "out_dtype": "float32"}, "float32", 0),
    ],
)
def test_the_dtype_of_the_result_wins(read, given, expected, notes):
    recipe = read(listed("linear", "a", "b", base=None, parameters=ONE, **given))
    assert (recipe.dtype, len(recipe.notes)) == (expected, notes)


def test_what_changes_nothing_is_noted(read):
    recipe = read(
        listed("task_arithmetic", ("a", {"weight": 1, "density": 0.5}), parameters={"int8_mask": True, "rescale": True},
               tokenizer_source="base", chat_template="auto")
    )  # fmt: skip
    notes = " | ".join(recipe.notes)
    for part in (
        "models[0].parameters.density: ignored", "parameters.int8_mask: ignored", "parameters.rescale: ignored",
        "tokenizer_source: embeddings are merged row by row", "chat_template: ignored",
    ):  # fmt: skip
        assert part in notes


@pytest.mark.parametrize(
    ("method", "parameters", "part"),
    [
        ("ties", {"density": 0.5}, "mergekit rounds down"),
        ("dare_linear", {"density": 0.5}, "other entries are dropped"),
        ("dare_ties", {"density": [{"filter": "mlp", "value": 0.5}]}, "other entries are dropped"),
        ("model_stock", {"filter_wise": True}, "per last axis"),
    ],
)
def test_what_will_differ_from_mergekit_is_noted(read, method, parameters, part):
    own = ONE if method != "model_stock" else {}
    assert [
        part in note for note in read(listed(method, ("a", own), ("b", own), parameters=parameters)).notes
    ] == [True]
    assert read(listed(method, ("a", own), ("b", own))).notes == ()


TOKENIZERS = [
    ({"tokenizer_source": "base"}, None),
    ({"tokenizer_source": "a"}, r"tokenizer_source: expected 'base', got 'a': embeddings are not rearranged"),
    ({"tokenizer_source": "union"}, "If all models have the same vocabulary, delete it"),
    ({"tokenizer": {"source": "base"}}, None),
    ({"tokenizer": {"source": "path", "tokens": {}}}, r"tokenizer\.source: expected 'base', got 'path'"),
    (
        {"tokenizer": {"pad_to_multiple_of": 8, "source": "base"}},
        r"tokenizer\.pad_to_multiple_of: is not supported",
    ),
    ({"tokenizer": {"tokens": {"x": {}}}}, r"tokenizer\.tokens: is not supported"),
    ({"tokenizer": {"tokens": None}}, "expected 'base', got 'union'"),  # mergekit's default
    ({"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, "got both"),
]


@pytest.mark.parametrize(("given", "message"), TOKENIZERS)
def test_vocabularies_are_not_rearranged(read, given, message):
    values = listed("ties", ("a", ONE), **given)
    if message is None:
        assert "of one vocabulary" in read(values).notes[0]
    else:
        with pytest.raises(InputError, match=message):
            read(values)


ERRORS = [
    ({"models": []}, r"merge\.yml: merge_method: missing; expected one of linear, task_arithmetic"),
    (listed("breadcrumbs", "a"), r"merge_method: expected one of linear, .*, model_stock, got 'breadcrumbs'\.$"),
    (listed("task-arithmetic", "a"), r"Did you mean 'task_arithmetic'\?"),
    (listed("linear", "a", modells=1), r"modells: unknown key\. Did you mean 'models'\?"),
    (listed("linear", "a", zzz=1), r"zzz: unknown key\. Known keys are merge_method, models"),
    (listed("linear", "a", weight=1), r"weight: unknown key\. It belongs below parameters"),
    (listed("linear", ("a", {"wieght": 1})), r"models\[0\]\.parameters\.wieght: unknown key\. Did you mean 'weight'\?"),
    (listed("linear", "a", modules={"m": {}}), "modules: is not supported"),
    ({"merge_method": "linear"}, "expected either models or slices, got neither"),
    (listed("linear", "a", slices=[{}]), "expected either models or slices, got both"),
    (listed("linear", "a") | {"models": {"model": "a"}}, "models: expected a list"),
    (listed("linear", "a") | {"models": ["a"]}, r"models\[0\]: expected keys such as model, got 'a'"),
    (listed("linear", "a") | {"models": [{"parameters": {}}]}, r"models\[0\]\.model: missing"),
    (listed("linear", "a") | {"models": [{"model": 7}]}, r"models\[0\]\.model: expected a text, got 7"),
    (listed("linear", "a") | {"models": [{"model": ""}]}, r"models\[0\]\.model: expected a text, got ''"),
    (listed("linear", "a", parameters=[1]), "parameters: expected keys such as weight"),
    (listed("linear", "a", "b", "a"), r"models\[2\]: 'a' is listed already, as models\[0\]"),
    (listed("linear", "a", base=None), r"models\[0\]\.parameters\.weight: missing; linear needs it"),
    (listed("ties", ("a", ONE), base=None), "base_model: missing; ties needs it"),
    (listed("ties", "base"), "models: ties needs at least 1 model beside the base model, got 0"),
    (listed("model_stock", "a"), "model_stock needs at least 2 models beside the base model, got 1"),
    (listed("slerp", "a", "b", parameters={"t": 1}), "slerp needs one model beside the base model, got 2"),
    (listed("slerp", "a"), r"parameters\.t: missing; slerp needs it"),
    # mergekit looks for it in the whole file only, and calls it missing or takes its default.
    (listed("slerp", ("a", {"t": 1})), r"models\[0\]\.parameters\.t: is one for all members"),
    (listed("slerp", "a", parameters={"t": 1.25}), r"parameters\.t: expected numbers in \[0, 1\], got 1\.25"),
    (listed("slerp", "a", parameters={"t": [0, 2]}), r"parameters\.t: expected numbers in \[0, 1\]"),
    (listed("ties", ("a", {"density": 0, **ONE})), r"models\[0\]\.parameters\.density: expected the kept share"),
    (listed("ties", ("a", ONE), parameters={"density": 1.5}), r"parameters\.density: .* got 1\.5"),
    (listed("ties", ("a", ONE), parameters={"density": 0.5, "rescale": True}), "rescale: is not supported for ties"),
    (listed("ties", ("a", {"weight": -1})), "weight: expected none below 0 with normalize"),
    (listed("ties", ("a", {"weight": [0, -1]})), "weight: expected none below 0 with normalize"),
    (listed("ties", ("a", ONE), parameters={"lambda": [0, 1]}), "lambda: expected one number for all tensors"),
    (listed("ties", ("a", ONE), parameters={"normalize": "no"}), r"parameters\.normalize: expected true or false"),
    (listed("task_arithmetic", ("a", {"weight": [0, 1]}), parameters={"normalize": True}), "cannot be normalised"),
    (
        listed("task_arithmetic", ("a", ONE), ("b", {"weight": -1}), parameters={"normalize": True}),
        "expected a sum other than 0",
    ),
    (listed("linear", ("a", {"weight": True}), base=None), r"models\[0\]\.parameters\.weight: .* number, got True"),
    (listed("linear", ("a", {"weight": None}), base=None), "expected a number, got None"),
    (listed("linear", ("a", {"weight": "much"}), base=None), "expected a number, got 'much'"),
    (listed("linear", ("a", {"weight": math.nan}), base=None), "expected a number, got nan"),
    (listed("linear", ("a", {"weight": []}), base=None), "expected numbers, got an empty list"),
    (listed("linear", ("a", {"weight": [1, [2]]}), base=None), r"weight\[1\]: expected a number, got \[2\]"),
    (listed("linear", ("a", {"weight": [{"filter": "x"}]}), base=None), r"weight\[0\]\.value: missing"),
    (listed("linear", ("a", {"weight": [{"value": 1}, 2]}), base=None), r"weight\[1\]: expected keys .* got 2"),
    (listed("linear", ("a", {"weight": [{"value": 1, "fliter": "x"}]}), base=None), r"\[0\]\.fliter: .* 'filter'"),
    (listed("linear", ("a", {"weight": [{"value": 1, "filter": 2}]}), base=None), r"\[0\]\.filter: expected a text"),
    (listed("linear", "a", dtype="int8", parameters=ONE), "dtype: expected one of float64, .*, got 'int8'"),
    (listed("linear", "a", out_dtype="half", parameters=ONE), "out_dtype: expected one of float64, .*, got 'half'"),
    (
        sliced("linear", "a") | {"slices": [{"sources": [{"model": "a", "layer_range": "0-4"}]}]},
        r"slices\[0\]\.sources\[0\]\.layer_range: expected \[first layer, last layer \+ 1\]",
    ),
    (sliced("linear", "a", cut={"residual_weight": 1}), r"slices\[0\]\.residual_weight: unknown key"),
    (sliced("linear", ("a", {"normalize": True})), r"slices\[0\]\.sources\[0\]\.parameters\.normalize: is one for all"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), ERRORS)
def test_errors_name_the_key_and_what_was_expected(read, values, message):
    with pytest.raises(InputError, match=message) as caught:
        read(values)
    assert str(caught.value).startswith("merge.yml: ")


# YAML from strangers.


def bomb(levels, width=9):
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


HOSTILE = [
    (bomb(9), r"line 3: expected at most 16 aliases"),
    ("a: &a [*a]", r"line 1: there is no anchor &a before"),
    ("a: *nowhere", r"there is no anchor &nowhere before"),
    (
        "merge_method: !!python/object/apply:os.system ['true']",
        r"line 1: expected no tags, got tag:yaml\.org,2002:python",
    ),
    ("a: 1\nb: !!str linear", "line 2: expected no tags"),
    ("a: !own {b: 1}", "expected no tags, got !own"),
    ("a: !!binary aGk=", "expected no tags"),
    (
        "merge_method: linear\nmodels: []\nmerge_method: ties",
        r"line 3: the key 'merge_method' is there twice",
    ),
    ("models: [{model: a, model: b}]", r"line 1: the key 'model' is there twice"),
    ("x: &x {weight: 1}\nparameters:\n  <<: *x", r"line 3: expected a text as a key, got '<<'"),
    ("1: 2", "expected a text as a key, got 1"),
    ("? [a]\n: 2", r"expected a text as a key, got \['a'\]"),
    ("a: " + "[" * 5000, "expected at most 32 levels"),
    ("[" * 100_000, "expected at most 32 levels"),
    ("a: " + "9" * 5000, "line 1: expected a number, got '999"),
    ("a: " + "1:" * 5000 + "1", "line 1: expected a number"),
    ("a: [1", r"line 1: not YAML: "),
    ("a:\n\t- b", "line 2: not YAML: found character"),
    ("a: \x01", "not YAML: "),
    ("a: 1\n---\nb: 2", "expected one document, got several"),
    ("", "got an empty file"),
    ("# only a remark", "got an empty file"),
    ("linear", "expected keys such as merge_method, got 'linear'"),
    ("- a", r"expected keys such as merge_method, got \['a'\]"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE)
def test_yaml_that_is_not_plain_is_refused_by_line(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_sixteen_aliases_are_allowed_and_hold_what_they_name(read):
    def text(count):
        value = ", ".join(["{filter: nothing, value: *one}"] * (count - 1))
        return (
            "{merge_method: linear, models: [{model: a, parameters: {weight: &one 0.25}}, "
            f"{{model: b, parameters: {{weight: [{value}, {{value: *one}}]}}}}]}}"
        )

    assert read(text(16)).parameters["coefficients"][1][-1] == ["", 0.25]
    with pytest.raises(InputError, match="at most 16 aliases"):
        read(text(17))


def test_dates_and_byte_order_marks_are_text(models, read):
    with pytest.raises(InputError, match="there is no '2024-01-01' beside"):
        read("\ufeff{merge_method: linear, models: [model: 2024-01-01]}")


def test_files_that_are_no_recipe_are_named(tmp_path):
    large = tmp_path / "large.yml"
    large.write_text("#" * LARGEST)
    with pytest.raises(InputError, match="got an empty file"):
        read_mergekit(large)
    large.write_text("#" * (LARGEST + 1))
    with pytest.raises(InputError, match=r"large\.yml: expected a YAML file of at most 1000000 bytes"):
        read_mergekit(large)
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yml: expected text in UTF-8"):
        read_mergekit(tmp_path / "binary.yml")
    with pytest.raises(
        InputError, match=r"none\.yml: expected a YAML file, got none that can be read: No such file"
    ):
        read_mergekit(tmp_path / "none.yml")
    with pytest.raises(InputError, match="got none that can be read: Is a directory"):
        read_mergekit(tmp_path)


def test_yaml_is_loaded_only_to_read_a_recipe():
    code = "import sys, mirepoix.merging._mergekit; print({'yaml', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_order_of_models_is_kept(read):
    for order in itertools.permutations("abc"):
        assert read(listed("ties", *((name, ONE) for name in order))).members == order
