"""Every kind of study from beginning to end, as small as it can be."""

import json
import shutil

import numpy as np
import pytest

from mirepoix.checkpoints import open_weights, read_json
from mirepoix.fronts import load_front_recipe, run_front
from mirepoix.report import write_report
from mirepoix.types import InputError

SCENES = """
[task]
train = 40
validation = 8
test = 12
[start]
steps = 4
batch_size = 8
width = 16
layers = 1
[run]
steps = 2
batch_size = 4
samples = 2
normalise = "none"
[evaluation]
examples = 12
"""
DIFFUSION = """
[task]
channels = [8, 16]
[start]
steps = 4
batch_size = 16
[run]
steps = 2
batch_size = 16
generated = 64
sampling_steps = 2
[evaluation]
images = 24
steps = 2
"""
KINDS = {
    "diffusion": ('experts = ["legibility", "boldness"]\nalso = ["symmetry"]', DIFFUSION, "diffusers"),
    "captioning": ('experts = ["bleu1", "rouge"]\nalso = ["cider"]', SCENES, "transformers"),
    "grounding": ('experts = ["small", "medium", "large"]\npoints = 5', SCENES, "transformers"),
    "visual-questions": ('experts = ["bleu1", "meteor"]\nalso = ["exact"]', SCENES, "transformers"),
}


def run(path, out, *settings, **options):
    recipe, path = load_front_recipe(path, settings)
    return run_front(recipe, recipe_path=path, out=out, **options)


@pytest.mark.parametrize("subject", KINDS)
def test_images(subject, tmp_path):
    front, tables, library = KINDS[subject]
    pytest.importorskip(library, reason="pip install 'mirepoix[text,diffusion]'")
    points = "" if "points" in front else "points = 3"
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\n[front]\nsubject = "{subject}"\n{front}\n{points}\nsamples = 2\n{tables}')
    content = run(path, tmp_path / "out")
    write_report(content, tmp_path / "out")
    (trial,) = content["trials"]
    assert [front["role"] for front in trial["fronts"]] == ["soup", "morl", "ensemble", "start"]
    assert content["facts"]
    samples = content["samples"]
    assert len(samples["items"]) == 2
    images = [answer for column in samples["columns"] for answer in column["answers"]]
    key = [item.get("image") for item in samples["items"]] if subject != "diffusion" else images
    assert all("data:image/png" in json.dumps(value) for value in key)
    assert (tmp_path / "out" / "chosen.safetensors").is_file()
    assert run(path, tmp_path / "out") == content
    assert read_json(tmp_path / "out" / "job.json")["made_now"] == 0
    with pytest.raises(InputError, match="'beauty'"):
        run(path, tmp_path / "other", 'front.also=["beauty"]')


RUN = """
[run]
steps = 2
batch_size = 4
completions = 2
rank = 2
samples = 8
max_tokens = 4
"""


@pytest.fixture(scope="module")
def language():
    for name in ("trl", "peft", "datasets"):
        pytest.importorskip(name, reason="pip install 'mirepoix[text]'")


