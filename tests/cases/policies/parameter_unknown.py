# built: yes
# given: {smal_batch: 3}
# says: policy.decode_controller.smal_batch: unknown to Mine, allowed: small_batch
class Mine:
    def __init__(self, clocks_mhz, *, small_batch=3):
        self.small_batch = small_batch

    def decide(self, load):
        return None
