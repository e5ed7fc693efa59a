"""The floors of the house: imports go down only, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "PIL", "sklearn", "matplotlib")


def test_imports_go_down_only() -> None:
    # In a process of its own: import-linter configures logging and so switches off every logger there is.
    call = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import domainclip; dir(domainclip); domainclip.CLIPFinetuningError",
        "import domainclip.config; domainclip.config.load_recipe('medical', {'learning_rate': 1e-5})",
        "from domainclip import CLIPFinetuningConfig; CLIPFinetuningConfig(domain='medical').to_dict()",
        "import domainclip.cli",
        "import sys; sys.argv = ['domainclip', '--help']\nfrom domainclip.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code",
        "import sys; sys.argv = ['domainclip', 'config', 'show']\nfrom domainclip.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement: str) -> None:
    check = f"{statement}\nimport sys\nprint('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def import_graph() -> dict[str, set[str]]:
    """Each module of the package with those it imports, wherever in the file and for whatever purpose."""
    files = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "src/domainclip").rglob("*.py")
    }
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {each if each in files else node.module for each in found} & files.keys()
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & files.keys()
    return graph


def test_there_is_no_import_circle() -> None:
    """Imports inside functions and under ``TYPE_CHECKING`` count, too: they tie files together just as well."""
    graph = nx.DiGraph([(a, b) for a, names in import_graph().items() for b in names if a != b])
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_files_stay_readable() -> None:
    """One concept a file: 600 lines at most."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert long == {}
    assert not list((ROOT / "src").rglob("utils.py"))


def test_no_test_imports_a_conftest() -> None:
    """Every folder's file has that one name: which of them an import finds depends on the order of collection."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module == "conftest")
        or (isinstance(node, ast.Import) and any(alias.name == "conftest" for alias in node.names))
    ]
    assert not found, f"Move what these share into tests/helpers: {found}"


def test_no_sentence_is_cut_off() -> None:
    """An f-string that stands alone was meant to go on with the one in the line above."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ("src", "benchmarks", "examples")
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.JoinedStr)
    ]
    assert not found
