"""Scikit-learn's digits as the three sets of a small adaptation."""


def sets(size: int) -> dict[str, str]:
    """Source, target and test of the `data` section: 40, 40 and 30 digits, none twice. size: of the pictures in pixels."""
    digits = f"sklearn:digits?size={size}"
    return {"source": f"{digits}#[:40]", "target": f"{digits}#[40:80]", "test": f"{digits}#[80:110]"}
