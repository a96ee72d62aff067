"""Functions, views and triggers live in frozen SQL files beside the migration that runs them."""

from pathlib import Path

from django.db.migrations import RunSQL

__all__ = ["RunSQLFile", "run_sql_file"]


class RunSQLFile(RunSQL):
    """A frozen pair of SQL files; `name` lets `optimize_db` find it in the migrations again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        super().__init__(
            sql=(folder / f"{name}.up.sql").read_text(encoding="utf-8"),
            reverse_sql=(folder / f"{name}.down.sql").read_text(encoding="utf-8"),
        )


def run_sql_file(migration_file: str, name: str) -> RunSQLFile:
    """Run sql/<name>.up.sql, and sql/<name>.down.sql on the way back.

    The files are part of the migration and as frozen as it is: a new version of the
    object is a new pair of files under a new name, never an edit of these.
    """
    return RunSQLFile(Path(migration_file).with_name("sql"), name)
