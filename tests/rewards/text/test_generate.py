import numpy as np
import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

import torch

from mirepoix.rewards.text import TextEvaluation, TextModel, distinct, length_target, rouge_l, soup
from mirepoix.types import InputError

PROMPTS = ["the film is", "the plot was dull and the", "the", "the music is great and"] * 3


@pytest.fixture
def model(start):
    return TextModel(start, device="cpu")


def by_hand(start, thetas, shares, prompt, tokens, temperature=0.0, draws=None):
    """One prompt, one token after the other, without memory; the reference."""
    networks = []
    for theta in thetas:
        network = start.model()
        network.load_state_dict({name: theta[name] for name in theta}, strict=False)
        networks.append(network)
    ids, made = start.tokenizer(prompt)["input_ids"], []
    for step in range(tokens):
        with torch.no_grad():
            parts = [
                network(torch.tensor([ids + made])).logits[0, -1].double().softmax(-1) for network in networks
            ]
        p = sum(share * part for share, part in zip(shares, parts, strict=True)).numpy()
        if temperature:
            p = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
            token = int((np.cumsum(p) <= draws[step]).sum())
        else:
            token = int(p.argmax())
        made.append(token)
        if token == start.tokenizer.eos_token_id:
            break
    return start.tokenizer.decode(made, skip_special_tokens=True)


def test_greedy_completions_are_those_of_transformers(start, model):
    ids = start.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    made = model.network.generate(
        input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=12, do_sample=False
    )
    expected = start.tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert model.complete(PROMPTS, max_tokens=12) == expected
    assert model.complete(PROMPTS, max_tokens=12, batch_size=5) == expected
    assert model.tokens_per_second > 0


def test_draws_fall_where_the_reference_says(start, model):
    from mirepoix.seeds import stream

    draws = stream("complete", 7).random((len(PROMPTS), 8))
    expected = [
        by_hand(start, [start.weights], [1.0], prompt, 8, 0.8, row)
        for prompt, row in zip(PROMPTS, draws, strict=True)
    ]
    before = torch.random.get_rng_state()
    found = model.complete(PROMPTS, max_tokens=8, temperature=0.8, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found == expected
    assert found == model.complete(PROMPTS, max_tokens=8, temperature=0.8, seed=7, batch_size=5)
    assert found != model.complete(PROMPTS, max_tokens=8, temperature=0.8, seed=8)


def test_draws_have_the_probabilities_of_the_network(start, model):
    with torch.no_grad():
        logits = model.network(**start.tokenizer(["the film is"], return_tensors="pt")).logits[0, -1]
    texts = model.complete(["the film is"] * 2000, max_tokens=1, temperature=1.0, batch_size=500)
    p = logits.double().softmax(-1)
    token = int(p.argmax())
    share = np.mean([text == start.tokenizer.decode([token], skip_special_tokens=True) for text in texts])
    assert abs(share - float(p[token])) < 4 * np.sqrt(float(p[token] * (1 - p[token])) / 2000)


def test_weights_are_written_and_put_back(start, trained, model):
    _, experts = trained
    fresh = dict(model.network.state_dict())
    first = {name: tensor.clone() for name, tensor in fresh.items()}
    mixed = soup(experts, {"sentiment": 0.5, "length": 0.5})
    model.write_(mixed)
    for name in mixed:
        assert torch.equal(fresh[name], mixed[name])
    name = next(iter(start.weights))
    model.write_({name: torch.full_like(start.weights[name], 2.0)})
    assert (fresh[name] == 2).all()
    model.write_({})
    for name, tensor in first.items():
        assert torch.equal(fresh[name], tensor)
    with pytest.raises(InputError, match="the network has no 'x'"):
        model.write_({"x": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        model.write_({name: torch.zeros(1)})


def test_an_ensemble_of_one_is_that_one(trained, model):
    _, experts = trained
    model.write_(experts["length"])
    alone = model.complete(PROMPTS, max_tokens=8, temperature=1.0)
    together = model.complete_by_ensemble(
        experts, {"sentiment": 0.0, "length": 1.0}, PROMPTS, max_tokens=8, temperature=1.0
    )
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_ensemble_averages_probabilities(start, trained, model, temperature):
    from mirepoix.seeds import stream

    _, experts = trained
    draws = stream("complete", 0).random((len(PROMPTS), 6))
    expected = [
        by_hand(start, list(experts.values()), [0.3, 0.7], prompt, 6, temperature, row)
        for prompt, row in zip(PROMPTS, draws, strict=True)
    ]
    found = model.complete_by_ensemble(
        experts, {"sentiment": 0.3, "length": 0.7}, PROMPTS, max_tokens=6, temperature=temperature
    )
    assert found == expected
    with pytest.raises(InputError, match="sum to one"):
        model.complete_by_ensemble(experts, {"sentiment": 0.3, "length": 0.3}, PROMPTS)
    with pytest.raises(InputError, match="expected one number for each"):
        model.complete_by_ensemble(experts, {"sentiment": 1.0}, PROMPTS)


def test_an_evaluation_measures_each_prompt(start, trained, model):
    _, experts = trained
    rewards = [length_target(), distinct(2), rouge_l()]
    columns = {"reference": ["great ."] * len(PROMPTS)}
    evaluate = TextEvaluation(model, PROMPTS, rewards, columns=columns, max_tokens=6, temperature=1.0)
    found = evaluate(experts["length"])
    assert {name: values.shape for name, values in found.items()} == {
        "length": (12,),
        "distinct-2": (12,),
        "rouge-l": (12,),
    }
    texts = evaluate.completions(experts["length"])
    assert found["length"].tolist() == length_target()(PROMPTS, texts)
    whole = dict(experts["length"])
    assert {name: values.tolist() for name, values in evaluate(whole).items()} == {
        name: values.tolist() for name, values in found.items()
    }
    ensemble = evaluate.ensemble(experts, {"sentiment": 0.0, "length": 1.0})
    assert ensemble["length"].tolist() == found["length"].tolist()
    other = TextEvaluation(model, PROMPTS, rewards, columns=columns, max_tokens=6, temperature=1.0, seed=1)
    assert other.digest != evaluate.digest
    with pytest.raises(InputError, match="'length' twice"):
        TextEvaluation(model, PROMPTS, [length_target(), length_target()])


def test_what_cannot_be_completed_is_refused(model):
    with pytest.raises(InputError, match="max_tokens can be"):
        model.complete(["the film " * 100])
    with pytest.raises(InputError, match="max_tokens: expected at least 1"):
        model.complete(PROMPTS, max_tokens=0)
    with pytest.raises(InputError, match="temperature"):
        model.complete(PROMPTS, temperature=-1)
