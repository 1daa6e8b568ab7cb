"""What random trials draw: DomainBed's distributions of the hyperparameters of every criterion, as data.

A hyperparameter has DomainBed's own name, but for an underscore behind a word that Python keeps for itself
(``lambda_``). Each is drawn from a generator seeded by that name, so criteria that share one draw the same value, and
one that is added moves no other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from mirepoix.objectives._named import OBJECTIVES, label_of
from mirepoix.runs import Distribution, Space, choice, log_uniform, log_uniform_int, uniform, uniform_int
from mirepoix.seeds import seed_hash

__all__ = [
    "OPTION_SPACES",
    "OPTION_SPACES_SMALL",
    "RUN_SPACES",
    "RUN_SPACES_SMALL",
    "SMALL_DEFAULTS",
    "draw_options",
]

Options: TypeAlias = Mapping[str, Distribution]

_PENALTY = log_uniform(10, -1, 5)
_UPDATES = log_uniform_int(10, 0, 4)
_GAMMA: Options = {"mmd_gamma": log_uniform(10, -1, 1)}
_CONTRAST: Options = {
    "lmbda": choice(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2),
    "temperature": choice(0.05, 0.1),
}
_DISCRIMINATOR: Options = {
    "lambda_": log_uniform(10, -2, 2),
    "d_steps_per_g_step": log_uniform_int(2, 0, 3),
    "grad_penalty": log_uniform(10, -2, 1),
    "beta1": choice(0.0, 0.5),
    "mlp_width": log_uniform_int(2, 6, 10),
    "mlp_depth": choice(3, 4, 5),
    "mlp_dropout": choice(0.0, 0.1, 0.5),
    "lr_d": log_uniform(10, -5, -3.5),
    "weight_decay_d": log_uniform(10, -6, -2),
}

OPTION_SPACES: Mapping[str, Options] = {
    "erm": {},
    "irm": {"irm_lambda": _PENALTY, "irm_penalty_anneal_iters": _UPDATES},
    "vrex": {"vrex_lambda": _PENALTY, "vrex_penalty_anneal_iters": _UPDATES},
    "group_dro": {"groupdro_eta": log_uniform(10, -3, -1)},
    "ib_erm": {"ib_lambda": _PENALTY, "ib_penalty_anneal_iters": _UPDATES},
    "ib_irm": {
        "irm_lambda": _PENALTY,
        "irm_penalty_anneal_iters": _UPDATES,
        "ib_lambda": _PENALTY,
        "ib_penalty_anneal_iters": _UPDATES,
    },
    "sd": {"sd_reg": log_uniform(10, -5, -1)},
    "mixup": {"mixup_alpha": log_uniform(10, -1, 1)},
    "cutmix": {},  # DomainBed has neither of the two
    "manifold_mixup": {},
    "coral": _GAMMA,
    "mmd": _GAMMA,
    "causirl_coral": _GAMMA,
    "causirl_mmd": _GAMMA,
    "eqrm": {
        "eqrm_quantile": uniform(0.5, 0.99),
        "eqrm_burnin_iters": log_uniform(10, 2.5, 3.5),  # the criterion cuts its fraction off
        "eqrm_lr": log_uniform(10, -7, -5),
    },
    "rdm": {  # PACS, TerraIncognita, OfficeHome and DomainNet have ranges of their own in DomainBed
        "rdm_lambda": uniform(0.1, 10),
        "rdm_penalty_anneal_iters": uniform_int(800, 2700),
        "variance_weight": uniform(0.001, 0.007),
        "rdm_lr": uniform(8e-6, 2e-5),
    },
    "and_mask": {"tau": uniform(0.5, 1.0)},
    "sand_mask": {"tau": uniform(0.0, 1.0), "k": log_uniform(10, -3, 5)},
    "iga": {"penalty": log_uniform(10, 1, 5)},
    "fish": {"meta_lr": choice(0.05, 0.1, 0.5)},
    "mldg": {"mldg_beta": log_uniform(10, -1, 1), "n_meta_test": choice(1, 2)},
    "rsc": {"rsc_f_drop_factor": uniform(0, 0.5), "rsc_b_drop_factor": uniform(0, 0.5)},
    "selfreg": {},
    "fishr": {
        "lambda_": log_uniform(10, 1, 4),
        "penalty_anneal_iters": uniform_int(0, 5000),
        "ema": uniform(0.90, 0.99),
    },
    "cad": _CONTRAST,
    "cond_cad": _CONTRAST,
    "dann": _DISCRIMINATOR,
    "cdann": _DISCRIMINATOR,
    "sagnet": {"sag_w_adv": log_uniform(10, -2, 1)},
    "trm": {
        "cos_lambda": log_uniform(10, -5, 0),
        "iters": _UPDATES,
        "groupdro_eta": log_uniform(10, -3, -1),
    },
    # Not gda, which DomainBed always draws as True: its code then trains no network, and ours wants another optimizer.
    "transfer": {
        "t_lambda": log_uniform(10, -2, 1),
        "delta": uniform(0.1, 3.0),
        "d_steps_per_g": choice(1, 2, 5),
        "lr_d": log_uniform(10, -4.5, -2.5),
    },
    "adrmx": {"mlp_depth": choice(8, 9, 10), "lr": choice(2e-5, 3e-5, 4e-5, 5e-5)},
    "erm_plus_plus": {"linear_lr": log_uniform(10, -5, -3.5)},
    "mtl": {"mtl_ema": choice(0.5, 0.9, 0.99, 1.0)},
    "arm": {},
    "urm": {
        "urm_adv_lambda": uniform(0.0, 0.2),
        "urm_discriminator_hidden_layers": choice(1, 2, 3),
        "urm_generator_output": choice("tanh", "relu"),
        "urm_discriminator_lr": log_uniform(10, -6, -4.5),
    },
    "sam": {"rho": choice(0.01, 0.02, 0.05, 0.1)},
}
"""From a criterion to its hyperparameters and how each is drawn, for images of 224 pixels."""

OPTION_SPACES_SMALL: Mapping[str, Options] = {
    "dann": {"lr_d": log_uniform(10, -4.5, -2.5)},
    "cdann": {"lr_d": log_uniform(10, -4.5, -2.5)},
    "adrmx": {"lr": choice(5e-4, 1e-3, 2e-3, 3e-3)},
    "urm": {"urm_discriminator_lr": log_uniform(10, -5.5, -3.5)},
}
"""What is drawn otherwise for images of 28 pixels."""

SMALL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dann": {"lr_d": 1e-3},
    "cdann": {"lr_d": 1e-3},
    "adrmx": {"lr": 3e-3},
    "urm": {"urm_discriminator_lr": 1e-3},
}
"""Defaults that DomainBed has otherwise for images of 28 pixels; all others are those of the constructors."""

_GENERATOR: Space = {
    "learning_rate": ("lr_g", log_uniform(10, -5, -3.5)),
    "weight_decay": ("weight_decay_g", log_uniform(10, -6, -2)),
}
_GENERATOR_SMALL: Space = {
    "learning_rate": ("lr_g", log_uniform(10, -4.5, -2.5)),
    "weight_decay": ("weight_decay_g", choice(0.0)),
}

RUN_SPACES: Mapping[str, Space] = {
    "dann": _GENERATOR,
    "cdann": _GENERATOR,
    "rdm": {"batch_size": ("batch_size", uniform_int(70, 100))},  # 88 in run 0
    "adrmx": {"learning_rate": ("lr", choice(2e-5, 3e-5, 4e-5, 5e-5))},  # 3e-5 in run 0
    "arm": {"batch_size": ("batch_size", choice(8))},
}
"""Fields of the run that DomainBed draws otherwise for a criterion than `mirepoix.runs.EXTREME` says: for
``sample_runs({**EXTREME, **RUN_SPACES["dann"]}, 20)``."""

RUN_SPACES_SMALL: Mapping[str, Space] = {
    "dann": _GENERATOR_SMALL,
    "cdann": _GENERATOR_SMALL,
    "adrmx": {"learning_rate": ("lr", choice(5e-4, 1e-3, 2e-3, 3e-3))},  # 3e-3 in run 0
}
"""The same for images of 28 pixels, beside `mirepoix.runs.EXTREME_SMALL`."""


def draw_options(name: str, h: int, data_seed: int = 0, *, small: bool = False) -> dict[str, Any]:
    """The hyperparameters of a criterion in run ``h`` of a random search, as DomainBed draws them.

    Run 0 has the defaults; one that the constructor works out from other options is left out. Run ``h >= 1`` draws
    each hyperparameter from a generator of its own, seeded by ``(h, data_seed)`` and its name, as
    `mirepoix.runs.sample_runs` draws the fields of a run: criteria that share a hyperparameter share its value. RDM has
    one range for all datasets here, where DomainBed has others for PACS, TerraIncognita, OfficeHome and DomainNet.

    Args:
        name: Of the criterion, as in `OBJECTIVES`.
        h: Number of the run.
        data_seed: The trial; other trials draw other values.
        small: Ranges and defaults for images of 28 pixels, in place of 224.

    Returns:
        Options of the constructor, as plain values.

    Raises:
        InputError: For an unknown name.

    Example:
        >>> draw_options("fishr", 0)
        {'lambda_': 1000.0, 'penalty_anneal_iters': 1500, 'ema': 0.95}
    """
    label_of(name)  # an unknown name is told
    space = {**OPTION_SPACES[name], **(OPTION_SPACES_SMALL.get(name, {}) if small else {})}
    if h == 0:
        parameters = inspect.signature(OBJECTIVES[name]).parameters
        otherwise = SMALL_DEFAULTS.get(name, {}) if small else {}
        defaults = {option: otherwise.get(option, parameters[option].default) for option in space}
        return {option: value for option, value in defaults.items() if value is not None}
    seed = seed_hash(h, data_seed)
    return {
        option: draw(np.random.RandomState(seed_hash(seed, option.removesuffix("_"))))
        for option, draw in space.items()
    }
