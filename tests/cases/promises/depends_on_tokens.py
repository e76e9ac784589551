# broken: holds_below_tokens
# says: it answers Decision(|, but where its promises are taken Decision(
import math

from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1005 if load.batch_tokens % 1000 < 500 else 1410, holds_below_tokens=math.inf)
