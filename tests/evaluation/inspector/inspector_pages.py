"""A text that is hard to show, and pages taken apart."""

from html.parser import HTMLParser

NASTY = '“Été” </script><script>alert(1)</script> <!-- <b>&amp;</b>\n\n"No," said 𝄞 Anne.\u2028 \\u003c End.\n' * 2


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
