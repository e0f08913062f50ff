"""The sections of a catalogue file, as they are written: shapes only; `services.catalog_file` gives them a meaning."""

from __future__ import annotations

from pydantic import Field

from billing.catalog import Plan
from billing.customer import PaymentMethod
from billing.discount import Coupon
from billing.metering import Meter
from billing.plan import AddOn
from billing.pricing import AddOnQuantity, PriceOverride
from billing.tax import Jurisdiction, TaxRate
from billing.tenant import Policies, UsageBounds
from services.exact_values import Identifier, LocalTime, Name, Text, Whole
from services.shapes import StrictModel, model_of

TaxSection = model_of(TaxRate)
JurisdictionSection = model_of(Jurisdiction)
BoundsSection = model_of(UsageBounds)
PoliciesSection = model_of(Policies)
MeterSection = model_of(Meter)
PlanSection = model_of(Plan)
CouponSection = model_of(Coupon)
AddOnSection = model_of(AddOn)
OverrideSection = model_of(PriceOverride)
AddOnQuantitySection = model_of(AddOnQuantity)
PaymentMethodSection = model_of(PaymentMethod)


class TenantSection(StrictModel):
    """Who sells."""

    id: Identifier | None = None
    name: Name
    currency: Name
    zone: Name
    taxes: list[TaxSection] = Field(default_factory=list)  # type: ignore[valid-type]
    jurisdictions: list[JurisdictionSection] = Field(default_factory=list)  # type: ignore[valid-type]
    bounds: BoundsSection = Field(default_factory=UsageBounds)  # type: ignore[valid-type]
    policies: PoliciesSection = Field(default_factory=Policies)  # type: ignore[valid-type]
    test_clock: LocalTime | None = None


class CustomerSection(StrictModel):
    """Who buys."""

    id: Identifier
    name: Text = ""
    email: Text = ""
    locale: Text = ""
    payment_method: PaymentMethodSection = Field(default_factory=PaymentMethod)  # type: ignore[valid-type]
    jurisdiction: Text | None = None
    coupons: list[Name] = Field(default_factory=list)
    overrides: list[OverrideSection] = Field(default_factory=list)  # type: ignore[valid-type]


class SubscriptionSection(StrictModel):
    """Who buys what, from when."""

    id: Identifier
    customer: Identifier
    plan: Name
    starts_at: LocalTime | None = None
    ends_at: LocalTime | None = None
    trial: Name | None = None
    billing_day: Whole | None = None
    zone: Name | None = None
    currency: Name | None = None
    add_ons: list[AddOnQuantitySection] = Field(default_factory=list)  # type: ignore[valid-type]


class CatalogSections(StrictModel):
    """The whole file."""

    effective_at: LocalTime | None = None
    tenant: TenantSection | None = None
    meters: list[MeterSection] = Field(default_factory=list)  # type: ignore[valid-type]
    plans: list[PlanSection] = Field(default_factory=list)  # type: ignore[valid-type]
    add_ons: list[AddOnSection] = Field(default_factory=list)  # type: ignore[valid-type]
    coupons: list[CouponSection] = Field(default_factory=list)  # type: ignore[valid-type]
    customers: list[CustomerSection] = Field(default_factory=list)
    subscriptions: list[SubscriptionSection] = Field(default_factory=list)
