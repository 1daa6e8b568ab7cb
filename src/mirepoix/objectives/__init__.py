"""What one network minimises: one file per training criterion."""

from mirepoix.objectives._adrmx import ADRMX
from mirepoix.objectives._and_mask import ANDMask
from mirepoix.objectives._arm import ARM
from mirepoix.objectives._cad import CAD
from mirepoix.objectives._causirl import CausIRLCORAL, CausIRLMMD
from mirepoix.objectives._cond_cad import CondCAD
from mirepoix.objectives._coral import CORAL
from mirepoix.objectives._cutmix import CutMix
from mirepoix.objectives._dann import CDANN, DANN
from mirepoix.objectives._eqrm import EQRM
from mirepoix.objectives._erm import ERM
from mirepoix.objectives._erm_plus_plus import ERMPlusPlus
from mirepoix.objectives._fish import Fish
from mirepoix.objectives._fishr import Fishr
from mirepoix.objectives._group_dro import GroupDRO
from mirepoix.objectives._iberm import IBERM
from mirepoix.objectives._ibirm import IBIRM
from mirepoix.objectives._iga import IGA
from mirepoix.objectives._irm import IRM
from mirepoix.objectives._manifold_mixup import ManifoldMixup
from mirepoix.objectives._mixup import Mixup
from mirepoix.objectives._mldg import MLDG
from mirepoix.objectives._mmd import MMD
from mirepoix.objectives._mtl import MTL
from mirepoix.objectives._named import NOT_IN_RECIPES, OBJECTIVES, objective
from mirepoix.objectives._objective import Objective
from mirepoix.objectives._rdm import RDM
from mirepoix.objectives._rsc import RSC
from mirepoix.objectives._sagnet import SagNet
from mirepoix.objectives._sam import SAM
from mirepoix.objectives._sand_mask import SANDMask
from mirepoix.objectives._sd import SD
from mirepoix.objectives._selfreg import SelfReg
from mirepoix.objectives._spaces import OPTION_SPACES, RUN_SPACES, draw_options
from mirepoix.objectives._transfer import Transfer
from mirepoix.objectives._trm import TRM
from mirepoix.objectives._urm import URM
from mirepoix.objectives._vrex import VREx

__all__ = [
    "ADRMX",
    "ARM",
    "CAD",
    "CDANN",
    "CORAL",
    "DANN",
    "EQRM",
    "ERM",
    "IBERM",
    "IBIRM",
    "IGA",
    "IRM",
    "MLDG",
    "MMD",
    "MTL",
    "NOT_IN_RECIPES",
    "OBJECTIVES",
    "OPTION_SPACES",
    "RDM",
    "RSC",
    "RUN_SPACES",
    "SAM",
    "SD",
    "TRM",
    "URM",
    "ANDMask",
    "CausIRLCORAL",
    "CausIRLMMD",
    "CondCAD",
    "CutMix",
    "ERMPlusPlus",
    "Fish",
    "Fishr",
    "GroupDRO",
    "ManifoldMixup",
    "Mixup",
    "Objective",
    "SANDMask",
    "SagNet",
    "SelfReg",
    "Transfer",
    "VREx",
    "draw_options",
    "objective",
]
