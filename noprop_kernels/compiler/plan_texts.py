"""Plans by their text, since a custom operation's arguments are tensors and text."""

from ..plan import Plan

PLANS: dict[str, Plan] = {}


def text_of(plan: Plan) -> str:
    text = repr(plan)
    PLANS[text] = plan
    return text
