"""The shapes in our signatures are checked while the tests run, and nothing but the shapes."""

import sys
from pathlib import Path
from types import ModuleType

import jaxtyping
import numpy as np
import pytest

MODULE = """
import dataclasses
import numpy as np
from jaxtyping import Float

def transpose(x: Float[np.ndarray, "B T"], scale: float = 1.0) -> Float[np.ndarray, "T B"]:
    return x * scale

def pair(both: tuple[Float[np.ndarray, "B"], Float[np.ndarray, "B"]]) -> int:
    return len(both)

@dataclasses.dataclass
class Setting:
    value: float
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "has_shapes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "has_shapes", raising=False)
    with jaxtyping.install_import_hook("has_shapes", "shapes.check"):
        import has_shapes
    return has_shapes


def test_wrong_result_shape_is_refused(module: ModuleType):
    assert module.transpose(np.ones((2, 2))).shape == (2, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        module.transpose(np.ones((2, 3)))


def test_shapes_inside_a_tuple_are_checked(module: ModuleType):
    assert module.pair((np.ones(2), np.ones(2))) == 2
    with pytest.raises(jaxtyping.TypeCheckError):
        module.pair((np.ones(2), np.ones(3)))


def test_other_types_reach_the_function(module: ModuleType):
    assert module.transpose(np.ones((2, 2)), 2)[0, 0] == 2
    assert module.Setting("2.5").value == "2.5"
