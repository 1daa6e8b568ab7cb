import json

import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

import torch

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.text import tiny_start
from mirepoix.types import InputError
from tests.rewards.text import small


def test_it_learns_the_corpus_and_says_so(start):
    record = json.loads((start.folder / "mirepoix.json").read_text())
    assert len(record["losses"]) == 60
    assert record["losses"][-1] < 0.5 * record["losses"][0]
    assert record["fingerprint"] == start.fingerprint == fingerprint(start.weights)


def test_same_arguments_same_bits_and_another_seed_another_start(corpus, start, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = small.start(corpus, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.identity == start.identity
    other = small.start(corpus, tmp_path / "other", seed=1)
    assert other.fingerprint != start.fingerprint
    assert other.identity["tokenizer"] == start.identity["tokenizer"]


def test_it_is_a_folder_of_transformers(start):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(start.folder)
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(start.folder)
    ids = tokenizer("the film is great")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the film is great"
    assert tokenizer.decode(tokenizer("größer 😀")["input_ids"], skip_special_tokens=True) == "größer 😀"


def test_what_is_there_is_found_and_never_replaced(corpus, start, tmp_path):
    at = (start.folder / "model.safetensors").stat().st_mtime_ns
    assert small.start(corpus, start.folder).fingerprint == start.fingerprint
    assert (start.folder / "model.safetensors").stat().st_mtime_ns == at
    with pytest.raises(InputError, match="exists already, and is not the start of these arguments"):
        small.start(corpus, start.folder, seed=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists already"):
        small.start(corpus, tmp_path / "mine")
    with pytest.raises(InputError, match="does not exist"):
        small.start(corpus, tmp_path / "no" / "start")


def test_a_start_that_fails_leaves_nothing(corpus, tmp_path):
    with pytest.raises(InputError, match="width: expected a multiple of 8"):
        tiny_start(corpus, tmp_path / "start", width=10)
    with pytest.raises(InputError, match="words: expected at least 300"):
        tiny_start(corpus, tmp_path / "start", words=10)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_training_continues_with_the_same_bits(corpus, tmp_path):
    class Killed(Exception):
        pass

    seen = []

    def stop(done, steps, loss):
        seen.append(done)
        if len(seen) in (25, 40):
            raise Killed

    whole = small.start(corpus, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Killed):
            small.start(corpus, tmp_path / "again", checkpoint_every=10, on_progress=stop)
    assert not (tmp_path / "again").exists()
    again = small.start(corpus, tmp_path / "again", checkpoint_every=10, on_progress=stop)
    assert again.fingerprint == whole.fingerprint
    assert seen[24:26] == [25, 21]
    assert seen[-1] == 60
    records = [json.loads((folder / "mirepoix.json").read_text()) for folder in (whole.folder, again.folder)]
    assert records[0]["losses"] == records[1]["losses"]
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "again"}


def test_the_state_of_another_training_is_not_used(corpus, tmp_path):
    class Killed(Exception):
        pass

    def stop(done, steps, loss):
        if done == 25:
            raise Killed

    with pytest.raises(Killed):
        small.start(corpus, tmp_path / "start", checkpoint_every=10, on_progress=stop, seed=1)
    found = small.start(corpus, tmp_path / "start")
    assert found.fingerprint == small.start(corpus, tmp_path / "other").fingerprint
