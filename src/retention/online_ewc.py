"""``retention=online_ewc``: elastic weight consolidation over a sequence of tasks in the memory of one."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import UNIT, hparam
from .base import RetentionState, SourceTask, anchors
from .ewc import Ewc


@dataclass(frozen=True)
class OnlineEwc(Ewc):
    """Online EWC (Schwarz et al., arXiv 1805.06370, section 4): one running importance, one anchor.

    After each task ``F <- gamma * F + F_new``, and the anchor is the parameters after that task. The penalty is
    ``strength / 2 * sum F (w - anchor)**2`` with this F, as in Avalanche; van de Ven's code multiplies F by gamma
    again, which equals a strength of ``gamma * strength`` here. After one task it is EWC.
    """

    gamma: float = hparam(1.0, UNIT, traced=True)

    def update(self, state: RetentionState, task: SourceTask) -> RetentionState:
        """Return the running importance and the new anchor."""
        new = self.importance(task)
        before = state["importance"]
        importance = {path: self.gamma * before[path] + F if path in before else F for path, F in new.items()}
        return {"anchor": anchors(task), "importance": importance}
