"""URIs: any text is parsed, or refused with a sentence."""

import pytest
from hypothesis import strategies as st

from rootstock.core.images.uri import parse_uri
from rootstock.tests.fuzz import DEPTHS, fuzz


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_text_is_a_uri_or_is_refused(depth: str) -> None:
    fuzz("texts", st.text(), parse_uri, depth, examples=500)
