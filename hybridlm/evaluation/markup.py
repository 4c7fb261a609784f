"""Text from files, put into HTML."""

from __future__ import annotations

import re
from html import escape


def shown(text: str) -> str:
    """Escaped; what UTF-8 or HTML cannot hold (lone surrogates, control characters) as the sign for it."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", "\ufffd", whole))
