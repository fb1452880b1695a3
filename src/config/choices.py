"""Choices that several packages use; this file imports nothing of the project."""

from __future__ import annotations

from enum import Enum

# Of a sweep. auto: run the missing jobs; force: also if code or data have changed; off: run all jobs again.
Resume = Enum("Resume", ["auto", "force", "off"])
# Of the stage cache. use: read and write; off: neither; read: never write; refresh: compute again and write.
CacheMode = Enum("CacheMode", ["use", "off", "read", "refresh"])
# transfer: a source task, then a target task; sequence: any number of tasks, one after the other.
Kind = Enum("Kind", ["transfer", "sequence"])
