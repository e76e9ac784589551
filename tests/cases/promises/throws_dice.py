# broken: deterministic
# says: but a second controller, asked the same
import random

from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(random.choice((1005, 1410)))
