"""Where Optuna keeps the trials of a sweep."""

from __future__ import annotations

from pathlib import Path

import optuna
import sqlalchemy.exc

from ...core.errors import UserError

_PATIENCE = 60.0  # seconds to wait for a locked SQLite file


def open_storage(where: str, folder: Path) -> optuna.storages.BaseStorage:
    """where: sqlite or journal, both in the folder, or a database URL. Raises UserError if it cannot be opened."""
    if where == "journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    url = f"sqlite:///{folder / 'study.db'}" if where == "sqlite" else where
    patience = {"connect_args": {"timeout": _PATIENCE}} if url.startswith("sqlite:") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=patience)
    except (
        ImportError,
        ValueError,
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
    ) as error:
        raise UserError(
            f"storage: {without_password(where)}: {cause(error)}; expected sqlite, journal, or a database URL such as "
            "postgresql+psycopg://user@host/name whose driver is installed"
        ) from error


def cause(error: BaseException) -> str:
    """The database's own message, without the text that SQLAlchemy and Optuna add."""
    inner = error.__cause__ or error
    return (str(getattr(inner, "orig", None) or inner).splitlines() or [type(inner).__name__])[0]


def without_password(where: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(where).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return where
