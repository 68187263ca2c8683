"""What the digest of a module leaves out, and what not."""

import pytest

from rllr import provenance

CODE = """
from dataclasses import dataclass
from math import log

@dataclass
class A:
    x: int
    y = 1

def f(a, b=2):
    c = log(a)
    return c + b
"""


def digest(folder, text):
    file = folder / f"{len([*folder.iterdir()])}.py"
    file.write_text(text)
    return provenance._read(file)[0]


@pytest.mark.parametrize(
    "old, new",
    [
        ("def f(a, b=2):", "def f(a: float, b: int = 2) -> float:"),
        ("c = log(a)", "c: float = log(a)"),
        ("from math import log", "from math import log\nfrom typing import Any"),
        ("@dataclass", "if TYPE_CHECKING:\n    import torch\n\n@dataclass"),
        ("    c = log", "    stamp(a)\n    c = log"),
        ("from math import log", "from math import log\nfrom rllr.version import stamp"),
        ("    c = log", "    # why\n    c = log"),
    ],
)
def test_types_stamps_and_comments_count_for_nothing(tmp_path, old, new):
    assert old in CODE
    assert digest(tmp_path, CODE) == digest(tmp_path, CODE.replace(old, new))


@pytest.mark.parametrize(
    "old, new",
    [
        ("b=2", "b=3"),
        ("x: int", "x: float"),
        ("    y = 1", "    y: int = 1"),
        ("    x: int\n", ""),
        ("log(a)", "log(b)"),
        ("from math", "from numpy"),
    ],
)
def test_what_is_computed_counts(tmp_path, old, new):
    assert old in CODE
    assert digest(tmp_path, CODE) != digest(tmp_path, CODE.replace(old, new))


def test_no_stage_rests_on_the_version():
    for program in ("base.py", "predict.py"):
        assert provenance.PROGRAMS / "rllr" / "version.py" not in provenance.deciding(program)


def test_modules_count_where_a_result_may_rest_on_them(tmp_path):
    def imported(text):
        file = tmp_path / f"{len([*tmp_path.iterdir()])}.py"
        file.write_text(text)
        return [path.relative_to(provenance.PROGRAMS).as_posix() for path in provenance._read(file)[1]]

    assert imported("from rllr.lm import models, budget\nfrom rllr.rows import read_prompts\nimport rllr.tasks\n") == [
        "rllr/lm/__init__.py", "rllr/lm/models.py", "rllr/rows.py", "rllr/tasks.py",
    ]  # fmt: skip
    assert imported("def f():\n    from rllr.ppo.losses import policy_loss\n") == ["rllr/ppo/losses.py"]
    assert imported("if TYPE_CHECKING:\n    from rllr.rows import Row\n") == []
