"""The runs of tests/core, for commands that look at runs, and pictures that belong together."""

from collections.abc import Callable

import pytest
from PIL import Image

from rootstock.core.images.open import open_images
from rootstock.tests.core.conftest import opened

__all__ = ["opened"]


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The URI of labelled digits of so many patients, up to 40, six pictures each."""
    folder, images = tmp_path_factory.mktemp("patients"), open_images("sklearn:digits?size=16&classes=3")
    assert images.labels is not None
    lines = ["path,label,patient"]
    for i, label in enumerate(images.labels[:240].tolist()):
        Image.fromarray(images.read(i).permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label},p{i // 6}")

    def of(count: int) -> str:
        (folder / f"{count}.csv").write_text("\n".join(lines[: 1 + 6 * count]) + "\n")
        return f"csv:{folder}/{count}.csv?group=patient"

    return of
