"""Flags of nearly every verb; apart from `options.py` so that verbs without settings load no settings."""

from typing import Annotated

from cyclopts import Group, Parameter

OUTPUT = Group("Output", sort_key=4)

JsonFlag = Annotated[bool, Parameter(name="--json", help="Print exactly one JSON object on standard output.", group=OUTPUT, negative=(), show_default=False)]
QuietFlag = Annotated[bool, Parameter(name=["--quiet", "-q"], help="Print no progress and no notes.", group=OUTPUT, negative=(), show_default=False)]
