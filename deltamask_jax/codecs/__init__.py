"""Codecs: flipped mask positions <-> payload bytes, behind one seam.

codec = codecs.get('bfuse', bits=8, container='png')
payload = codec.encode(positions, context)      # positions: u32[n], sorted
positions = codec.decode(payload, context)      # raises PayloadError on anything invalid
"""

import difflib
import inspect

from deltamask_jax.codecs.bfuse import bfuse
from deltamask_jax.codecs.codec import Codec, Context, PayloadError

REGISTRY = {"bfuse": bfuse}

__all__ = ["REGISTRY", "Codec", "Context", "PayloadError", "get"]


def get(name: str, **options) -> Codec:
    """Returns the named codec with the given options; see the function of that name for what it accepts.

    Raises:
        ValueError: unknown name or option (the nearest valid one is named), or an option's value is refused.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(REGISTRY)}"
        raise ValueError(f"unknown codec {name!r}: {hint}")
    factory = REGISTRY[name]
    valid = list(inspect.signature(factory).parameters)
    for option in options:
        if option not in valid:
            near = difflib.get_close_matches(option, valid, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"it takes {', '.join(valid) or 'no options'}"
            )
            raise ValueError(f"codec {name!r} has no option {option!r}: {hint}")
    return factory(**options)
