"""What all settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

STRIDE = 32
"""Pixels: the coarsest stride of an FCN backbone, and the grid that images are padded to (paper, section 4.1)."""
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
