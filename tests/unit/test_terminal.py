"""Progress bars stand on stderr, so that what a command prints can be piped."""

import ast
from pathlib import Path

import pytest

import tgalign
from tgalign.terminal import tracked

SOURCE = Path(tgalign.__file__).parent
# A demo's bars stand among the lines that it prints of its jobs.
OWN = {SOURCE / "terminal.py", SOURCE / "workers.py"}


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_gives_the_items_and_leaves_stdout_alone(shown, capsys):
    assert list(tracked((it for it in range(3)), "counting", shown=shown, total=3)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert (out, "counting" in err, "100%" in err) == ("", shown, shown)


def test_all_bars_are_made_there():
    for path in set(SOURCE.rglob("*.py")) - OWN:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("Progress", "track"), f"{path}:{node.lineno}"
