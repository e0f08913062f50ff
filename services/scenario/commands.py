"""The commands that lines of a timeline ask for, where it takes more than a word."""

from __future__ import annotations

from billing.credit import CreditKind
from billing.ids import CustomerId, SubscriptionId
from billing.plan_change import AddAddOn, ChangeBillingAnchor, ChangePlan, MigrateSubscription, RemoveAddOn
from billing.prepaid import BALANCE_PRIORITY, GrantCredit
from billing.pricing import AddOnQuantity
from billing.subscription import CancelSubscription, CreateSubscription
from services.scenario.verbs import Add, Anchor, Cancel, Change, Give, Migrate, Remove, Subscribe


def subscription(verb: Subscribe) -> CreateSubscription:
    """A customer's subscription to a plan."""
    return CreateSubscription(
        subscription_id=SubscriptionId(verb.subscription),
        customer_id=CustomerId(verb.customer),
        plan=verb.plan,
        starts_at=verb.starts_at,
        ends_at=verb.ends_at,
        trial=verb.trial,
        billing_day=verb.billing_day,
        zone=verb.zone,
        currency=verb.currency,
        add_ons=tuple(AddOnQuantity(add_on=key, quantity=quantity) for key, quantity in verb.add_ons),
    )


def of_a_subscription(
    verb: Change | Migrate | Add | Remove | Anchor | Cancel,
) -> ChangePlan | MigrateSubscription | AddAddOn | RemoveAddOn | ChangeBillingAnchor | CancelSubscription:
    """What is to become of a subscription."""
    id, at_end = SubscriptionId(verb.subscription), verb.at_period_end
    match verb:
        case Change(plan=plan):
            return ChangePlan(subscription_id=id, plan=plan, at_period_end=at_end)
        case Migrate():
            return MigrateSubscription(subscription_id=id, at_period_end=at_end)
        case Add(add_on=add_on, quantity=quantity):
            return AddAddOn(subscription_id=id, add_on=add_on, quantity=quantity, at_period_end=at_end)
        case Remove(add_on=add_on):
            return RemoveAddOn(subscription_id=id, add_on=add_on, at_period_end=at_end)
        case Anchor(to=to):
            return ChangeBillingAnchor(subscription_id=id, anchor=to, at_period_end=at_end)
        case Cancel():
            return CancelSubscription(subscription_id=id, at_period_end=at_end)


def grant(verb: Give) -> GrantCredit:
    """Credit of a customer."""
    return GrantCredit(
        customer_id=CustomerId(verb.customer),
        grant_id=verb.grant,
        amount=verb.amount,
        priority=verb.priority if verb.priority is not None else BALANCE_PRIORITY,
        kind=CreditKind.PURCHASED if verb.purchased else CreditKind.GRANTED,
        expires_at=verb.expires_at,
    )
