"""A customer: who pays. Name and address are not in the log; they are a profile beside it (promise 9).

    (absent) --CreateCustomer--> Active --RedeemCoupon / AttachPaymentMethod--> Active

Invoices move two counters here: periods left on a redeemed coupon, and the credit balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from billing.discount import Coupon
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, check_id
from billing.money import Money
from billing.pricing import PriceOverride


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


Command = CreateCustomer | AttachPaymentMethod | RedeemCoupon | SetPriceOverride


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerCreated:
    """A customer was added."""

    customer_id: CustomerId
    """The customer."""
    payment_method: PaymentMethod = PaymentMethod()
    """How the customer pays."""


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


Event = CustomerCreated | PaymentMethodAttached | CouponRedeemed | CustomerCredited | PriceOverrideSet


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
    """Unused credit per currency."""
    overrides: tuple[PriceOverride, ...] = ()
    """Own prices, one for each plan and currency."""

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
            return [CustomerCreated(customer_id=c.customer_id, payment_method=_checked(c.payment_method))]
        case Active(payment_method=same), CreateCustomer() as c if c.payment_method == same:
            return []
        case Active(), CreateCustomer() as c:
            raise Rejected("customer_exists", f"customer {c.customer_id} exists with another payment method")
        case Active(payment_method=same), AttachPaymentMethod() as c if c.payment_method == same:
            return []
        case Active(), AttachPaymentMethod() as c:
            return [PaymentMethodAttached(customer_id=c.customer_id, payment_method=_checked(c.payment_method))]
        case Active() as s, RedeemCoupon() as c if any(each.coupon.code == c.coupon for each in s.redemptions):
            return []
        case Active(), RedeemCoupon() as c:
            assert coupon is not None
            return [CouponRedeemed(customer_id=c.customer_id, coupon=coupon, redeemed_at=now)]
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
            return Active(e.customer_id, e.payment_method)
        case Active() as s, PaymentMethodAttached() as e:
            return replace(s, payment_method=e.payment_method)
        case Active() as s, CouponRedeemed() as e:
            return replace(s, redemptions=(*s.redemptions, Redemption(e.coupon, e.redeemed_at)))
        case Active() as s, PriceOverrideSet(override=own):
            others = [each for each in s.overrides if (each.plan, each.currency) != (own.plan, own.currency)]
            return replace(s, overrides=(*others, *([] if own == _nothing(own) else [own])))
        case Active() as s, CustomerCredited(amount=amount):
            balance = s.credit.get(amount.currency, Money(0, amount.currency))
            return replace(s, credit={**s.credit, amount.currency: balance + amount})
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def _nothing(own: PriceOverride) -> PriceOverride:
    """The override of the same plan that changes nothing."""
    return PriceOverride(plan=own.plan, currency=own.currency)


def invoiced(state: State, taken: Mapping[str, Money], credit_applied: Money) -> State:
    """The state after an invoice on which coupons took off `taken` (by code) and credit paid `credit_applied`."""
    if not isinstance(state, Active):
        raise CorruptHistory("InvoiceFinalized for a customer who was never created")
    moved = tuple(
        _used(each, taken[each.coupon.code]) if each.coupon.code in taken else each for each in state.redemptions
    )
    if credit_applied.minor == 0:
        return replace(state, redemptions=moved)
    left = state.credit[credit_applied.currency] - credit_applied
    return replace(state, redemptions=moved, credit={**state.credit, credit_applied.currency: left})


def _used(redemption: Redemption, amount: Money) -> Redemption:
    coupon = redemption.coupon
    if not coupon.carry_over or coupon.amount is None:
        return replace(redemption, invoices=redemption.invoices + 1)
    before = redemption.left or Money.from_major(coupon.amount, amount.currency)
    return replace(redemption, invoices=redemption.invoices + 1, left=before - amount)


def _checked(method: PaymentMethod) -> PaymentMethod:
    if method.provider is not Provider.MANUAL and not method.token:
        raise Rejected(
            "missing", f"{method.provider} needs the token of a payment method", field="payment_method.token"
        )
    return method
