from mirepoix.domainbed._nodes import (
    Interpolated,
    Pretrained,
    TaskName,
    Trained,
    WithHead,
    fused,
    trainings,
)
from mirepoix.runs import Run

TASK, OTHER = TaskName("PACS", "sketch", 1), TaskName("VLCS")
START = Pretrained("PACS")
RUN = Run(steps=10)
PROBE = Trained(START, TASK, RUN.with_(classifier_steps=10))
AUXILIARY = Trained(Pretrained("VLCS"), OTHER, RUN.with_(collect="last"))


def test_a_split_says_what_it_leaves_out():
    assert str(TASK) == "PACS without sketch, data seed 1"
    assert str(OTHER) == "VLCS, data seed 0"
    assert str(TaskName("PACS", "art", 2, ("sketch",))) == "PACS without art and sketch, data seed 2"


def test_equal_expressions_are_one():
    again = Trained(Pretrained("PACS"), TaskName("PACS", "sketch", 1), Run(steps=10, classifier_steps=10))
    assert again == PROBE
    assert len({again, PROBE}) == 1
    different = {PROBE, Trained(START, TASK, PROBE.run, "sam"), Trained(START, OTHER, PROBE.run)}
    assert len({*different, WithHead(PROBE, START), WithHead(START, PROBE)}) == 5


def test_what_is_collected_does_not_make_another_training():
    one, other = (Trained(START, TASK, RUN.with_(collect=name)) for name in ("ema", "moving_average"))
    assert one != other
    assert one.training() == other.training()
    assert one.training().run.collect == "best"


def test_trainings_come_after_those_they_start_from():
    start = WithHead(AUXILIARY, PROBE)
    member = Trained(start, TASK, RUN.with_(collect="swad"))
    assert list(trainings(START)) == []
    assert list(trainings(member)) == [AUXILIARY.training(), PROBE.training(), member.training()]


def test_the_trainings_of_a_mixture_are_those_of_its_parts():
    mixture = fused([PROBE, WithHead(AUXILIARY, PROBE)], [0.25, 0.75])
    assert mixture == Interpolated((PROBE, WithHead(AUXILIARY, PROBE)), (0.25, 0.75))
    assert list(trainings(mixture)) == [PROBE.training(), AUXILIARY.training(), PROBE.training()]
