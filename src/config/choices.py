"""Words that settings are chosen from and that several rooms need; this file imports nothing of the project."""

from __future__ import annotations

from enum import Enum

# Of a sweep: run what is missing; also where code or data have changed since; run everything again.
Resume = Enum("Resume", ["auto", "force", "off"])
# Of kept stages: read and write; neither; nothing in the folder changes; compute again and write.
CacheMode = Enum("CacheMode", ["use", "off", "read", "refresh"])
# What is run: a source task and then a target task, or tasks one after the other.
Kind = Enum("Kind", ["transfer", "sequence"])
