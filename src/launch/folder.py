"""A sweep's folder: who is writing to it, what made it, and which of its jobs have ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

from ..config.choices import Resume
from ..environment import code_digest, versions
from ..errors import UserError
from ..files import atomic_write, to_json_page
from ..tracking.record import SUMMARY
from ..tracking.records import load_job

MANIFEST, LOCK = "sweep.json", ".lock"
OWN = {MANIFEST, LOCK, "multirun.yaml"}
ENDED = ("completed", "diverged")


class SweepFolder:
    """Holds a sweep's folder for as long as this process lives."""

    def __init__(self, path: Path, resume: Resume) -> None:
        self.path, self.resume = path.absolute(), resume
        self._lock = self._take()
        self._manifest = self._read_manifest()

    def _take(self) -> IO[str]:
        """Lock the folder against a second sweep; the lock goes with this process, however it ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise UserError(f"hydra.sweep.dir={self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise UserError(
                f"another sweep ({owner}) is writing to {self.path}; wait for it, or give this one another name"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        return lock

    def _read_manifest(self) -> dict[str, Any]:
        """Check that the folder is this sweep's to go on with."""
        path, now = self.path / MANIFEST, {"code": code_digest(), "versions": versions(), "data": {}}
        if not path.exists():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name not in OWN and not is_job(entry)]
            if foreign:
                raise UserError(
                    f"{self.path} was not made by a sweep (it holds {foreign[0]}); "
                    "give hydra.sweep.dir a folder of its own"
                )
            if any(map(is_job, self.path.iterdir())) and self.resume is Resume.auto:
                raise UserError(
                    f"{self.path} holds jobs of an unknown version of the code; resume=force goes on with them"
                )
            return self._write_manifest(now)
        try:
            then = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); resume=force needs it removed") from error
        changed = [name for name in ("code", "versions") if then.get(name) != now[name]]
        if changed and self.resume is Resume.auto:
            raise UserError(
                f"{self.path} was made with other {' and '.join(changed)} of Thaw; "
                "give this sweep another name, or go on all the same with resume=force"
            )
        return self._write_manifest({**now, "data": then.get("data", {})}) if changed else then

    def _write_manifest(self, manifest: dict[str, Any]) -> dict[str, Any]:
        with atomic_write(self.path / MANIFEST) as file:
            file.write(to_json_page(manifest).encode())
        return manifest

    def check_data(self, data_config: dict[str, Any], fingerprint: str) -> None:
        """Refuse to mix versions of the data: the same settings must have given the same rows before."""
        key = hashlib.sha256(json.dumps(data_config, sort_keys=True).encode()).hexdigest()[:16]
        known = self._manifest["data"].get(key, fingerprint)
        if known != fingerprint and self.resume is Resume.auto:
            raise UserError(
                f"the data has changed since {self.path} was begun (fingerprint {fingerprint}, then {known}); "
                "give this sweep another name, or go on all the same with resume=force"
            )
        if self._manifest["data"].get(key) != fingerprint:
            self._manifest["data"][key] = fingerprint
            self._write_manifest(self._manifest)

    def ended(self, folder: Path, job_id: str) -> bool:
        """Tell whether a job has ended with a result and need not be run again."""
        if self.resume is Resume.off or not (folder / SUMMARY).exists():
            return False
        job = load_job(folder, folder.name)
        return job.status in ENDED and job.job_id == job_id


def is_job(path: Path) -> bool:
    """Tell whether a folder is a job's."""
    return path.is_dir() and ((path / SUMMARY).exists() or (path / ".hydra").is_dir())
