# part: prefill_controller
# broken: deterministic
# says: but a second controller, asked the same
from voltana.state import Decision


class Mine:
    seen = [0]  # noqa: RUF012 - of all instances together

    def decide(self, load):
        self.seen[0] += load.batch_tokens
        return Decision(1005 if self.seen[0] % 2 else 1410)
