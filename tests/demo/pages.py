"""What a self-contained page is, for every test that looks at a report."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Tags, their attributes and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data


def assert_self_contained(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", text)
    return page
