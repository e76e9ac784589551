# says: answered (1410, None, 0.0, None), allowed: a voltana.state.Decision
class Mine:
    def decide(self, load):
        return (1410, None, 0.0, None)
