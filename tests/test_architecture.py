"""The plan of the house, read from the imports."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import mirepoix
import mirepoix.landscape
import mirepoix.merging
import mirepoix.rewards

PACKAGE = Path(mirepoix.__file__).parent

LEVELS = [
    {"types", "seeds", "lazy", "bootstrap"},
    {"weights", "checkpoints", "data", "models", "predictions", "prediction_files"},
    {"merging", "heads", "objectives", "ensembles", "runs"},
    {"training", "store", "remote_store", "recipe"},
    {
        "strategies",
        "selection",
        "metrics",
        "calibration",
        "diversity",
        "scores",
        "landscape",
        "snapshots",
        "rewards",
    },
    {"cluster", "experiment", "evidence", "report"},
    {"comparison", "domainbed", "fronts"},
    {"cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def runtime_imports(path: Path) -> set[str]:
    """Rooms that a file imports when it runs, not those it names for the type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module] if node.module != "mirepoix" else [f"mirepoix.{a.name}" for a in node.names]
            modules.update(names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return {m.split(".")[1] for m in modules if m.startswith("mirepoix.") and m != "mirepoix.__version__"}


def graph() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "__init__.py":
            continue
        edges.setdefault(room_of(path), set()).update(runtime_imports(path) - {room_of(path)})
    return edges


def test_every_room_has_its_place():
    assert set(graph()) == set(LEVEL)


def test_dependencies_point_one_way():
    wrong = [
        f"{room} imports {other}"
        for room, others in graph().items()
        for other in others
        if LEVEL[other] > LEVEL[room]
    ]
    assert not wrong


def test_rooms_have_no_cycle():
    list(TopologicalSorter(graph()).static_order())


def test_the_page_of_equations_imports_types_and_weights_only():
    assert runtime_imports(PACKAGE / "strategies.py") == {"types", "weights"}


def test_files_in_a_room_are_private_and_contents_lists_have_no_code():
    allowed = ("__all__", "_PLACES", "(__getattr__, __dir__)")
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        for path in folder.rglob("*.py"):
            assert path.name.startswith("_"), path
        tree = ast.parse((folder / "__init__.py").read_text())
        for node in tree.body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in allowed
            is_import = isinstance(node, ast.ImportFrom) or (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            )
            assert is_docstring or is_list or is_import, ast.unparse(node)


@pytest.mark.parametrize(
    "package",
    [mirepoix, mirepoix.merging, mirepoix.landscape, mirepoix.rewards],
    ids=lambda package: package.__name__,
)
def test_a_contents_list_read_late_says_the_same_three_times(package):
    tree = ast.parse(Path(package.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: f"{package.__name__}.{place}" for name, place in package._PLACES.items()} == named
    assert set(package.__all__) - {"__version__"} == set(named)
    for name in named:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_every_public_name_is_found_and_documented():
    for name in mirepoix.__all__:
        value = getattr(mirepoix, name)
        assert name in ("__version__", "MILD", "EXTREME") or value.__doc__, name


def in_fresh_process(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_importing_mirepoix_and_its_command_line_loads_no_torch():
    rooms = (
        "cli",
        "weights",
        "checkpoints",
        "merging",
        "recipe",
        "scores",
        "selection",
        "landscape",
        "rewards",
    )
    code = f"import sys, mirepoix, {', '.join(f'mirepoix.{room}' for room in rooms)}; print({{0}})"
    for heavy in ("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "jinja2", "yaml"):
        assert in_fresh_process(code.format(f"{heavy!r} in sys.modules")) == "False", heavy


def test_help_of_every_verb_loads_no_torch():
    verbs = (
        "run",
        "report",
        "check",
        "soup",
        "connect",
        "landscape",
        "diversity",
        "explain",
        "convert",
        "inspect",
        "rebuild",
    )
    for arguments in (["--help"], *([verb, "--help"] for verb in verbs), ["--version"]):
        code = f"""
import sys
from mirepoix.cli import main
sys.argv = ["mirepoix", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert end.code == 0
print("torch" in sys.modules)
"""
        assert in_fresh_process(code).splitlines()[-1] == "False"


def test_every_source_file_with_public_functions_has_a_test_of_its_name(root):
    tests = {path.stem for path in (root / "tests").rglob("test_*.py")}
    for room in (
        "diversity",
        "landscape",
        "evidence",
        "objectives",
        "merging",
        "ensembles",
        "snapshots",
        "rewards",
    ):
        always = room in ("objectives", "merging", "ensembles", "snapshots")
        public = set(import_module(f"mirepoix.{room}").__all__)
        for path in (PACKAGE / room).glob("_[a-z]*.py"):
            own = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            if always or public & {node.name for node in own}:
                assert f"test{path.stem}" in tests, f"{path.name} has no tests/{room}/test{path.stem}.py"
