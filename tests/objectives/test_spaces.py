import inspect
import math

import numpy as np
import pytest

from mirepoix.objectives import SANDMask
from mirepoix.objectives._named import NOT_IN_RECIPES, OBJECTIVES, check_named, model_facts
from mirepoix.objectives._spaces import (
    OPTION_SPACES,
    OPTION_SPACES_SMALL,
    RUN_SPACES,
    RUN_SPACES_SMALL,
    SMALL_DEFAULTS,
    draw_options,
)
from mirepoix.runs import EXTREME, EXTREME_SMALL, Run, sample_runs
from mirepoix.seeds import seed_hash
from mirepoix.types import InputError

DRAWS = 200

# From the specification, by hand: (kind, ends or values), kinds as there.
RANGES = {
    "irm_lambda": ("log10", -1, 5),
    "irm_penalty_anneal_iters": ("int log10", 0, 4),
    "vrex_lambda": ("log10", -1, 5),
    "vrex_penalty_anneal_iters": ("int log10", 0, 4),
    "groupdro_eta": ("log10", -3, -1),
    "ib_lambda": ("log10", -1, 5),
    "ib_penalty_anneal_iters": ("int log10", 0, 4),
    "sd_reg": ("log10", -5, -1),
    "mixup_alpha": ("log10", -1, 1),
    "mmd_gamma": ("log10", -1, 1),
    "eqrm_quantile": ("uniform", 0.5, 0.99),
    "eqrm_burnin_iters": ("log10", 2.5, 3.5),
    "eqrm_lr": ("log10", -7, -5),
    "rdm_lambda": ("uniform", 0.1, 10),
    "rdm_penalty_anneal_iters": ("int uniform", 800, 2700),
    "variance_weight": ("uniform", 0.001, 0.007),
    "rdm_lr": ("uniform", 8e-6, 2e-5),
    "and_mask.tau": ("uniform", 0.5, 1),
    "sand_mask.tau": ("uniform", 0, 1),
    "k": ("log10", -3, 5),
    "penalty": ("log10", 1, 5),
    "meta_lr": ("of", 0.05, 0.1, 0.5),
    "mldg_beta": ("log10", -1, 1),
    "n_meta_test": ("of", 1, 2),
    "rsc_f_drop_factor": ("uniform", 0, 0.5),
    "rsc_b_drop_factor": ("uniform", 0, 0.5),
    "fishr.lambda_": ("log10", 1, 4),
    "penalty_anneal_iters": ("int uniform", 0, 5000),
    "ema": ("uniform", 0.90, 0.99),
    "lmbda": ("of", 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
    "temperature": ("of", 0.05, 0.1),
    "lambda_": ("log10", -2, 2),
    "d_steps_per_g_step": ("int log2", 0, 3),
    "grad_penalty": ("log10", -2, 1),
    "beta1": ("of", 0.0, 0.5),
    "mlp_width": ("int log2", 6, 10),
    "mlp_depth": ("of", 3, 4, 5),
    "mlp_dropout": ("of", 0.0, 0.1, 0.5),
    "lr_d": ("log10", -5, -3.5),
    "weight_decay_d": ("log10", -6, -2),
    "sag_w_adv": ("log10", -2, 1),
    "cos_lambda": ("log10", -5, 0),
    "iters": ("int log10", 0, 4),
    "t_lambda": ("log10", -2, 1),
    "delta": ("uniform", 0.1, 3),
    "d_steps_per_g": ("of", 1, 2, 5),
    "transfer.lr_d": ("log10", -4.5, -2.5),
    "adrmx.mlp_depth": ("of", 8, 9, 10),
    "lr": ("of", 2e-5, 3e-5, 4e-5, 5e-5),
    "linear_lr": ("log10", -5, -3.5),
    "mtl_ema": ("of", 0.5, 0.9, 0.99, 1.0),
    "urm_adv_lambda": ("uniform", 0, 0.2),
    "urm_discriminator_hidden_layers": ("of", 1, 2, 3),
    "urm_generator_output": ("of", "tanh", "relu"),
    "urm_discriminator_lr": ("log10", -6, -4.5),
    "rho": ("of", 0.01, 0.02, 0.05, 0.1),
}
SMALL = {
    "lr": ("of", 5e-4, 1e-3, 2e-3, 3e-3),
    "lr_d": ("log10", -4.5, -2.5),
    "urm_discriminator_lr": ("log10", -5.5, -3.5),
}


def expected(name, option, small):
    if small and option in SMALL:
        return SMALL[option]
    return RANGES.get(f"{name}.{option}") or RANGES[option]


def slowly(kind, ends, seed):
    """One draw, as the specification words it."""
    random = np.random.RandomState(seed)
    if kind == "of":
        return ends[int(random.choice(len(ends)))]
    value = random.uniform(*ends)
    if "log" in kind:
        value = float(kind[-2:].strip("g")) ** value
    return int(value) if kind.startswith("int") else value


def test_every_criterion_has_a_space():
    assert set(OPTION_SPACES) == set(OBJECTIVES)
    assert set(OPTION_SPACES_SMALL) == set(SMALL_DEFAULTS) <= set(OPTION_SPACES)
    empty = {name for name in OPTION_SPACES if not OPTION_SPACES[name]}
    assert empty == {"erm", "selfreg", "arm", "cutmix", "manifold_mixup"}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_hyperparameters_are_keywords_of_the_constructor(name):
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    assert set(OPTION_SPACES[name]) <= set(parameters) - set(model_facts(name))
    for table in (OPTION_SPACES_SMALL, SMALL_DEFAULTS):
        assert set(table.get(name, {})) <= set(OPTION_SPACES[name])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_draws_are_those_of_the_published_table(name, small):
    options = [draw_options(name, h, 1, small=small) for h in range(1, DRAWS + 1)]
    for option in OPTION_SPACES[name]:
        kind, *ends = expected(name, option, small)
        drawn = [each[option] for each in options]
        for h in range(1, 6):
            seed = seed_hash(seed_hash(h, 1), "lambda" if option == "lambda_" else option)
            assert drawn[h - 1] == slowly(kind, ends, seed)
        if kind == "of":
            assert set(drawn) == set(ends)
            assert {type(value) for value in drawn} <= {type(end) for end in ends}
            continue
        base = {"log10": 10, "log2": 2}.get(kind.split()[-1])
        low, high = ((base ** ends[0], base ** ends[1]) if base else ends) if base else ends
        assert all(math.floor(low) <= value <= high for value in drawn)
        assert min(drawn) < low + (high - low) / 2
        assert {type(value) for value in drawn} == {int if kind.startswith("int") else float}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_IN_RECIPES])
