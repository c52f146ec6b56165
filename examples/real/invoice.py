"""The schema of the extraction examples, one solved text, and what an extracted invoice is worth."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field


class Invoice(BaseModel):
    """An invoice."""

    supplier: str = Field(description="name of the company that sent the invoice", max_length=40)
    number: str = Field(description="number of the invoice", max_length=20)
    date: datetime.date = Field(description="date of the invoice")
    quantity: int = Field(description="how many pieces were bought", ge=1, le=9999)
    unit_price: float = Field(description="price of one piece in euros")
    total: float = Field(description="sum in euros")
    days_to_pay: int = Field(description="days within which it is to be paid", ge=1, le=365)


# The base model among the members learns from a solved text what is asked.
EXAMPLE_TEXT = "We owe Marlow Ropes 27.00 euros for 6 ropes of 4.50 euros each (invoice C-1207, 5 July 2023, 20 days)."
EXAMPLE = Invoice(
    supplier="Marlow Ropes",
    number="C-1207",
    date=datetime.date(2023, 7, 5),
    quantity=6,
    unit_price=4.5,
    total=27.0,
    days_to_pay=20,
)


def right_values(found: Invoice, known: Mapping[str, Any]) -> float:
    """Returns the share of the fields that have the right value."""
    values = found.model_dump(mode="json")
    return sum(values[field] == value for field, value in known.items()) / len(known)
