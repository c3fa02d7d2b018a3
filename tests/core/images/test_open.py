

def test_the_root_of_the_disk_is_no_pack() -> None:
    with pytest.raises(UserError, match="pack:/: there is no pack"):
        open_images("pack:/")
