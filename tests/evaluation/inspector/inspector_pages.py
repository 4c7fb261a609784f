"""A text that is hard to show, and pages taken apart."""

import re
from html.parser import HTMLParser
from itertools import accumulate

from hybridlm.evaluation.inspector.spans import TokenSpans

NASTY = '“Été” </script><script>alert(1)</script> <!-- <b>&amp;</b>\n\n"No," said 𝄞 Anne.\u2028 \\u003c End.\n' * 6


def by_words(text):
    """Spans of a tokenizer whose tokens are words, with the white space in front: no token of ours spells `</script>`
    whole. An empty piece in between stands for a part of a character."""
    pieces = ["", "", *re.findall(r"\s*\S+|\s+$", text)]
    return TokenSpans([7 * token % 250 for token in range(len(pieces))], text, [*accumulate(map(len, pieces))])


class Page(HTMLParser):
    """Elements by name with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.raw, self.open = {}, {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.setdefault(tag, []).append(dict(attrs))
        self.open = (tag, dict(attrs).get("id"))

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open is not None:
            self.raw[self.open] = self.raw.get(self.open, "") + data
