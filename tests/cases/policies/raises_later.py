# part: prefill_controller
# says: prefill-|raised KeyError: 'two' (|raises_later.py:9), allowed: a voltana.state.Decision
# above: in decide
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision({"one": 1410}["one" if load.time_s < 1 else "two"])
