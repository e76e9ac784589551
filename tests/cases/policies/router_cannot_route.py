# built: yes
# part: prefill_router
# says: without route(), allowed: an object with route()
class Mine:
    def decide(self, load):
        return None
