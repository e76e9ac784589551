# says: holds_below_tokens=nan, allowed: a number of tokens from 0; math.inf: for ever
import math

from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410, holds_below_tokens=math.nan if load.batch_size else 0.0)
