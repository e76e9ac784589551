# says: raised Enough: of this (|raises_a_base_exception.py:11), allowed: a voltana.state.Decision
# above: in decide


class Enough(BaseException):
    pass


class Mine:
    def decide(self, load):
        raise Enough("of this")
