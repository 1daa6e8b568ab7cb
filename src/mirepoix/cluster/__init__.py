"""Many trainings at once: works that need each other, and the engines that carry them out.

An engine is this process, worker processes on this machine, or a Ray cluster; the works and their results are
the same. Nothing here imports torch or Ray before it is needed.
"""

from mirepoix.cluster._carry_out import carry_out
from mirepoix.cluster._engine import ClusterLost, Engine, Inline, WorkerLost, WorkFuture
from mirepoix.cluster._on_ray import gathered, on_ray
from mirepoix.cluster._pool import LocalPool
from mirepoix.cluster._ray import RayCluster
from mirepoix.cluster._works import Done, Event, Work

__all__ = [
    "ClusterLost",
    "Done",
    "Engine",
    "Event",
    "Inline",
    "LocalPool",
    "RayCluster",
    "Work",
    "WorkFuture",
    "WorkerLost",
    "carry_out",
    "gathered",
    "on_ray",
]
