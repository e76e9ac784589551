# broken: holds_below_tokens
# says: but where its promises are taken
import math

from voltana.state import Decision


class Mine:
    def __init__(self):
        self.asked = 0

    def decide(self, load):
        self.asked += 1
        return Decision(1005 if self.asked % 7 == 0 else 1410, holds_below_tokens=math.inf)
