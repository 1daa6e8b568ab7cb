import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards.scenes import Captioning, SceneNetwork, decode, initial_network
from mirepoix.rewards.scenes._network import BEGIN, END, PAD
from mirepoix.seeds import generator
from mirepoix.types import InputError
from tests.reference import self_critical
from tests.rewards.scenes import small

NEVER = (PAD, BEGIN)


def lively(seed=0):
    """A network whose words are far from equally probable, and in which images count."""
    theta = initial_network(small.TASK, seed=seed, width=32, layers=2)
    theta["decoder.lm_head.weight"] = 6 * theta["decoder.lm_head.weight"]
    return SceneNetwork(small.TASK, theta)


def next_logits(network, image):
    """Of one sequence, without padding, cache or batch, in float64."""
    model = SceneNetwork(small.TASK, network.weights()).model.double()
    pixels = torch.from_numpy(image.astype(np.float64) / 127.5)[None, None]
    with torch.no_grad():
        seen = model.encoder(pixel_values=pixels).last_hidden_state

        def logits(said):
            with torch.no_grad():
                found = model.decoder(
                    input_ids=torch.tensor([said]), encoder_hidden_states=seen, use_cache=False
                )
            return found.logits[0, -1].tolist()

    return logits


def examples():
    """Images, prompts of two lengths and none."""
    made = small.TASK.examples("test")
    return made.images[:6], ["", "first ?", "which digit ?", "first ?", "", "which"]


