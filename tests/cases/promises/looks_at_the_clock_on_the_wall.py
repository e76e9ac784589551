# part: decode_router
# broken: deterministic
# says: but a second router, asked the same, answers
import time


class Mine:
    def route(self, request, candidates):
        return time.perf_counter_ns() // 1000 % len(candidates)