def test_movie_reviews_and_then_a_model_of_your_own(language, tmp_path, monkeypatch):
    from tests.rewards.text.small import write_reviews

    write_reviews(tmp_path / "movie_reviews.zip")
    path = tmp_path / "movies.toml"
    path.write_text(
        'name = "movies"\n[front]\nsubject = "movie-reviews"\nexperts = ["sentiment", "length"]\n'
        'also = ["distinct-2", "rouge-l"]\npoints = 3\nsamples = 2\n[task]\nprompts = 16\nprompt_words = [2, 4]\n'
        "[start]\nsteps = 4\nwords = 320\nwidth = 16\nlayers = 1\nbatch_size = 8\n"
        f"{RUN}[evaluation]\nprompts = 12\nmax_tokens = 4\ntemperature = 1.0\n"
    )
    content = run(path, tmp_path / "out", data=tmp_path)
    write_report(content, tmp_path / "out")
    assert content["rewards"] == ["sentiment", "length", "distinct-2", "rouge-l"]
    labels = [column["label"] for column in content["samples"]["columns"]]
    assert labels[:2] == ["start", "lambda[sentiment] = 1"]
    assert "MORL 0.5 sentiment + 0.5 length" in labels
    assert (tmp_path / "out" / "chosen" / "adapter_model.safetensors").is_file()
    assert run(path, tmp_path / "out", data=tmp_path) == content

    (model,) = (tmp_path / "out" / "store" / "text-starts").iterdir()
    (tmp_path / "own_rewards.py").write_text(
        "def long(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
        "def broken(prompts, completions, **columns):\n    return [1 / 0 for text in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("train", "test"):
        rows = [{"prompt": f"the film is {n}", "reference": "great"} for n in ("good", "bad", "long", "new")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = tmp_path / "own.toml"
    own.write_text(
        'name = "own"\n[front]\nsubject = "text"\nexperts = ["long", "short"]\npoints = 3\nsamples = 1\n'
        f'[task]\nmodel = "{model}"\nprompts = "train.jsonl"\n{RUN}'
        '[evaluation]\nprompts = "test.jsonl"\nlimit = 3\nmax_tokens = 4\n'
        '[rewards.long]\nfunction = "own_rewards:long"\n[rewards.short]\nbuiltin = "length-2"\n'
    )
    content = run(own, tmp_path / "own", data=tmp_path)
    assert content["trained"] == ["long", "short"]
    assert content["trials"][0]["fronts"][0]["rows"][0]["standard_errors"] is not None
    with pytest.raises(
        InputError, match=r"reward 'long' failed for the prompt 'the film is good'.*ZeroDivision"
    ):
        run(own, tmp_path / "broken", "rewards.long.function=own_rewards:broken", data=tmp_path)
    assert not (tmp_path / "broken" / "store").exists()
    with pytest.raises(InputError, match=r"task.prompts: there is no file 'none.jsonl'"):
        run(own, tmp_path / "none", "task.prompts=none.jsonl", data=tmp_path)
    with pytest.raises(InputError, match="no built-in 'beauty'"):
        run(own, tmp_path / "none", "rewards.short.builtin=beauty", data=tmp_path)


@pytest.mark.filterwarnings("ignore")  # of peft about transformers
def test_the_exported_adapter_is_the_soup(language, tmp_path):
    from mirepoix.checkpoints import fingerprint
    from tests.rewards.text.small import write_reviews

    write_reviews(tmp_path / "movie_reviews.zip")
    path = tmp_path / "movies.toml"
    path.write_text(
        'name = "movies"\n[front]\nsubject = "movie-reviews"\nexperts = ["sentiment", "length"]\n'
        "points = 3\nsamples = 0\nmorl = []\n[task]\nprompts = 16\nprompt_words = [2, 4]\n"
        "[start]\nsteps = 4\nwords = 320\nwidth = 16\nlayers = 1\nbatch_size = 8\n"
        f"{RUN}[evaluation]\nprompts = 12\nmax_tokens = 4\n"
    )
    content = run(path, tmp_path / "out", data=tmp_path)
    assert [volume["role"] for volume in content["trials"][0]["volumes"]] == ["soup", "ensemble"]
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    (model,) = (tmp_path / "out" / "store" / "text-starts").iterdir()
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    record = read_json(tmp_path / "out" / "choice.json")
    assert record["start"] == fingerprint(open_weights(model))
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "chosen").merge_and_unload()
    experts = {}
    for entry in (tmp_path / "out" / "store" / "text-experts").iterdir():
        name = next(iter(read_json(entry / "record.json")["made_of"]["train"]["reward"]))
        network = transformers.AutoModelForCausalLM.from_pretrained(model)
        merged = peft.PeftModel.from_pretrained(network, adapter_folder(entry, tmp_path / name))
        experts[name] = merged.merge_and_unload().state_dict()
    moved = 0.0
    for name, tensor in adapted.state_dict().items():
        soup = sum(share * experts[expert][name] for expert, share in record["coefficients"].items())
        np.testing.assert_allclose(tensor.numpy(), soup.numpy(), atol=1e-6)
        moved = max(moved, float((tensor - before[name]).abs().max()))
    assert moved > 1e-5


def adapter_folder(entry, place):
    """A stored expert as PEFT wants it."""
    place.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(entry / name, place / name)
    return place
