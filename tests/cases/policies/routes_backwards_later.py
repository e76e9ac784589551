# part: prefill_router
# says: for request 5 that |answered -1, allowed: the index of a candidate, 0 to 1
class Mine:
    def route(self, request, candidates):
        return -1 if request.request_id == 5 else 0
