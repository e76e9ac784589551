# says: raised SystemExit: 0 (|allowed: a voltana.state.Decision
# above: in decide
import sys


class Mine:
    def decide(self, load):
        sys.exit(0)
