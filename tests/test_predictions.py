import pytest
import torch

from mirepoix.data import evaluation_batches
from mirepoix.predictions import Predictions, predict
from mirepoix.types import InputError
from tests.tiny import tiny_network, tiny_task


def example(members=2, samples=4, classes=3):
    random = torch.Generator().manual_seed(0)
    return Predictions(
        logits=torch.randn(members, samples, classes, generator=random),
        labels=torch.arange(samples) % classes,
        domains=torch.arange(samples) % 2,
        members=tuple(f"run-{i}" for i in range(members)),
        classes=("a", "b", "ç"),
        domain_names=("photo", "sketch"),
    )


def test_what_is_saved_is_read_again(tmp_path):
    before = example()
    before.save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.domains, before.domains)
    assert (after.members, after.classes, after.domain_names) == (
        before.members,
        before.classes,
        before.domain_names,
    )


def test_the_same_predictions_give_the_same_file(tmp_path):
    example().save(tmp_path / "a.safetensors")
    example().save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_members_are_chosen_by_name_in_the_order_asked():
    chosen = example(3).of(["run-2", "run-0"])
    assert chosen.members == ("run-2", "run-0")
    assert torch.equal(chosen.logits, example(3).logits[[2, 0]])
    with pytest.raises(InputError, match="no member 'run-9'; they hold run-0, run-1"):
        example().of(["run-9"])


def test_correct_compares_the_largest_logit_with_the_label():
    predictions = example()
    for i, member in enumerate(predictions.logits):
        for j, logits in enumerate(member):
            right = max(range(3), key=lambda k: logits[k]) == predictions.labels[j]
            assert predictions.correct()[i, j] == right


@pytest.mark.parametrize("field", ["members", "classes"])
def test_parts_that_do_not_fit_are_refused(field):
    values = {name: getattr(example(), name) for name in Predictions.__dataclass_fields__}
    values[field] = values[field][:-1]
    with pytest.raises(InputError, match=rf"need \d {field}, got \d"):
        Predictions(**values)


def test_another_file_is_refused(tmp_path):
    from mirepoix.checkpoints import write_weights

    write_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(
        InputError, match="expected predictions saved by mirepoix, got a file with the keys w"
    ):
        Predictions.load(tmp_path / "w.safetensors")


def test_predict_is_every_sample_in_order_whatever_the_batch_size():
    task = tiny_task()
    subset = task.split("domain_1").test[0]
    model = tiny_network().build(dropout=0.9)
    model.train()
    one = predict(model, evaluation_batches(subset, task.transform, batch_size=7))
    two = predict(model, evaluation_batches(subset, task.transform, batch_size=1000))
    torch.testing.assert_close(one, two)
    assert one.shape == (len(subset), 2)
    assert model.training  # given back as it was
    with pytest.raises(InputError, match="at least one batch"):
        predict(model, [])
