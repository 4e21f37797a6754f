"""Configuration: frozen pydantic models whose unknown keys name the nearest valid one."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from core.registry import nearest


class Config(BaseModel):
    """Base of every configuration. Frozen; unknown keys are refused with the nearest valid name.

    Give each field a ``Field(..., description=...)``: descriptions become the form in the Prefect UI and the
    documentation tables.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, dict):
            allowed = [name for key, f in cls.model_fields.items() for name in (key, f.alias) if name]
            for key in data:
                if key not in allowed:
                    raise ValueError(f"unknown key {key!r}{nearest(key, allowed)} Allowed: {', '.join(allowed)}")
        return data
