import pytest

from fedms.core.errors import ConfigError
from fedms.core.registry import Names


def test_names_are_checked_and_listed() -> None:
    names = Names("partition.rule", "a", "b")
    names.add("c")
    assert list(names) == ["a", "b", "c"] and "c" in names and str(names) == "'a', 'b' or 'c'"
    names.check("c")
    with pytest.raises(ConfigError, match=r"^partition\.rule: input should be 'a', 'b' or 'c', not 'd'$"):
        names.check("d")
    with pytest.raises(ConfigError, match=r"^partition\.rule: the name 'a' is taken already$"):
        names.add("a")
    names.remove("b")
    names.remove("c")
    assert str(names) == "'a'"
