# broken: reads_load
# says: it answers Decision(clock_mhz=1410|, at first it was Decision(clock_mhz=705
from voltana.state import Decision


class Mine:
    reads_load = False

    def decide(self, load):
        return Decision(1410 if load.batch_size else 705)
