"""``retention=online_ewc``: elastic weight consolidation over a sequence of tasks, at the price of one."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import UNIT, hparam
from .base import Kept, SourceTask, anchors
from .ewc import Ewc


@dataclass(frozen=True)
class OnlineEwc(Ewc):
    """Online EWC (Schwarz et al., arXiv 1805.06370, section 4): one running importance, one anchor.

    After each task ``F <- gamma * F + F_new``, and the anchor is where that task left the parameters. The penalty is
    ``strength / 2 * sum F (w - anchor)**2`` with that very F, as Avalanche has it; van de Ven's code multiplies with
    gamma once more there, which is a strength of ``gamma * strength`` here. After one task it is EWC.
    """

    gamma: float = hparam(1.0, UNIT, traced=True)

    def update(self, kept: Kept, task: SourceTask) -> Kept:
        """Return what is kept after one more task.

        Args:
            kept: what :meth:`init_state` or this returned after the task before.
            task: as it has been learned now.
        """
        new = self.importance(task)
        before = kept["importance"]
        importance = {path: self.gamma * before[path] + F if path in before else F for path, F in new.items()}
        return {"anchor": anchors(task), "importance": importance}
