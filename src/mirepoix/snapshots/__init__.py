"""Ensembles from one checkpoint: what a member in training has to do with the members before it."""

from mirepoix.snapshots._ewc import EWC
from mirepoix.snapshots._l2sp import L2SP
from mirepoix.snapshots._laplace import laplace_samples
from mirepoix.snapshots._later import LaterMember
from mirepoix.snapshots._mse_penalty import MSEPenalty
from mirepoix.snapshots._prediction_repulsion import PredictionRepulsion
from mirepoix.snapshots._rtd_penalty import RTDPenalty
from mirepoix.snapshots._simplex import SimplexVolume, sample_simplex, simplex_volume
from mirepoix.snapshots._swag import SWAG
from mirepoix.snapshots._weight_orthogonalisation import WeightOrthogonalisation

__all__ = [
    "EWC",
    "L2SP",
    "SWAG",
    "LaterMember",
    "MSEPenalty",
    "PredictionRepulsion",
    "RTDPenalty",
    "SimplexVolume",
    "WeightOrthogonalisation",
    "laplace_samples",
    "sample_simplex",
    "simplex_volume",
]
