"""Units: text with a unit in, SI floats inside, text with a unit out.

A dimensioned field is annotated, for example ``Annotated[float, Dimension("B/s")]`` (aliases below). It accepts only
text such as ``3.35 TB/s``; a bare number is an error, because nobody can tell GB from GiB afterwards. Bits and bytes
are different dimensions: only the link rates (``LinkRate``) accept both, and divide bits by eight.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

__all__ = [
    "Bytes",
    "Dimension",
    "Flops",
    "Hertz",
    "Joules",
    "LinkRate",
    "MemoryRate",
    "Rate",
    "Seconds",
    "Usd",
    "UsdPerHour",
    "UsdPerKwh",
    "Watts",
    "format_quantity",
    "parse_quantity",
]

_DEFINITIONS = (
    *(
        f"{name}- = 1e{power} = {symbol}-"
        for name, power, symbol in (
            ("nano", -9, "n"),
            ("micro", -6, "u"),
            ("milli", -3, "m"),
            ("kilo", 3, "k"),
            ("mega", 6, "M"),
            ("giga", 9, "G"),
            ("tera", 12, "T"),
            ("peta", 15, "P"),
            ("exa", 18, "E"),
        )
    ),
    *(
        f"{name}- = {1024**power} = {symbol}-"
        for name, power, symbol in (
            ("kibi", 1, "Ki"),
            ("mebi", 2, "Mi"),
            ("gibi", 3, "Gi"),
            ("tebi", 4, "Ti"),
            ("pebi", 5, "Pi"),
        )
    ),
    "byte = [information] = B",
    "bit = [bit] = b",
    "second = [time] = s",
    "minute = 60 * second = min",
    "hour = 3600 * second = h",
    "day = 86400 * second",
    "year = 31557600 * second",
    "FLOP = [work]",
    "OP = FLOP",
    "FLOPS = FLOP / second",
    "OPS = FLOP / second",
    "joule = [energy] = J",
    "watt = joule / second = W",
    "hertz = 1 / second = Hz",
    "USD = [currency]",
    "token = [token]",
    "request = [request]",
    "gram = [mass] = g",
)
_NUMBER = re.compile(r"^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z].*)$")
_WORDS = {
    "B": "bytes, such as '80 GB' or '40 GiB'",
    "B/s": "bytes per second, such as '3.35 TB/s'",
    "s": "seconds, such as '1.5 us' or '2 min'",
    "FLOP/s": "dense operations per second, such as '989 TFLOP/s'",
    "W": "watts, such as '700 W'",
    "J": "joules",
    "Hz": "hertz, such as '1.83 GHz'",
    "USD": "US dollars, such as '30000 USD'",
    "USD/h": "US dollars per hour, such as '2.5 USD/h'",
    "request/s": "requests per second, such as '6.45 request/s'",
    "USD/(kW*h)": "US dollars per kilowatt-hour, such as '0.1 USD/kWh'",
}


@cache
def _registry() -> Any:
    import pint  # noqa: PLC0415 - 0.3 s, paid only when a file is read

    registry: Any = pint.UnitRegistry(None)
    for line in _DEFINITIONS:
        registry.define(line)
    return registry


@cache
def _factor(unit: str, target: str) -> float | None:
    """Return how many ``target`` one ``unit`` is, or None when the dimensions differ."""
    registry = _registry()
    text = (
        unit.replace("kWh", "(kW*h)")
        .replace("µ", "u")
        .replace("tokens", "token")
        .replace("requests", "request")
    )
    text = text.replace("req/", "request/")
    try:
        quantity = registry.parse_expression(f"1 * ({text})")
        return float(quantity.to(registry.parse_units(target)).magnitude)
    except Exception:  # noqa: BLE001 - pint raises a dozen kinds for text that is no unit
        return None


def parse_quantity(text: str, target: str, *, bits: bool = False) -> float:
    """Convert text such as ``'3.35 TB/s'`` to a float in ``target`` units.

    Parameters
    ----------
    text : number, space, unit
    target : SI unit of the field, e.g. ``'B/s'``
    bits : accept bits as well and divide by eight (link rates)

    Raises
    ------
    ValueError : no number, no unit, an unknown unit, another dimension, or not finite

    >>> parse_quantity("400 Gb/s", "B/s", bits=True)
    50000000000.0
    >>> parse_quantity("520 MiB", "B")
    545259520.0
    """
    match = _NUMBER.match(text)
    if match is None:
        raise ValueError("a number and a unit")
    value = float(match.group(1).replace("_", ""))
    unit = match.group(2).strip()
    factor = _factor(unit, target)
    if factor is None and bits:
        factor = _factor(unit, target.replace("B", "b", 1))
        factor = None if factor is None else factor / 8
    if factor is None:
        raise ValueError(f"the unit {unit!r} does not fit")
    result = value * factor
    if not math.isfinite(result):
        raise ValueError("a finite number")
    # 3.35 TB/s is 3350000000000.0, not 3350000000000.0005: keep the decimal the user wrote
    return float(f"{result:.15g}")


def format_quantity(value: float, unit: str, digits: int = 4) -> str:
    """Write an SI float as text with a readable prefix, e.g. ``3.35 TB/s``; the inverse of parsing to ``digits``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    if unit in {"USD", "USD/h", "USD/(kW*h)", "request/s"}:
        return f"{value:.{digits}g} {unit}"
    power = min(max(math.floor(math.log10(abs(value)) / 3), -3), 6)
    if unit == "s":
        power = min(power, 0)
    prefix = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}[power]
    return f"{value / 10 ** (3 * power):.{digits}g} {prefix}{unit}"


