"""The difference from a field of colours: against a loop over pixels, and what the preset of digits makes of it."""

import pytest
import torch
from torch import Tensor

from rootstock.core.draws import Draws
from rootstock.core.views import colour
from rootstock.core.views.augmentation import Augmentation
from rootstock.core.views.colour import FIELD, Colours, field_difference, recolour
from rootstock.core.views.presets import VIEWS
from rootstock.core.views.view import View


def slow(x: Tensor, field: Tensor) -> Tensor:
    """By pixel, in float64: the four points around it, weighted by the distance to them."""
    found = torch.zeros(x.shape, dtype=torch.float64)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            v, u = i * (FIELD - 1) / (height - 1), j * (FIELD - 1) / (width - 1)
            top, left = min(int(v), FIELD - 2), min(int(u), FIELD - 2)
            a, b = v - top, u - left
            corners = field[:, :, top : top + 2, left : left + 2].double()
            upper = (1 - b) * corners[:, :, 0, 0] + b * corners[:, :, 0, 1]
            lower = (1 - b) * corners[:, :, 1, 0] + b * corners[:, :, 1, 1]
            found[:, :, i, j] = (x[:, :, i, j].double() - ((1 - a) * upper + a * lower)).abs()
    return found


def test_against_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    x, field = torch.rand(3, 3, 9, 7, generator=generator), torch.rand(3, 3, FIELD, FIELD, generator=generator)
    torch.testing.assert_close(field_difference(x, field).double(), slow(x, field), atol=1e-6, rtol=0)


def test_the_fields_of_zeros_and_ones_are_nothing_and_the_inverse() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    field = torch.stack([torch.zeros(3, FIELD, FIELD), torch.ones(3, FIELD, FIELD)])
    torch.testing.assert_close(field_difference(x, field), torch.stack([x[0], 1 - x[1]]))


@pytest.mark.parametrize("count", [1, 40])
def test_both_ways_of_colouring_agree(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place on the CPU, where only the drawn images change, and with static shapes; before all other colours."""
    draws = Draws(3, torch.arange(count))
    x = draws.uniform("x", 3, 12, 12)
    flags = {name: draws.bernoulli(name, 0.6) for name in ("difference", "invert")}
    colours = Colours(**flags, field=draws.uniform("field", 3, FIELD, FIELD))
    found = recolour(x.clone(), colours, 1.0)
    for n in range(count):
        one = slow(x[n : n + 1], colours.field[n : n + 1])[0].float() if flags["difference"][n] else x[n]  # pyright: ignore[reportOptionalSubscript]
        torch.testing.assert_close(found[n], 1 - one if flags["invert"][n] else one, atol=1e-6, rtol=0)
    monkeypatch.setattr(colour, "eager_cpu", lambda _: False)
    torch.testing.assert_close(recolour(x.clone(), colours, 1.0), found, atol=1e-6, rtol=0)


def test_other_draws_of_a_view_stay_as_they_are() -> None:
    """Where the difference was not drawn, a view is what it would have been without the key."""
    images = torch.randint(0, 256, (30, 3, 16, 16), generator=torch.Generator().manual_seed(2)).byte()
    draws = Draws(5, torch.arange(30))
    with_key = View(16, (0.0,), (1.0,), VIEWS["digits_targeted"]())
    without = View(16, (0.0,), (1.0,), VIEWS["digits_weak"]())
    chosen = draws.bernoulli("difference", 0.8)
    same = (with_key(images, draws) == without(images, draws)).flatten(1).all(1)
    assert 0 < int(chosen.sum()) < 30 and torch.equal(same, ~chosen)
    assert Augmentation(difference=0.1).varies and not Augmentation().varies


def test_a_digit_on_black_keeps_its_edges() -> None:
    """What the preset is for: strokes and background get colours that vary, and stay apart by the field's value."""
    digit = torch.zeros(1, 3, 16, 16)
    digit[:, :, 4:12, 7:9] = 1.0
    field = Draws(0, torch.arange(1)).uniform("field", 3, FIELD, FIELD)
    made, plane = field_difference(digit, field), field_difference(torch.zeros_like(digit), field)
    inside = digit.bool()
    torch.testing.assert_close(made[inside], 1 - plane[inside])
    torch.testing.assert_close(made[~inside], plane[~inside])
