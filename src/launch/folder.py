"""A sweep's folder: its lock, the versions that its jobs were run with, and which jobs have ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

from ..config.choices import Resume
from ..environment import code_digest, numeric_sources, versions
from ..errors import UserError
from ..files import atomic_write, to_json_page
from ..tracking.record_reader import load_job
from ..tracking.record_writer import SUMMARY

MANIFEST, LOCK = "sweep.json", ".lock"
SWEEP_FILES = {MANIFEST, LOCK, "multirun.yaml"}
ENDED = ("completed", "diverged")


class SweepFolder:
    """A sweep's folder, locked for as long as this process lives."""

    def __init__(self, path: Path, resume: Resume) -> None:
        self.path, self.resume = path.absolute(), resume
        self._lock = self._take_lock()
        self._manifest = self._read_manifest()

    def _take_lock(self) -> IO[str]:
        """Lock the folder against a second sweep; the lock is released when this process ends, however it ends."""
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
            busy = f"another sweep ({owner}) is writing to {self.path}"
            raise UserError(f"{busy}; wait for it, or give this one another name") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        return lock

    def _read_manifest(self) -> dict[str, Any]:
        """Read the manifest and check that this sweep can use the folder."""
        path = self.path / MANIFEST
        now = {"code": code_digest(numeric_sources()), "versions": versions(), "data": {}}
        if not path.exists():
            entries = [entry for entry in self.path.iterdir() if entry.name not in SWEEP_FILES]
            foreign = [e.name for e in entries if not ((e / SUMMARY).exists() or (e / ".hydra").is_dir())]
            if foreign:
                other = f"{self.path} was not made by a sweep (it contains {foreign[0]})"
                raise UserError(f"{other}; give hydra.sweep.dir another folder")
            if entries and self.resume is Resume.auto:
                unknown = f"{self.path} contains jobs of an unknown version of the code"
                raise UserError(f"{unknown}; resume=force continues with them")
            return self._write_manifest(now)
        try:
            then = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove it and use resume=force") from error
        changed = [name for name in ("code", "versions") if then.get(name) != now[name]]
        if changed and self.resume is Resume.auto:
            raise UserError(
                f"{self.path} was made with other {' and '.join(changed)} of Thaw; "
                "give this sweep another name, or continue with resume=force"
            )
        return self._write_manifest({**now, "data": then.get("data", {})}) if changed else then

    def _write_manifest(self, manifest: dict[str, Any]) -> dict[str, Any]:
        with atomic_write(self.path / MANIFEST) as file:
            file.write(to_json_page(manifest).encode())
        return manifest

    def check_data(self, data_config: dict[str, Any], fingerprint: str) -> None:
        """Check that the same data settings gave the same rows when the folder's other jobs were run."""
        key = hashlib.sha256(json.dumps(data_config, sort_keys=True).encode()).hexdigest()[:16]
        known = self._manifest["data"].get(key, fingerprint)
        if known != fingerprint and self.resume is Resume.auto:
            raise UserError(
                f"the data has changed since {self.path} was created (fingerprint {fingerprint}, then {known}); "
                "give this sweep another name, or continue with resume=force"
            )
        if self._manifest["data"].get(key) != fingerprint:
            self._manifest["data"][key] = fingerprint
            self._write_manifest(self._manifest)

    def ended(self, folder: Path, job_id: str) -> bool:
        """Tell whether a job has ended with a result, so that it need not run again."""
        if self.resume is Resume.off or not (folder / SUMMARY).exists():
            return False
        job = load_job(folder, folder.name)
        return job.status in ENDED and job.job_id == job_id