@dataclass(frozen=True, slots=True)
class Dimension:
    """Pydantic marker: the field holds a float in ``unit``, written in files as text with a unit.

    Attributes
    ----------
    unit : SI unit, e.g. ``'B/s'``
    bits : bits are accepted too (link rates are sold in bits)
    positive : zero is refused as well as negative values
    """

    unit: str
    bits: bool = False
    positive: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Validate text with a unit; serialise to text with the SI unit, losing no digit."""
        return core_schema.no_info_plain_validator_function(
            self._parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda v: None if v is None else f"{v!r} {self.unit}", when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> Any:
        """Describe the field as text with a unit."""
        return {
            "type": "string",
            "description": f"expected {_WORDS.get(self.unit, self.unit)}",
            "unit": self.unit,
        }

    def _parse(self, value: Any) -> float:
        words = _WORDS.get(self.unit, self.unit)
        if self.bits:
            words += " or '400 Gb/s'"
        if not isinstance(value, str):
            raise PydanticCustomError(
                "unit", "{text}", {"text": f"expected {words}; a bare value has no unit"}
            )
        try:
            number = parse_quantity(value, self.unit, bits=self.bits)
        except ValueError as error:
            raise PydanticCustomError("unit", "{text}", {"text": f"expected {words} ({error})"}) from None
        if number < 0 or (self.positive and number == 0):
            kind = "positive" if self.positive else "non-negative"
            raise PydanticCustomError("unit", "{text}", {"text": f"expected {kind} {words}"})
        return number


Bytes = Annotated[float, Dimension("B")]
MemoryRate = Annotated[float, Dimension("B/s", positive=True)]
LinkRate = Annotated[float, Dimension("B/s", bits=True, positive=True)]
Flops = Annotated[float, Dimension("FLOP/s", positive=True)]
Seconds = Annotated[float, Dimension("s")]
Watts = Annotated[float, Dimension("W")]
Joules = Annotated[float, Dimension("J")]
Hertz = Annotated[float, Dimension("Hz", positive=True)]
Usd = Annotated[float, Dimension("USD")]
UsdPerHour = Annotated[float, Dimension("USD/h")]
UsdPerKwh = Annotated[float, Dimension("USD/(kW*h)")]
Rate = Annotated[float, Dimension("request/s", positive=True)]
