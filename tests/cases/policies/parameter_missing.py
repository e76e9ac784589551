# built: yes
# says: policy.decode_controller.small_batch: missing; Mine has no default for it
class Mine:
    def __init__(self, clocks_mhz, *, small_batch):
        self.small_batch = small_batch

    def decide(self, load):
        return None
