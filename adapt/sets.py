"""The images of an adaptation: opened so that no label of the target shapes anything, and sealed where labels are for the final test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.images.damage import Damage, read_or_neighbour, rows_or_neighbours
from ..core.images.open import Images, holdout, open_images
from ..core.images.sealed import SealedImages
from ..core.images.sets import HELD_OUT, align, labelled, named_tests, refuse_one_class
from ..core.run.directory import Run
from ..core.stream.workers import at_most_cores
from ..core.threads import in_threads
from ..core.views.corrupted import Corruption, corrupted, view_before
from ..core.views.view import Evaluation, stack_pictures

SOURCE, TARGET = "source", "target"
AS_UNKNOWN = "; method=osbp takes their pictures as unknown"
TOO_FEW = "give more pictures, or a labelled test (data.test), for which nothing is held out"

Reader = Callable[[Images], Iterator[Tensor]]
"""Images as evaluation sees them, in their order, in batches on the device: pictures float [n, C, h, w], or features of a frozen backbone
float [n, D], or maps of its frozen layers float [n, ...]; the classifier takes all of them."""


class Sets(NamedTuple):
    """The images of an adaptation: the target's have no labels; classes are numbered as the source's everywhere.

    tests: sealed, except the held-out part of the source: their labels are not in memory before the final test.
    held_out: of the source's training images, with labels, for validators. whole_source: both together, where some were held out.
    """

    source: Images
    target: Images
    tests: dict[str, Images]
    held_out: Images | None = None
    whole_source: Images | None = None

    def hold_out(self, fraction: float, seed: int) -> Sets:
        """Hold this part of the source out from training, of each class; none for 0. Raises UserError for too few images."""
        if not fraction:
            return self
        with remedied(
            "evaluate.held_out", "evaluate.held_out=0 holds none out, and leaves out the validators that need it"
        ):
            source, held_out = holdout(self.source, fraction=fraction, seed=seed, stratify=True)
        return self._replace(source=source, held_out=held_out, whole_source=self.source)

    def untested(self) -> str:
        """What to say where no test is of the target, as where it has no labels; "" where one is."""
        if self.tests.keys() - {SOURCE}:
            return ""
        return "no test is of the target: accuracies are those on the source; data.test=URI gives a labelled test of the target"

    def training(self) -> dict[str, Images]:
        return {SOURCE: self.source, TARGET: self.target}

    def domains(self) -> tuple[Images, Images]:
        """Source and target, the source with what `hold_out` took from it: where `data.test` is given, the same for every seed."""
        return self.source if self.whole_source is None else self.whole_source, self.target

    def named(self) -> dict[str, Images]:
        held_out = {} if self.held_out is None else {"held_out": self.held_out}
        return {**self.training(), **held_out, **{f"test.{name}": images for name, images in self.tests.items()}}


def open_sets(data: Mapping[str, Any], seed: int, unknown: str | None = None, online: bool = False) -> Sets:
    """Source, target and tests of the `data` section.

    The target is opened without labels and lies in the order of its content: neither a split nor the order of training
    depends on the class folders that its pictures may lie in. unknown: the class of tests' images that are in none of the source's classes;
    None where a method has no output for them, so that they are refused. online: whether the whole target is predicted while it is met:
    without `data.test` it is then the test, and nothing of it is held out.
    """
    shown = _corruption(data)
    source = labelled(open_images(data["source"], seed=seed), "data.source")
    target = shown(open_images(data["target"], seed=seed, role="unlabelled"))
    if unknown is None and not online:
        refuse_one_class(source, "data.source")
    classes, stamp = source.classes, data.get("stamp", "size")
    assert classes is not None
    if unknown in classes:
        raise UserError(
            f"data.source: {source.uri} has a class named {unknown}, as this method calls what is in none of the classes; rename it"
        )
    if data["test"] is not None:
        key = "data.test.{}" if isinstance(data["test"], Mapping) else "data.test"
        named = named_tests(data["test"])
        opened = {n: Tested(uri, seed, classes, key.format(n), unknown, shown) for n, uri in named.items()}
        sets = {name: SealedImages(test.opened, stamp, test.whole) for name, test in opened.items()}
        return Sets(source, in_content_order(target), {**sets})
    with remedied("data.source", TOO_FEW):
        source, source_test = holdout(source, fraction=HELD_OUT, seed=seed, stratify=True)
    tests: dict[str, Images] = {SOURCE: source_test}
    if _has_labels(data["target"], seed):
        # The same pictures once more, with labels for the final test alone; they play no part in cutting.
        known = Tested(data["target"], seed, classes, "data.target", unknown, shown)
        if not online:
            with remedied("data.target", TOO_FEW):
                target, _ = holdout(target, fraction=HELD_OUT, seed=seed, stratify=False)
        sealed = SealedImages(known.opened if online else known.held_out, stamp, known.undrawn)
        tests = {TARGET: sealed, **tests}
    return Sets(source, in_content_order(target), tests)


def _has_labels(target: str | list[str], seed: int) -> bool:
    """Whether a target that opens without labels has them, all of one kind; a union of which only some sets have them has none."""
    try:
        return open_images(target, seed=seed, role="test").labels is not None
    except UserError:
        return False


def training_source(data: Mapping[str, Any], held_out: float, seed: int) -> Images:
    """The source images that an adaptation is trained on, without those of its own test and of `evaluate.held_out`. Raises UserError."""
    source = labelled(open_images(data["source"], seed=seed), "data.source")
    if data["test"] is None:
        source, _ = holdout(source, fraction=HELD_OUT, seed=seed, stratify=True)
    return holdout(source, fraction=held_out, seed=seed, stratify=True)[0] if held_out else source


@contextmanager
def remedied(key: str, remedy: str) -> Iterator[None]:
    """Within it, a UserError about images begins with the key that asks for them, and ends with what helps."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}; {remedy}") from None


