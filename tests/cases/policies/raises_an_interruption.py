# says: raised KeyboardInterrupt (|raises_an_interruption.py:7), allowed: a voltana.state.Decision
# above: in decide


class Mine:
    def decide(self, load):
        raise KeyboardInterrupt
