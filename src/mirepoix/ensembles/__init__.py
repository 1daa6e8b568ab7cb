"""Combinations of predictions: the members are kept, and each is run; and criteria that train them together."""

from mirepoix.ensembles._adp import ADP
from mirepoix.ensembles._bottleneck import CEB, IB
from mirepoix.ensembles._combiners import average_logits, average_probabilities, vote
from mirepoix.ensembles._dice import CEBR, DICE, IBR
from mirepoix.ensembles._ensemble import Ensemble
from mirepoix.ensembles._joint_objective import Independent, JointObjective
from mirepoix.ensembles._mixmo import MIMO, CutMixMo, LinearMixMo, MixMo
from mirepoix.ensembles._okddip import OKDDip
from mirepoix.ensembles._one import ONE
from mirepoix.ensembles._redundancy import RedundancyEstimate, redundancy_estimate

__all__ = [
    "ADP",
    "CEB",
    "CEBR",
    "DICE",
    "IB",
    "IBR",
    "MIMO",
    "ONE",
    "CutMixMo",
    "Ensemble",
    "Independent",
    "JointObjective",
    "LinearMixMo",
    "MixMo",
    "OKDDip",
    "RedundancyEstimate",
    "average_logits",
    "average_probabilities",
    "redundancy_estimate",
    "vote",
]
