# given: {small_batch: many}
# says: raised TypeError: '<=' not supported between instances of 'int' and 'str' (
# above: in decide
from voltana.state import Decision


class Mine:
    def __init__(self, clocks_mhz, *, small_batch):
        self.clocks_mhz, self.small_batch = clocks_mhz, small_batch

    def decide(self, load):
        return Decision(self.clocks_mhz[0 if load.batch_size <= self.small_batch else -1])
