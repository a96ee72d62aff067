"""PostgreSQL from the wheel. (placeholder, being written)"""
from contextlib import nullcontext
from pathlib import Path


class EmbeddedError(Exception):
    pass


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def running(self):
        return nullcontext()


def local_cluster(folder: Path) -> Cluster:
    return Cluster(folder)
