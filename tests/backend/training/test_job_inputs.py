"""What lies on the disk is what was sent, or the job does not begin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from msgspec.structs import replace

from aiaas_magics.backend.training.job_inputs import arrays_of, payload_of
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.errors import BlobDamaged


def stored(folder: Path, data: bytes) -> tuple[str, str]:
    """A blob's path and its check."""
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return str(path), xxhash.xxh3_128_hexdigest(data)


def npy(value: int) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.full(1000, value))
    return file.getvalue()


@pytest.fixture
def command(tmp_path: Path) -> WorkerCommand:
    payload, *arrays = (stored(tmp_path, data) for data in (b"payload", npy(0), npy(1), npy(2)))
    return WorkerCommand(
        job="1",
        attempt=1,
        rank=0,
        ranks=1,
        attempt_dir=str(tmp_path),
        job_dir=str(tmp_path),
        payload=payload[0],
        arrays=tuple(path for path, _ in arrays),
        checks=(payload[1], *(check for _, check in arrays)),
        seed=1,
    )


def spoil(path: str) -> None:
    with Path(path).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


@pytest.mark.parametrize("older", [False, True])
def test_one_changed_byte_is_found_also_in_a_blob_of_an_older_server(command: WorkerCommand, older: bool) -> None:
    command = replace(command, checks=("",) * 4) if older else command
    assert payload_of(command) == b"payload"
    assert [int(array[0]) for array in arrays_of(command)] == [0, 1, 2]

    spoil(command.payload)
    spoil(command.arrays[1])

    for read, path in ((payload_of, command.payload), (arrays_of, command.arrays[1])):
        with pytest.raises(BlobDamaged, match=Path(path).name[:12]):
            read(command)


def test_ranks_share_the_check_out_and_one_of_them_finds_what_changed(command: WorkerCommand) -> None:
    for spoiled in command.arrays:
        data = Path(spoiled).read_bytes()
        spoil(spoiled)
        found = []
        for rank in range(2):
            try:
                arrays_of(replace(command, rank=rank, ranks=2))
            except BlobDamaged:
                found.append(rank)
        Path(spoiled).write_bytes(data)
        assert len(found) == 1
