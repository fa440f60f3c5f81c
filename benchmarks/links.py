"""Settings with another link, for benchmarks that compare links of one experiment."""

from typing import Any

from airpfed.air.schemes import SCHEMES
from airpfed.config.choice import parse_choice
from airpfed.config.schema import Settings
from airpfed.core.rows import parse_call


def with_link(settings: Settings, link: str, **radio: Any) -> Settings:
    """The same settings over another link.

    link: a scheme, such as `error_free` or `digital(bits=4)`, or a design of the linear scheme, such as `mmse`. radio:
    further keys of [radio], with values that are checked already.
    """
    is_scheme = parse_call(link)["name"] in SCHEMES
    choices = {"scheme": parse_choice("schemes", link if is_scheme else "linear")}
    if not is_scheme:
        choices["design"] = parse_choice("designs", link)
    return settings.model_copy(update={"radio": settings.radio.model_copy(update={**choices, **radio})})
