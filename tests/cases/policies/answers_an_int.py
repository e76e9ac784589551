# part: prefill_controller
# says: prefill-0 at |answered 1410, allowed: a voltana.state.Decision
class Mine:
    def decide(self, load):
        return 1410