def test_what_is_drawn_can_be_used(name):
    for h in (0, 1, 2, 3):
        check_named(name, draw_options(name, h))
        check_named(name, draw_options(name, h, 2, small=True))


@pytest.mark.parametrize("h", [1, 2, 19])
def test_a_hyperparameter_has_one_value_in_all_criteria_that_share_its_range(h):
    each = {name: draw_options(name, h, 2) for name in OPTION_SPACES}
    gammas = {each[name]["mmd_gamma"] for name in ("coral", "mmd", "causirl_coral", "causirl_mmd")}
    assert len(gammas) == 1
    assert each["irm"].items() <= each["ib_irm"].items()
    assert each["ib_erm"].items() <= each["ib_irm"].items()
    assert each["dann"] == each["cdann"]
    assert each["trm"]["groupdro_eta"] == each["group_dro"]["groupdro_eta"]
    assert each["cad"] == each["cond_cad"]


def test_other_runs_and_trials_draw_other_values():
    drawn = [draw_options("irm", h, seed)["irm_lambda"] for h in (1, 2) for seed in (0, 1)]
    assert len(set(drawn)) == 4
    assert draw_options("irm", 1) == draw_options("irm", 1, 0)


def test_run_zero_has_the_defaults():
    assert draw_options("fishr", 0, 5) == {"lambda_": 1000.0, "penalty_anneal_iters": 1500, "ema": 0.95}
    assert draw_options("erm", 0) == {}
    assert draw_options("dann", 0)["lr_d"] == 5e-5
    assert draw_options("dann", 0, small=True)["lr_d"] == 1e-3
    assert {k: v for k, v in draw_options("dann", 0, small=True).items() if k != "lr_d"} == {
        k: v for k, v in draw_options("dann", 0).items() if k != "lr_d"
    }
    assert draw_options("sand_mask", 0) == {"k": 10.0}  # tau has no default of its own
    assert SANDMask(**draw_options("sand_mask", 0)).configuration() == SANDMask().configuration()


def test_an_unknown_name_is_told():
    with pytest.raises(InputError, match=r"no objective 'coraal' \(did you mean 'coral'\?\)"):
        draw_options("coraal", 1)


def test_fields_of_the_run_are_drawn_beside_the_published_space():
    for name, space in RUN_SPACES.items():
        runs = sample_runs({**EXTREME, **space}, 40, data_seed=1)
        plain = sample_runs(EXTREME, 40, data_seed=1)
        assert runs[0] == plain[0] == Run(seed=runs[0].seed)
        for one, other in zip(runs, plain, strict=True):  # nothing else is moved
            assert one.with_(**{field: getattr(other, field) for field in space}) == other
        if name == "rdm":
            assert {type(run.batch_size) for run in runs} == {int}
            assert all(70 <= run.batch_size < 100 for run in runs[1:])
        if name == "adrmx":
            assert {run.learning_rate for run in runs[1:]} == {2e-5, 3e-5, 4e-5, 5e-5}
    dann = sample_runs({**EXTREME, **RUN_SPACES["dann"]}, 3)
    drawn = np.random.RandomState(seed_hash(seed_hash(2, 0), "lr_g")).uniform(-5, -3.5)
    assert dann[2].learning_rate == 10**drawn
    assert dann[2].learning_rate != sample_runs(EXTREME, 3)[2].learning_rate
    small = sample_runs({**EXTREME_SMALL, **RUN_SPACES_SMALL["dann"]}, 20)
    assert all(10**-4.5 <= run.learning_rate <= 10**-2.5 for run in small[1:])
    assert {run.weight_decay for run in small} == {0.0}
    assert set(RUN_SPACES) | set(RUN_SPACES_SMALL) <= set(OBJECTIVES)
