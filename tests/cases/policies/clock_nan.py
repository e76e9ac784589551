# says: answered Decision(clock_mhz=nan, |clock_mhz=nan, allowed: whole MHz, 210 to 1410 MHz in steps of 15
import math

from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(math.nan)
