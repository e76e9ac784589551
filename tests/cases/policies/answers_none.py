# says: decode-0 at 0.0|answered None, allowed: a voltana.state.Decision with a clock of whole MHz, 210 to 1410 MHz
class Mine:
    def decide(self, load):
        print("no return")
