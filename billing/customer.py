"""A customer: who pays. Name and address are not in the log; they are a profile beside it (promise 9).

    (absent) --CreateCustomer--> Active --RedeemCoupon / AttachPaymentMethod--> Active

Invoices move two counters here: periods left on a redeemed coupon, and the credit balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from billing import prepaid
from billing.credit import Credit, CreditKind
from billing.discount import Coupon
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, check_id
from billing.money import Money
from billing.pricing import PriceOverride
from billing.tax import check_jurisdiction


class Provider(StrEnum):
    """Who collects payments."""

    MANUAL = "manual"
    SANDBOX = "sandbox"
    STRIPE = "stripe"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMethod:
    """How a customer pays: a provider and its token; never a card number."""

    provider: Provider = Provider.MANUAL
    """Who collects."""
    token: str = ""
    """The provider's name for the saved payment method; empty for manual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCustomer:
    """Add a customer."""

    customer_id: CustomerId
    """Chosen by the tenant; usage events refer to it."""
    payment_method: PaymentMethod = PaymentMethod()
    """How the customer pays."""
    jurisdiction: str = ""
    """Where the customer is taxed, such as US-NY; empty for the tenant's own rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetJurisdiction:
    """Have a customer be taxed elsewhere, on invoices that are fixed from now on."""

    customer_id: CustomerId
    """The customer."""
    jurisdiction: str
    """Where the customer is taxed, such as US-NY; empty for the tenant's own rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPaymentMethod:
    """Change how a customer pays."""

    customer_id: CustomerId
    """The customer."""
    payment_method: PaymentMethod
    """How the customer pays from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedeemCoupon:
    """Give a customer the discount of a coupon."""

    customer_id: CustomerId
    """The customer."""
    coupon: str
    """Code of a coupon in the price book in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPriceOverride:
    """Have a customer pay own prices for a plan, from the next period of each subscription on."""

    customer_id: CustomerId
    """The customer."""
    override: PriceOverride
    """The prices, instead of any set before for that plan and currency; one that changes nothing takes them back."""


Command = CreateCustomer | AttachPaymentMethod | SetJurisdiction | RedeemCoupon | SetPriceOverride | prepaid.GrantCredit


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerCreated:
    """A customer was added."""

    customer_id: CustomerId
    """The customer."""
    payment_method: PaymentMethod = PaymentMethod()
    """How the customer pays."""
    jurisdiction: str = ""
    """Where the customer is taxed; empty for the tenant's own rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JurisdictionSet:
    """A customer is taxed elsewhere from now on."""

    customer_id: CustomerId
    """The customer."""
    jurisdiction: str
    """Where the customer is taxed; empty for the tenant's own rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMethodAttached:
    """A customer pays in another way from now on."""

    customer_id: CustomerId
    """The customer."""
    payment_method: PaymentMethod
    """How the customer pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponRedeemed:
    """A customer was given the discount of a coupon."""

    customer_id: CustomerId
    """The customer."""
    coupon: Coupon
    """The coupon as the price book had it."""
    redeemed_at: datetime
    """When; coupons apply oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerCredited:
    """A negative invoice became credit that later invoices use up."""

    customer_id: CustomerId
    """The customer."""
    amount: Money
    """Above zero."""
    reason: str
    """The invoice it came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverrideSet:
    """A customer pays own prices for a plan, from the next period of each subscription on."""

    customer_id: CustomerId
    """The customer."""
    override: PriceOverride
    """The prices, instead of any set before for that plan and currency; one that changes nothing takes them back."""


Event = (
    CustomerCreated
    | PaymentMethodAttached
    | JurisdictionSet
    | CouponRedeemed
    | CustomerCredited
    | PriceOverrideSet
    | prepaid.Event
)


@dataclass(frozen=True, slots=True)
class Redemption:
    """A redeemed coupon and on how many invoices it already gave a discount."""

    coupon: Coupon
    redeemed_at: datetime
    invoices: int = 0
    left: Money | None = None
    """What remains of a fixed amount that carries over; None before its first use, and for every other coupon."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Not known."""


@dataclass(frozen=True, slots=True)
class Active:
    """A customer with what later decisions need of it."""

    customer_id: CustomerId
    payment_method: PaymentMethod
    redemptions: tuple[Redemption, ...] = ()
    credit: Mapping[str, Money] = field(default_factory=dict)
    """Unused credit per currency that negative invoices left."""
    overrides: tuple[PriceOverride, ...] = ()
    """Own prices, one for each plan and currency."""
    jurisdiction: str = ""
    """Where it is taxed; empty for the tenant's own rates."""
    grants: tuple[prepaid.Grant, ...] = ()
    """Credit that was granted, in the order of granting."""

    def override(self, plan: str, currency: str) -> PriceOverride | None:
        """The customer's own prices for a plan; None for those of the plan."""
        return next((each for each in self.overrides if (each.plan, each.currency) == (plan, currency)), None)

    def coupons(self) -> tuple[Coupon, ...]:
        """Coupons that still give a discount, oldest first."""
        return tuple(
            each.coupon
            for each in self.redemptions
            if each.coupon.lasts(each.invoices) and (each.left is None or each.left.minor > 0)
        )

    def left(self) -> dict[str, Money]:
        """What remains of each coupon that carries over, by its code."""
        return {each.coupon.code: each.left for each in self.redemptions if each.left is not None}

    def credits(self, currency: str) -> tuple[Credit, ...]:
        """What pays invoices in `currency`. Credit of negative invoices has no id; it is the customer's own money."""
        balance = self.credit.get(currency, Money.zero(currency))
        own = Credit(id="", left=balance, priority=prepaid.BALANCE_PRIORITY, kind=CreditKind.PURCHASED)
        return (own, *(each.credit for each in self.grants if each.left.currency == currency and each.left.minor))

    def unused(self) -> dict[str, Money]:
        """All unused credit per currency."""
        made = dict(self.credit)
        for each in self.grants:
            made[each.left.currency] = made.get(each.left.currency, Money.zero(each.left.currency)) + each.left
        return made


