# says: holds_below_tokens='always', allowed: a number of tokens from 0; math.inf: for ever
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410, holds_below_tokens="always")