def rows_of(network, sequences):
    """Prompt and answer of each row as lists."""
    found = []
    for tokens, answered in zip(sequences.tokens.tolist(), sequences.answered.tolist(), strict=True):
        prompt = tokens[: answered.index(True)]
        found.append((prompt, [token for token, mine in zip(tokens, answered, strict=True) if mine]))
    return found


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize("members", [1, 2])
def test_answers_are_those_of_one_sequence_at_a_time(sampled, members):
    networks, shares = [lively(seed) for seed in range(members)], [1.0] if members == 1 else [0.3, 0.7]
    images, prompts = examples()
    draws = generator("test") if sampled else None
    found = rows_of(networks[0], decode(networks, shares, images, prompts, samples=2, generator=draws))
    uniform = torch.rand(12, small.TASK.longest, generator=generator("test")).tolist()
    for row, (prompt, answer) in enumerate(found):
        image = images[row // 2]
        assert prompt == networks[0].numbers(prompts[row // 2])
        expected = self_critical.speak(
            [(share, next_logits(one, image)) for share, one in zip(shares, networks, strict=True)],
            BEGIN,
            END,
            prompt,
            small.TASK.longest,
            NEVER,
            uniform[row] if sampled else None,
        )
        assert answer == expected
    assert len({tuple(answer) for _, answer in found}) > 2


def test_log_probabilities_are_those_of_one_token_at_a_time():
    network = lively()
    images, prompts = examples()
    drawn = decode([network], [1.0], images, prompts, samples=2, generator=generator("logs"))
    with torch.no_grad():
        logs = network.log_probabilities(network.see(images).repeat_interleave(2, dim=0), drawn)
    assert logs.shape == drawn.tokens.shape
    assert (logs[~drawn.answered] == 0).all()
    for row, (prompt, answer) in enumerate(rows_of(network, drawn)):
        expected = self_critical.log_probability(
            next_logits(network, images[row // 2]), BEGIN, prompt, answer, NEVER
        )
        assert float(logs[row].sum()) == pytest.approx(expected, abs=1e-4)


def test_draws_follow_the_probabilities():
    network = lively()
    image, prompt = small.TASK.examples("test").images[:1], "first ?"
    count = 4000
    drawn = decode([network], [1.0], image, [prompt], samples=count, generator=generator("many"))
    logits = next_logits(network, image[0])([BEGIN, *network.numbers(prompt)])
    expected = np.array(self_critical.probabilities(logits, NEVER))
    firsts = [answer[0] for _, answer in rows_of(network, drawn)]
    shares = np.bincount(firsts, minlength=len(expected)) / count
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / count))
    assert (expected > 0.05).sum() >= 2


def test_greedy_answers_are_those_of_transformers():
    network = lively()
    images, _ = examples()
    ours = network.texts(decode([network], [1.0], images, ["first ?"] * 6))
    pixels = torch.from_numpy(images / np.float32(127.5))[:, None]
    begun = torch.tensor([[BEGIN, *network.numbers("first ?")]] * 6)
    made = network.model.generate(
        pixel_values=pixels, decoder_input_ids=begun, decoder_attention_mask=torch.ones_like(begun)
    )
    theirs = []
    for row in made[:, begun.shape[1] :].tolist():
        words = row[: row.index(END)] if END in row else row
        theirs.append(" ".join(small.TASK.vocabulary[word - 3] for word in words))
    assert ours == theirs
    model = network.model
    for config in (model.config, model.generation_config):
        assert (config.decoder_start_token_id, config.pad_token_id, config.eos_token_id) == (BEGIN, PAD, END)
    assert model.generation_config.top_k == 0


def test_an_answer_does_not_depend_on_its_neighbours():
    network = lively()
    images, prompts = examples()
    together = network.texts(decode([network], [1.0], images, prompts))
    alone = [
        network.texts(decode([network], [1.0], images[i : i + 1], prompts[i : i + 1]))[0] for i in range(6)
    ]
    assert together == alone


def test_an_ensemble_of_one_network_twice_is_the_network():
    network, twin = lively(), lively()
    images, prompts = examples()
    alone = network.texts(decode([network], [1.0], images, prompts))
    assert network.texts(decode([network, twin], [0.3, 0.7], images, prompts)) == alone


def test_true_answers_end_and_come_back_as_they_were():
    network = lively()
    sequences = network.sequences(["", "which digit ?"], ["thin left", "bold"])
    assert network.texts(sequences) == ["thin left", "bold"]
    numbers = network.numbers
    assert rows_of(network, sequences) == [
        ([], [*numbers("thin left"), END]),
        (numbers("which digit ?"), [*numbers("bold"), END]),
    ]


def test_wrong_words_are_refused():
    network = lively()
    with pytest.raises(InputError, match="'purple' is not a word of the task 'strokes'"):
        network.numbers("thin purple")
    with pytest.raises(InputError, match="answer 'thin thin thin thin': expected at most 4 tokens, got 5"):
        network.sequences([""], ["thin thin thin thin"])
    with pytest.raises(InputError, match="prompt 'first first first first': expected at most 3 tokens"):
        network.sequences(["first first first first"], ["thin"])


def test_first_weights_follow_from_the_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    theta = initial_network(small.TASK, seed=1, width=16)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert small.same(theta, initial_network(small.TASK, seed=1, width=16))
    assert not small.same(theta, initial_network(small.TASK, seed=2, width=16))
    network = SceneNetwork(small.TASK, theta)
    assert small.same(network.weights(), theta)


def test_the_network_of_captions_is_as_small_as_said():
    theta = initial_network(Captioning(train=1, validation=1, test=1))
    assert 150_000 < sum(tensor.numel() for tensor in theta.values()) < 250_000


def test_other_weights_are_refused():
    theta = initial_network(small.TASK, width=16)
    with pytest.raises(InputError, match=r"it has no 'decoder.transformer.wte.weight'"):
        SceneNetwork(small.TASK, {"w": torch.zeros(2)})
    captions = Captioning(train=1, validation=1, test=1)
    with pytest.raises(
        InputError, match=r"'decoder.lm_head.weight' has shape \(11, 16\), expected \(4., 16\)"
    ):
        SceneNetwork(captions, theta)
    network = SceneNetwork(small.TASK, theta)
    wider = initial_network(small.TASK, width=32)
    with pytest.raises(InputError, match=r"expert 'a': .* has shape \(.*32.*\), expected \(.*16.*\)"):
        network.write_(wider, "expert 'a'")
    with pytest.raises(InputError, match=r"'extra' has shape .*, expected nothing"):
        network.write_({**theta, "extra": torch.zeros(2)})
    with pytest.raises(InputError, match="width: expected a multiple of 16, got 20"):
        initial_network(small.TASK, width=20)
    with pytest.raises(InputError, match="layers: expected at least 1, got 0"):
        initial_network(small.TASK, layers=0)
