"""The links and headings of Markdown pages, with the anchors that GitHub and MyST make of headings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

LINK = re.compile(
    r"(?P<before>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^()\s]+(?:\([^()\s]*\)[^()\s]*)?)(?P<after>(?:\s+\"[^\"]*\")?\))"
)
_FENCE = re.compile(r"^ *(```+|~~~+)")
_CODE = re.compile(r"(`+)(?:.|\n)*?[^`]\1(?!`)")


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a page in their order, and whether each is prose: fenced blocks and `code` are not. Joined, they are the page."""
    part: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            part.append(line)
            if found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
                yield "".join(part), False
                part, fence = [], ""
        elif found:
            yield from _inline("".join(part))
            part, fence = [line], found[1]
        else:
            part.append(line)
    if fence:
        yield "".join(part), False
    else:
        yield from _inline("".join(part))


def _inline(text: str) -> Iterator[tuple[str, bool]]:
    # A code span ends within its paragraph; what a link shows may be code, so such a span stays with its link.
    at = 0
    for found in _CODE.finditer(text):
        if "\n\n" in found[0] or text[: found.start()].endswith("["):
            continue
        yield text[at : found.start()], True
        yield found[0], False
        at = found.end()
    yield text[at:], True


def with_links(text: str, change: Callable[[str], str]) -> str:
    """The page with every target of a link or picture in its prose changed."""
    return "".join(
        LINK.sub(lambda found: found["before"] + change(found["target"]) + found["after"], part) if is_prose else part
        for part, is_prose in prose(text)
    )


def targets(text: str) -> list[str]:
    """The targets of all links and pictures in a page's prose."""
    return [found["target"] for part, is_prose in prose(text) if is_prose for found in LINK.finditer(part)]


def anchors(text: str) -> list[str]:
    """The anchor of each heading, as GitHub makes it."""
    outside = "".join(part for part, is_prose in prose(text) if is_prose or not _FENCE.match(part))
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", outside, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = sum(one == slug or (one.startswith(f"{slug}-") and one[len(slug) + 1 :].isdigit()) for one in found)
        found.append(f"{slug}-{again}" if again else slug)
    return found
