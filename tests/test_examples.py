"""The examples, the notebook and the pages about Python run as they stand, after a plain installation, anywhere."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXTRAS = ("skimage", "pydicom", "tifffile", "optuna", "pillow_heif", "open_clip")
"""Those whose presence no other library looks up."""
BARE = f"""
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
"""
"""As after ``pip install .``: nothing of the extras can be imported."""
ALONE = f"{BARE}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
GUARD = "if __name__ == '__main__':"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_a_guard(example: Path) -> None:
    """And nothing above it but definitions, so that a reader that imports them does no work."""
    *body, last = ast.parse(example.read_text(encoding="utf-8")).body
    assert ast.unparse(last).startswith(GUARD)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    assert all(isinstance(node, kinds) or ast.get_docstring(ast.Module([node], [])) for node in body)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_without_extras_from_another_folder(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.slowest
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and all(not cell["outputs"] for cell in notebook["cells"] if "outputs" in cell)
    # As a kernel does: cell after cell in one program that has no file.
    program = f"{BARE}\nnames = {{'__name__': '__main__'}}\n"
    program += f"for cell in {cells!r}:\n    exec(compile(cell, 'cell', 'exec'), names)\nprint('ended')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ended")
    assert (tmp_path / "first_run" / "report.md").is_file() and list((tmp_path / "first_plots").glob("*.png"))


@pytest.mark.slow
def test_the_page_about_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOMAINCLIP_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert capsys.readouterr().out.strip().endswith("gone.png: no such file True")
    assert (tmp_path / "run" / "report.md").is_file() and (tmp_path / "plots" / "matrix.png").is_file()


@pytest.mark.slow
def test_the_page_about_using_a_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "using-a-model.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/using-a-model.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert (tmp_path / "copy" / "domainclip.json").is_file() and (tmp_path / "embeddings" / "manifest.jsonl").is_file()


def test_what_trains_in_the_readme_has_a_guard() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    training = [block for block in blocks if "run_training(" in block]
    assert training
    for block in training:
        assert GUARD in ast.unparse(ast.parse(block))
