"""URIs: any text is parsed, or refused with a sentence."""

import pytest
from hypothesis import strategies as st

from rootstock.core.images.places import uri_path
from rootstock.core.images.uri import parse_uri
from rootstock.tests.fuzz import DEPTHS, fuzz


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_text_is_a_uri_or_is_refused(depth: str) -> None:
    fuzz("texts", st.text(), parse_uri, depth, examples=500)


@pytest.mark.parametrize("path", ["a#train", "what?x=1", "100%", "100%23", "a%2523?#", "/plain/path"])
def test_an_escaped_path_is_read_as_itself(path: str) -> None:
    assert parse_uri(f"folder:{uri_path(path)}?under={uri_path(path)}#train").path == path