State = Absent | Active
initial = Absent()


def decide(state: State, command: Command, coupon: Coupon | None, now: datetime) -> Sequence[Event]:
    """The facts that follow from `command`; none if it changes nothing. `coupon` is the one that is redeemed.

    Raises:
        Rejected: the command is not allowed in this state.
    """
    match state, command:
        case Absent(), CreateCustomer() as c:
            check_id(c.customer_id, "customer_id")
            method, where = _checked(c.payment_method), _place(c.jurisdiction)
            return [CustomerCreated(customer_id=c.customer_id, payment_method=method, jurisdiction=where)]
        case Active() as s, CreateCustomer() as c if (c.payment_method, c.jurisdiction) == (
            s.payment_method,
            s.jurisdiction,
        ):
            return []
        case Active(), CreateCustomer() as c:
            said = f"customer {c.customer_id} exists with another payment method or jurisdiction"
            raise Rejected("customer_exists", said)
        case Active(jurisdiction=same), SetJurisdiction(jurisdiction=where) as c:
            known = _place(where)
            return [] if known == same else [JurisdictionSet(customer_id=c.customer_id, jurisdiction=known)]
        case Active(payment_method=same), AttachPaymentMethod() as c if c.payment_method == same:
            return []
        case Active(), AttachPaymentMethod() as c:
            return [PaymentMethodAttached(customer_id=c.customer_id, payment_method=_checked(c.payment_method))]
        case Active() as s, RedeemCoupon() as c if any(each.coupon.code == c.coupon for each in s.redemptions):
            return []
        case Active(), RedeemCoupon() as c:
            assert coupon is not None
            return [CouponRedeemed(customer_id=c.customer_id, coupon=coupon, redeemed_at=now)]
        case Active() as s, prepaid.GrantCredit() as c:
            return prepaid.grant(s.grants, c, now)
        case Active() as s, SetPriceOverride(override=own) as c:
            if (s.override(own.plan, own.currency or "") or _nothing(own)) == own:
                return []
            return [PriceOverrideSet(customer_id=c.customer_id, override=own)]
        case _:
            raise Rejected("unknown_customer", f"there is no customer {command.customer_id!r}", field="customer_id")


def evolve(state: State, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case Absent(), CustomerCreated() as e:
            return Active(e.customer_id, e.payment_method, jurisdiction=e.jurisdiction)
        case Active() as s, JurisdictionSet(jurisdiction=where):
            return replace(s, jurisdiction=where)
        case Active() as s, PaymentMethodAttached() as e:
            return replace(s, payment_method=e.payment_method)
        case Active() as s, CouponRedeemed() as e:
            return replace(s, redemptions=(*s.redemptions, Redemption(e.coupon, e.redeemed_at)))
        case Active() as s, PriceOverrideSet(override=own):
            others = [each for each in s.overrides if (each.plan, each.currency) != (own.plan, own.currency)]
            return replace(s, overrides=(*others, *([] if own == _nothing(own) else [own])))
        case Active() as s, prepaid.CreditGranted() | prepaid.CreditExpired() as e:
            return replace(s, grants=prepaid.evolve(s.grants, e))
        case Active() as s, CustomerCredited(amount=amount):
            balance = s.credit.get(amount.currency, Money(0, amount.currency))
            return replace(s, credit={**s.credit, amount.currency: balance + amount})
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def _nothing(own: PriceOverride) -> PriceOverride:
    """The override of the same plan that changes nothing."""
    return PriceOverride(plan=own.plan, currency=own.currency)


def invoiced(
    state: State, taken: Mapping[str, Money], credit_applied: Money, granted: Sequence[prepaid.CreditApplied] = ()
) -> Active:
    """The state after an invoice on which coupons took off `taken` (by code) and credit paid `credit_applied`.

    `granted` says how much of that each grant paid.
    """
    if not isinstance(state, Active):
        raise CorruptHistory("InvoiceFinalized for a customer who was never created")
    moved = tuple(
        _used(each, taken[each.coupon.code]) if each.coupon.code in taken else each for each in state.redemptions
    )
    state = replace(state, redemptions=moved)
    if granted:
        paid = {each.grant_id: each.amount for each in granted}
        state = replace(state, grants=prepaid.spent(state.grants, paid))
        credit_applied -= sum(paid.values(), Money.zero(credit_applied.currency))
    if credit_applied.minor == 0:
        return state
    left = state.credit[credit_applied.currency] - credit_applied
    return replace(state, credit={**state.credit, credit_applied.currency: left})


def _used(redemption: Redemption, amount: Money) -> Redemption:
    coupon = redemption.coupon
    if not coupon.carry_over or coupon.amount is None:
        return replace(redemption, invoices=redemption.invoices + 1)
    before = redemption.left or Money.from_major(coupon.amount, amount.currency)
    return replace(redemption, invoices=redemption.invoices + 1, left=before - amount)


def _place(jurisdiction: str) -> str:
    if jurisdiction:
        check_jurisdiction(jurisdiction, "jurisdiction")
    return jurisdiction


def _checked(method: PaymentMethod) -> PaymentMethod:
    if method.provider is not Provider.MANUAL and not method.token:
        raise Rejected(
            "missing", f"{method.provider} needs the token of a payment method", field="payment_method.token"
        )
    return method
