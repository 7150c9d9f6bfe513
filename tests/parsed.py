"""HTML as the tests look at it."""

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", []))

    def handle_comment(self, data):
        self.tags.append(("comment", []))

    handle_decl = handle_pi = unknown_decl = handle_comment

    def handle_data(self, data):
        self.text += data

    def only_has(self, tags: set[str], attributes: set[str] = frozenset()) -> bool:
        """Whether the page has no other tags and attributes."""
        own = {tag.removeprefix("/") for tag, _ in self.tags}
        return own <= tags and {name for _, found in self.tags for name, _ in found} <= attributes