class Tested(NamedTuple):
    """How a labelled test is opened: always the same images. shown: how its pictures are changed."""

    uri: str | list[str]
    seed: int
    classes: tuple[str, ...]
    key: str
    unknown: str | None
    shown: Callable[[Images], Images]

    def opened(self) -> Images:
        """All images."""
        found = open_images(self.uri, seed=self.seed, role="test")
        return self.shown(align(found, self.classes, self.key, unknown=self.unknown, remedy=AS_UNKNOWN))

    def undrawn(self) -> Images:
        """The set to which looks are counted: the whole of what a seed draws parts of."""
        return open_images(self.uri, seed=self.seed, role="test", undrawn=True)

    @property
    def whole(self) -> Callable[[], Images] | None:
        """`undrawn`, where the URI may draw a part."""
        return self.undrawn if "[" in str(self.uri) else None

    def held_out(self) -> Images:
        """The part that no training sees. Aligned before cutting: a class that the source lacks is refused wherever its pictures lie."""
        return holdout(self.opened(), fraction=HELD_OUT, seed=self.seed, stratify=False)[1]


def sealed_target(data: Mapping[str, Any], seed: int) -> SealedImages:
    """The target in the order of its content, as `open_sets` has it where nothing is held out, with its labels sealed."""

    def opened() -> Images:
        return in_content_order(open_images(data["target"], seed=seed, role="test"))

    return SealedImages(opened, part_of=partial(open_images, data["target"], seed=seed, role="test", undrawn=True))


def _corruption(data: Mapping[str, Any]) -> Callable[[Images], Images]:
    """How the pictures of target and tests are changed: as `data.corrupt` says. Raises UserError."""
    given = data.get("corrupt")
    if given is None:
        return lambda images: images
    corruption = Corruption(given["name"], given["severity"], given["table"])
    corruption.check()
    view = Evaluation(data["size"], **{key: data[key] for key in ("crop", "resize", "interpolation")})
    return partial(corrupted, corruption=corruption, view=view_before(given.get("size"), view))


def in_content_order(images: Images) -> Images:
    """The images in the order of their content, which is the same wherever they lie and whatever their labels."""
    return images.select(images.keys().argsort(stable=True))


def in_batches(count: int, batch_size: int = 256) -> tuple[Tensor, ...]:
    """The rows 0 to count - 1 in batches alike in size, at most `batch_size` each: int64 [n]."""
    return torch.arange(count).tensor_split(-(-count // batch_size))


def whole(
    images: Images,
    batches: Sequence[Tensor] | None = None,
    *,
    view: Evaluation,
    device: torch.device,
    workers: int,
    damage: Damage,
) -> Iterator[Tensor]:
    """Every image once, as evaluation sees it, in batches alike in size: float [n, C, h, w]; the same on every process.

    batches: the rows of some batches, int64 [n] each, instead of all of `in_batches`.
    These are training images: a damaged one is replaced by its neighbour, as in the stream.
    """

    def crop(index: int) -> tuple[Tensor, int]:
        picture, read = read_or_neighbour(images, index)
        return view.worker(picture), read

    with in_threads(at_most_cores(workers)) as side_by_side:
        for wanted in in_batches(len(images)) if batches is None else batches:
            if images.uniform() is not None:
                raw, read = rows_or_neighbours(images, wanted)
            else:
                crops, numbers = zip(*side_by_side(crop, wanted.tolist()), strict=True)
                raw, read = stack_pictures(crops), torch.tensor(numbers)
            damage.note(images, wanted, read)
            yield view(raw.to(device))


def with_labels(images: Images, read: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of labelled training images with their labels, int64 [n].

    read: a Reader that takes `damage`. In the place of a damaged picture it shows its neighbour, whose label then goes with it.
    """
    assert images.labels is not None
    shown = Shown(limit=1.0, report=lambda _: None)
    for batch in read(images, damage=shown):
        yield batch, images.labels[shown.rows]


class Shown(Damage):
    """Remembers which rows were read last, instead of the damaged ones among them."""

    rows: Tensor

    def note(self, images: Images, wanted: Tensor, read: Tensor) -> None:
        """Notes the rows of the next batch."""
        self.rows = read


def source_images(images: Images, view: Evaluation, run: Run, count: int, batch_size: int) -> Iterator[Tensor]:
    """The first `count` images by content, as `whole` reads them."""
    chosen = in_content_order(images).select(torch.arange(min(count, len(images))))
    read = {"view": view, "device": run.device, "workers": run.options["workers"], "damage": replaced_silently()}
    return whole(chosen, in_batches(len(chosen), batch_size), **read)


def replaced_silently() -> Damage:
    """Training notes and counts damaged pictures; who only shows them again takes the same neighbours without a word."""
    return Damage(limit=1.0, report=lambda _: None)
