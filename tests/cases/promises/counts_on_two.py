# part: prefill_router
# broken: answers
# says: answered 1, allowed: the index of a candidate, 0 to 0
class Mine:
    def route(self, request, candidates):
        return request.request_id % 2
