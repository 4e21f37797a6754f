import pytest
from pydantic import Field, ValidationError

from core.config import Config


class Example(Config):
    density: float = Field(0.5, gt=0, le=1, description="share kept")
    name: str = "x"


def test_unknown_key_names_the_nearest():
    with pytest.raises(ValidationError, match="unknown key 'densty', did you mean 'density'"):
        Example(densty=0.3)


def test_bounds_and_types_are_checked_and_it_is_frozen():
    with pytest.raises(ValidationError):
        Example(density=0)
    with pytest.raises(ValidationError):
        Example(density="much")
    with pytest.raises(ValidationError):
        Example().density = 0.1
