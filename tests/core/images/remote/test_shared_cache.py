"""Two processes that open the same objects at once fetch each block once, and find the same. Run as a script, this file is one of them."""

import sys
from pathlib import Path

import torch

from rootstock.core.images.open import open_images
from rootstock.core.images.remote.blocks import BLOCK
from rootstock.tests.conftest import Forks
from rootstock.tests.objectstore import ObjectStore, archive


def test_two_processes_fetch_each_block_once(store: ObjectStore, forks: Forks, tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (6, BLOCK // 2 + 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    members = {f"{i}.png": row.numpy().tobytes() for i, row in enumerate(noise)}
    made = archive(members)
    uri = f"tar:{store.put('shared.tar', made)}"
    for ended in forks(__file__, [[uri, tmp_path / "0"], [uri, tmp_path / "1"]]):
        assert ended.code == 0, ended.said
    found = [(tmp_path / name).read_text().split() for name in "01"]
    images = open_images(uri)
    assert found[0] == found[1] == [str(key) for key in images.keys().tolist()]
    blocks = [first // BLOCK for _, first, _ in store.gets]
    assert sorted(blocks) == list(range(-(-len(made) // BLOCK)))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(" ".join(map(str, open_images(sys.argv[1]).keys().tolist())))
