"""The kinds of values that fields have, and how a wrong one is told of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reprune.errors import UserError

SCHEMA = 1                                                  # of records
GROUPS = ("model", "dataset", "method", "recipe")           # config groups whose choice a record names
STAGES = ("baseline", "sparse", "recover")
ENDS = ("", "_min", "_max")                                 # exactly, more than, up to

PLAIN = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*"                 # a terminal acts on control characters
Line = Annotated[str, Field(pattern=f"^{PLAIN}$")]
Text = Annotated[str, Field(min_length=1, pattern=rf"^{PLAIN}[^\s\x00-\x1f\x7f-\x9f]{PLAIN}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Points = Annotated[float, Field(ge=-100, le=100)]
Ratio = Annotated[float, Field(ge=1)]                       # 8: eight times fewer
Filters = Annotated[int, Field(ge=1, le=10**6)]
Yes = Literal[True]


class Model(BaseModel):
    """No number is a text, true or infinite; a field that is not known is a mistake."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    @classmethod
    def read(cls, content: Any, at: str = "") -> Self:
        """content: bytes of JSON, or plain data; at: what stands before the names of fields in an error."""
        try:
            return cls.model_validate_json(content) if isinstance(content, bytes) else cls.model_validate(content)
        except ValidationError as error:
            raise UserError(cls._line(error.errors(include_url=False)[0], at)) from None

    @classmethod
    def _line(cls, error: dict[str, Any], at: str) -> str:
        name = ".".join([at] * bool(at) + [repr(f"{part}")[1:-1][:100] for part in error["loc"]]) or "content"
        if error["type"] == "value_error":                  # of our own: it names its field
            return f"{at}{'.' * bool(at)}{error['ctx']['error']}"
        if error["type"] == "extra_forbidden":
            return f"{name} is unknown, allowed: {', '.join(cls.model_fields)}"
        given = "" if error["type"] == "missing" else f", not {error['input']!r:.60}"
        return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}{given}"
