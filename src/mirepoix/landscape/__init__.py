"""The landscape between and around weights: is the way from one to another flat?"""

from mirepoix.landscape._connect import Connection, Point, connect
from mirepoix.landscape._plot import plot

__all__ = ["Connection", "Point", "connect", "plot"]
