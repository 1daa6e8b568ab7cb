"""The benchmark of domain generalization: datasets, left-out domains, data seeds and strategies, in one table."""

from mirepoix.domainbed._cells import (
    Cell,
    Entry,
    aggregate,
    average_over_datasets,
    average_over_seeds,
    average_over_targets,
    read_cells,
    write_cells,
)
from mirepoix.domainbed._evidence import look_into_split
from mirepoix.domainbed._export import export
from mirepoix.domainbed._plan import Forecast, Plan, forecast, make_plan
from mirepoix.domainbed._rows import COMBINES, FAMILIES, ROWS, Row
from mirepoix.domainbed._run import Sweep, measure, run_plan
from mirepoix.domainbed._selection import (
    HiddenLabels,
    LeftOut,
    Missing,
    Record,
    Selected,
    by_leaving_one_out,
    by_training_domains,
    oracle,
)
from mirepoix.domainbed._settings import Benchmark, load_benchmark
from mirepoix.domainbed._tables import comparisons, printed_tables, tables, trace
from mirepoix.domainbed._workbench import NotMade, Workbench

__all__ = [
    "COMBINES",
    "FAMILIES",
    "ROWS",
    "Benchmark",
    "Cell",
    "Entry",
    "Forecast",
    "HiddenLabels",
    "LeftOut",
    "Missing",
    "NotMade",
    "Plan",
    "Record",
    "Row",
    "Selected",
    "Sweep",
    "Workbench",
    "aggregate",
    "average_over_datasets",
    "average_over_seeds",
    "average_over_targets",
    "by_leaving_one_out",
    "by_training_domains",
    "comparisons",
    "export",
    "forecast",
    "load_benchmark",
    "look_into_split",
    "make_plan",
    "measure",
    "oracle",
    "printed_tables",
    "read_cells",
    "run_plan",
    "tables",
    "trace",
    "write_cells",
]
